"""From features to pseudo-labels: neighbours, Jaccard graph, DBSCAN, self-paced selection. Arrays in, arrays out."""

from .dbscan import dbscan
from .jaccard import Graph, jaccard_graph
from .neighbours import nearest_neighbours
from .self_paced import self_paced_labels

__all__ = ["Graph", "dbscan", "jaccard_graph", "nearest_neighbours", "self_paced_labels"]
