"""Trains, saves, extracts features and reports for any method; it knows no paper."""

from .console import Reporter
from .extract import Evaluator, extract_features
from .loop import TrainingLoop
from .method import Method
from .network import Network
from .run_folder import RunFolder
from .stop_signal import Interrupted, StopSignal
from .training import Training

__all__ = [
    "Evaluator",
    "Interrupted",
    "Method",
    "Network",
    "Reporter",
    "RunFolder",
    "StopSignal",
    "Training",
    "TrainingLoop",
    "extract_features",
]
