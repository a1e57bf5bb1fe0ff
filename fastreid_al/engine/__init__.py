"""The thin training loop, checkpoints, feature extraction and run reports; it does not know which paper it runs."""

from .extract import Evaluator, extract_features
from .loop import Interrupted, Method, Training, train
from .report import Reporter, RunFolder

__all__ = ["Evaluator", "Interrupted", "Method", "Reporter", "RunFolder", "Training", "extract_features", "train"]
