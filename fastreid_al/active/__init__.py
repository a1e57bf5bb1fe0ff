"""Which questions to ask about clusters (SNPS, MPPS, other strategies), and the refined labels."""

from .mpps import propose_merges
from .questions import Questions
from .refine import Refined, refine
from .snps import propose_splits

__all__ = ["Questions", "Refined", "propose_merges", "propose_splits", "refine"]
