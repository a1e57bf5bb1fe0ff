"""The training methods: one file for each paper, and the parts that they have in common."""

from .nnct import NNCT
from .supervised import Supervised
from .ucal import UCAL

__all__ = ["NNCT", "UCAL", "Supervised"]
