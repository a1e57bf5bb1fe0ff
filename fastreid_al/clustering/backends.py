"""DBSCAN of other libraries, as backends of this package's: scikit-learn's on the CPU, cuML's on an NVIDIA GPU."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

Backend = Literal["auto", "graph", "cuml", "sklearn"]

#: cuML's "precomputed" takes a dense matrix: up to this many nodes, 6.4 GB in float32 and twice that in float64.
CUML_UP_TO = 40_000
_HOW = {
    "cuml": "pip install cuml-cu12 (or cuml-cu13, as the CUDA of the driver is)",
    "sklearn": "pip install scikit-learn",
}


def check_backend(backend: str, nodes: int = 0, name: str = "backend") -> None:
    """Refuse a backend that is unknown or not installed, or cuML without a GPU or with more nodes than it can take.

    Args:
        backend: The backend.
        nodes: Nodes of a graph; 0 where rows are clustered.
        name: What the message calls it.

    Raises:
        ValueError: One line that says what to do.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"{name}: got {backend!r}, expected one of {', '.join(get_args(Backend))}")
    if backend in _HOW and importlib.util.find_spec(backend) is None:
        raise ValueError(
            f"{name}: {backend!r} is not installed; {_HOW[backend]}, or take 'graph', which needs nothing more"
        )
    if backend == "cuml" and not torch.cuda.is_available():
        raise ValueError(
            f"{name}: 'cuml' runs on an NVIDIA GPU, and there is none here; take 'graph' or 'sklearn'"
        )
    if backend == "cuml" and nodes > CUML_UP_TO:
        raise ValueError(
            f"{name}: 'cuml' takes distances as a dense array, {4e-9 * nodes**2:.0f} GB in float32 for {nodes} nodes, and is "
            f"refused past {CUML_UP_TO}; take 'graph', which runs on a GPU too"
        )


def sklearn_labels(
    x: np.ndarray | sp.csr_array, eps: Sequence[float], min_samples: int, metric: str
) -> np.ndarray:
    """scikit-learn's labels (len(eps), n) int64 of rows, or of a precomputed graph whose zeros are edges."""
    cluster = importlib.import_module("sklearn.cluster")
    found = np.empty((len(eps), x.shape[0]), dtype=np.int64)
    for labels, radius in zip(found, eps, strict=True) if x.shape[0] else ():
        # It takes no radius of zero; the least number above it lets the same pairs in.
        model = cluster.DBSCAN(
            eps=max(radius, np.nextafter(0.0, 1.0)),
            min_samples=min_samples,
            metric=metric,
            n_jobs=-1,
        )
        with warnings.catch_warnings():
            # Changing the diagonal of a sparse graph, and sorting it by distance, is said to be slow.
            warnings.simplefilter("ignore")
            labels[:] = model.fit(x).labels_
    return found


def cuml_labels(x: Tensor, eps: Sequence[float], min_samples: int, metric: str) -> Tensor:
    """cuML's labels (len(eps), n) int64, on the CPU, of rows or a dense precomputed matrix on a GPU.

    Clusters are numbered anew by their lowest core row, whatever order cuML gives them.
    """
    cluster: Any = importlib.import_module("cuml.cluster")
    found = torch.full((len(eps), len(x)), -1, dtype=torch.int64)
    if len(x) == 0:
        return found
    for row, radius in zip(found, eps, strict=True):
        with torch.cuda.device(x.device):
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
    """Labels (n,), -1 for noise, numbered by the lowest core row of each cluster.

    `core` holds the core rows; places that are -1, as some versions fill it up, are none.
    """
    core = core[core >= 0]
    first = torch.full((int(labels.max()) + 1,), len(labels)).scatter_reduce_(
        0, labels[core], core, "amin"
    )
    number = torch.empty_like(first)
    number[first.argsort()] = torch.arange(len(first))
    return torch.where(labels < 0, labels, number[labels]) if len(core) else labels
