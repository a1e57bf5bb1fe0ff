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

_MODULES = {"cuml": "cuml", "sklearn": "sklearn"}
_HOW = {
    "cuml": "pip install cuml-cu12 (or cuml-cu13, as the CUDA of the driver is)",
    "sklearn": "pip install scikit-learn",
}


def check_backend(backend: str) -> None:
    """Refuse a backend that is unknown, that is not installed, or, for cuML, that has no GPU to run on.

    Raises:
        ValueError: One line that says what to do.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: found {backend!r}, wanted one of {', '.join(get_args(Backend))}")
    if backend in _MODULES and importlib.util.find_spec(_MODULES[backend]) is None:
        raise ValueError(
            f"backend: {backend!r} is not installed; {_HOW[backend]}, or take 'graph', which needs neither"
        )
    if backend == "cuml" and not torch.cuda.is_available():
        raise ValueError("backend: 'cuml' runs on an NVIDIA GPU, and there is none here; take 'graph' or 'sklearn'")


def sklearn_labels(x: np.ndarray | sp.csr_array, eps: Sequence[float], min_samples: int, metric: str) -> np.ndarray:
    """scikit-learn's labels (len(eps), n) int64 of rows, or of a precomputed graph whose zeros are edges."""
    cluster = importlib.import_module("sklearn.cluster")
    found = np.empty((len(eps), x.shape[0]), dtype=np.int64)
    for labels, radius in zip(found, eps, strict=True) if x.shape[0] else ():
        # It takes no radius of zero; the least number above it lets the same pairs in.
        model = cluster.DBSCAN(
            eps=max(radius, np.nextafter(0.0, 1.0)), min_samples=min_samples, metric=metric, n_jobs=-1
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
            model = cluster.DBSCAN(eps=radius, min_samples=min_samples, metric=metric, output_type="numpy")
            model.fit(x, out_dtype="int64")
        labels = torch.from_numpy(np.asarray(model.labels_).astype(np.int64))
        core = torch.from_numpy(np.asarray(model.core_sample_indices_).astype(np.int64))
        # Older versions fill up the core indices with -1.
        core = core[core >= 0]
        if len(core) == 0:
            continue
        first = torch.full((int(labels.max()) + 1,), len(x)).scatter_reduce_(0, labels[core], core, "amin")
        number = torch.empty_like(first)
        number[first.argsort()] = torch.arange(len(first))
        row[labels >= 0] = number[labels[labels >= 0]]
    return found
