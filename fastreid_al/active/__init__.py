"""Which questions to ask about the clusters: SNPS (split), MPPS (merge), other strategies, and the refined labels."""

from .mpps import propose_merges
from .refine import Questions, Refined, refine
from .snps import propose_splits

__all__ = ["Questions", "Refined", "propose_merges", "propose_splits", "refine"]
