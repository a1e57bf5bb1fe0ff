"""How good the ranking and the clusters are."""

from .pairs import PairScores, pair_scores
from .ranking import Ranking, rank_gallery

__all__ = ["PairScores", "Ranking", "pair_scores", "rank_gallery"]
