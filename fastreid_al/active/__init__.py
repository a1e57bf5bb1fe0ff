"""Which questions to ask about clusters (SNPS, MPPS, other strategies), and the refined labels."""

from .mpps import propose_merges
from .question_rounds import QuestionRounds
from .refine import Refined, refine
from .snps import propose_splits

__all__ = ["QuestionRounds", "Refined", "propose_merges", "propose_splits", "refine"]
