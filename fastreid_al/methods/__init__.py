"""One file tells one paper; `run_training` puts a run together."""

from .nnct import NNCT
from .run import Finished, dry_run, run_training
from .simulate import run_simulation, simulate
from .supervised import Supervised
from .ucal import UCAL

__all__ = ["NNCT", "UCAL", "Finished", "Supervised", "dry_run", "run_simulation", "run_training", "simulate"]
