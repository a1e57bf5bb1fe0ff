"""DBSCAN of cuML on an NVIDIA GPU, as a backend of `dbscan` and `cosine_dbscan`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..arguments import as_integer, check_choice

Backend = Literal["auto", "graph", "cuml"]

#: cuML's metric "precomputed" needs a dense matrix: allowed up to this number of nodes, 6.4 GB in
#: float32 and twice that in float64.
CUML_UP_TO = 40_000


def check_backend(backend: str, nodes: int = 0, name: str = "backend") -> None:
    """Refuse an unknown backend, and cuML if it cannot run here or would get too many nodes.

    Args:
        backend: The backend.
        nodes: Nodes of a graph; 0 if rows are clustered.
        name: The name of the argument or setting in the message.

    Raises:
        ValueError: One line that says what to do.
    """
    check_choice(name, backend, get_args(Backend))
    as_integer("nodes", nodes, 0)
    if backend != "cuml":
        return
    if importlib.util.find_spec("cuml") is None:
        raise ValueError(
            f"{name}: 'cuml' is not installed; pip install cuml-cu12 (or cuml-cu13, to match the "
            "CUDA version of the driver), or use 'graph', which needs no other package"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"{name}: 'cuml' needs an NVIDIA GPU, and none was found; use 'graph'")
    if nodes > CUML_UP_TO:
        raise ValueError(
            f"{name}: 'cuml' needs distances as a dense array, {4e-9 * nodes**2:.0f} GB in float32 "
            f"for {nodes} nodes, and is refused past {CUML_UP_TO}; use 'graph', which also "
            "runs on a GPU"
        )


def cuml_labels(x: Tensor, eps: Sequence[float], min_samples: int, metric: str) -> Tensor:
    """Labels by cuML, for several radii.

    Clusters are renumbered by their lowest core row, because the order in which cuML numbers them
    is not specified.

    Args:
        x: Rows (n, D), or a dense precomputed matrix (n, n), on a GPU.
        eps: Radii.
        min_samples: Points within the radius that make a core point, itself counted.
        metric: cuML's name of the metric.

    Returns:
        (len(eps), n) int64, on the CPU.
    """
    cluster: Any = importlib.import_module("cuml.cluster")
    found = torch.full((len(eps), len(x)), -1, dtype=torch.int64)
    if len(x) == 0:
        return found
    for row, radius in zip(found, eps, strict=True):
        with torch.cuda.device(x.device):
            # cuML has its own stream.
            torch.cuda.current_stream().synchronize()
            model = cluster.DBSCAN(
                eps=radius, min_samples=min_samples, metric=metric, output_type="numpy"
            )
            model.fit(x, out_dtype="int64")
        labels = torch.from_numpy(np.asarray(model.labels_).astype(np.int64))
        core = torch.from_numpy(np.asarray(model.core_sample_indices_).astype(np.int64))
        row.copy_(numbered_by_core(labels, core))
    return found


def numbered_by_core(labels: Tensor, core: Tensor) -> Tensor:
    """Renumber clusters by the lowest core row of each.

    Args:
        labels: (n,) int64, -1 for noise.
        core: Core rows, int64. Entries of -1, with which some versions of cuML pad them, are
            ignored.

    Returns:
        (n,) int64, -1 for noise.
    """
    core = core[core >= 0]
    if not len(core):
        return labels
    clusters = int(labels.max()) + 1
    first = torch.full((clusters,), len(labels)).scatter_reduce_(0, labels[core], core, "amin")
    number = torch.empty_like(first)
    number[first.argsort()] = torch.arange(len(first))
    return torch.where(labels < 0, labels, number[labels])
