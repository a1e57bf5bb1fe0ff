"""The processes of a run: the process group with its collectives, and how `torchrun` starts it."""

from .world import SINGLE_PROCESS, Sharded, World

__all__ = ["SINGLE_PROCESS", "Sharded", "World"]
