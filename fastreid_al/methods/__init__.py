"""One file tells one paper; `run_training` puts a run together."""

from .run import Finished, dry_run, run_training
from .supervised import Supervised
from .ucal import UCAL

__all__ = ["UCAL", "Finished", "Supervised", "dry_run", "run_training"]
