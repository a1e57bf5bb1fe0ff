"""Assembles and executes the commands: train, dry run, evaluate, simulate, doctor."""

from .simulate import run_simulation, simulate
from .train import Finished, dry_run, run_training

__all__ = ["Finished", "dry_run", "run_simulation", "run_training", "simulate"]
