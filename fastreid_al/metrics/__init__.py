"""Quality of rankings and of clusters."""

from .clusters import ClusterScores, cluster_scores
from .pairs import ListScores, PairScores, changed_pairs, list_scores, pair_scores
from .ranking import Ranking, rank_gallery
from .reranking import rerank_gallery

__all__ = [
    "ClusterScores",
    "ListScores",
    "PairScores",
    "Ranking",
    "changed_pairs",
    "cluster_scores",
    "list_scores",
    "pair_scores",
    "rank_gallery",
    "rerank_gallery",
]
