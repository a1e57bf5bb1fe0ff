"""From features to pseudo-labels: neighbours, Jaccard graph, DBSCAN, self-paced selection, k-medoids. Arrays in, arrays out."""

from .dbscan import dbscan
from .jaccard import Graph, jaccard_graph
from .kmedoids import Groupings, KMedoids, kmedoids, kmedoids_many
from .neighbours import nearest_neighbours
from .self_paced import self_paced_labels

__all__ = [
    "Graph",
    "Groupings",
    "KMedoids",
    "dbscan",
    "jaccard_graph",
    "kmedoids",
    "kmedoids_many",
    "nearest_neighbours",
    "self_paced_labels",
]
