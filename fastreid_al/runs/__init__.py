"""Runs the commands: train, dry run, evaluate, simulate, doctor."""

from .dry_run import dry_run
from .simulate import run_simulation, simulate
from .train import Finished, run_training

__all__ = ["Finished", "dry_run", "run_simulation", "run_training", "simulate"]
