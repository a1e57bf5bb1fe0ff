"""Quality of rankings and of clusters."""

from .pairs import ListScores, PairScores, list_scores, pair_scores
from .ranking import Ranking, rank_gallery
from .reranking import rerank_gallery

__all__ = [
    "ListScores",
    "PairScores",
    "Ranking",
    "list_scores",
    "pair_scores",
    "rank_gallery",
    "rerank_gallery",
]
