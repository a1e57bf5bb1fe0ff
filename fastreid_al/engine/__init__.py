"""The thin training loop, checkpoints, feature extraction and run reports; it does not know which paper it runs."""

from .extract import Evaluator, extract_features
from .loop import Interrupted, train
from .report import Reporter, RunFolder
from .state import Method, Training
from .step import Network

__all__ = [
    "Evaluator",
    "Interrupted",
    "Method",
    "Network",
    "Reporter",
    "RunFolder",
    "Training",
    "extract_features",
    "train",
]
