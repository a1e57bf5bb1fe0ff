"""From features to pseudo-labels.

Conditioned features, neighbours, Jaccard graph, DBSCAN, average linkage, self-paced selection,
k-medoids: functions that take and return arrays.
"""

from .backends import check_backend
from .conditioning import standardise_by_camera, whiten_within_clusters
from .cosine import cosine_dbscan, radius_graph
from .dbscan import dbscan
from .ivf import ivf_neighbours
from .jaccard import Graph, jaccard_graph
from .kmedoids import Groupings, KMedoids, kmedoids, kmedoids_many
from .linkage import Linkage, Merges, average_linkage
from .neighbours import nearest_neighbours
from .self_paced import self_paced_labels

__all__ = [
    "Graph",
    "Groupings",
    "KMedoids",
    "Linkage",
    "Merges",
    "average_linkage",
    "check_backend",
    "cosine_dbscan",
    "dbscan",
    "ivf_neighbours",
    "jaccard_graph",
    "kmedoids",
    "kmedoids_many",
    "nearest_neighbours",
    "radius_graph",
    "self_paced_labels",
    "standardise_by_camera",
    "whiten_within_clusters",
]
