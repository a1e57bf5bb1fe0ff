"""The thin training loop, checkpoints, feature extraction and run reports; it does not know which paper it runs."""

from .console import Reporter, RunFolder
from .extract import Evaluator, extract_features
from .loop import Interrupted, train
from .network import Network
from .training import Method, Training

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
