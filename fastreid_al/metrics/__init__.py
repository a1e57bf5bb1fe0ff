"""Quality of rankings and of clusters."""

from .clusters import ClusterScores, cluster_scores
from .pairs import ListScores, PairScores, changed_pairs, list_scores, pair_scores
from .rank_lists import RankLists, list_gallery
from .ranking import QueryScores, Ranking, rank_gallery
from .reranking import rerank_gallery

__all__ = [
    "ClusterScores",
    "ListScores",
    "PairScores",
    "QueryScores",
    "RankLists",
    "Ranking",
    "changed_pairs",
    "cluster_scores",
    "list_gallery",
    "list_scores",
    "pair_scores",
    "rank_gallery",
    "rerank_gallery",
]
