"""Approximate nearest neighbours, where an exact search would take too long."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from reid_kernels import similarity_topk
from reid_kernels.topk import MAX_K
from torch import Tensor

from ..distributed.world import SINGLE_PROCESS, World

#: Lists are so many times the root of n.
_LISTS = 4
#: Probes that are tried first, and the recall on the sample at which they are enough.
_FEWEST_PROBES, _RECALL = 4, 0.98
#: Rows that train a list's centre, and queries searched at a time.
_TRAIN_PER_LIST, _QUERIES = 64, 2**16
_SEED = 0
#: Similarities that differ by less are the same in float32.
_ROUNDING = 1e-6


class Approximate(NamedTuple):
    """Neighbour lists (n, min(k, n)) int64, and the share of the true neighbours that they hold, on a sample of the rows."""

    neighbours: Tensor
    recall: float


def ivf_neighbours(
    features: Tensor,
    k: int,
    lists: int | None = None,
    probes: int | None = None,
    sample: int = 1000,
    world: World = SINGLE_PROCESS,
) -> Approximate:
    """The k nearest rows of every row by dot product, itself at place 0, most of them right.

    An inverted file (Sivic and Zisserman, ICCV 2003; Johnson et al., IEEE Big Data 2019): rows are put into the lists of their
    nearest k-means centre, and a row looks into the lists of the centres nearest to it alone. FAISS does it on the CPU, cuVS
    where the features are on a GPU.

    How many lists must be probed depends on how well the features cluster. Measured with k = 30 on planted clusters of 20 rows
    with noise as long as their centres (similarity 0.5 in a cluster; n = 32,621, D = 512): 0.91 of the neighbours at 8 probes
    of 722 lists in 3.0 s, and 0.99 in 11.0 s, on two cores on which the exact search with the extension takes 2.4 s. So measure
    before you choose it. Lists shorter than the clusters are easier: 0.99 at 4 probes for k = 15 (n = 100,000, noise 0.7),
    where k = 30 took 256. Four lists for each sqrt(n) were searched twice as fast as two at the same recall.

    Args:
        features: (n, D) float32 or float64 unit rows, on the CPU or a GPU; searched in float32.
        k: Neighbours wanted, itself counted, 1,025 at most; n when there are fewer rows.
        lists: k-means centres; 4 sqrt(n) when not given, and n at most.
        probes: Lists that a row looks into; when not given 4, 8, 16 and so on, until the recall of the sample is 0.98.
        sample: Rows whose neighbours are compared with the exact ones, drawn with a fixed seed.
        world: A single process: an inverted file is not searched over ranks.

    Returns:
        Ranks, on the device of the features: by descending similarity, ties to the lowest index. A row whose probed lists hold
        fewer than k others is searched exactly. Recall: of the sampled rows' neighbours, those at least as similar as the
        true k-th; 1.0 where there is nothing to find. The index is a copy of the features: 67 MB at n = 32,621 and 2 GB at
        1e6, for D = 512; the lists take what `nearest_neighbours` gives, 7.8 MB and 240 MB for k = 30. The k-means is
        seeded: the same rows give the same result.

    Raises:
        ValueError: Wrong shape or dtype, k, lists, probes or sample out of range, a row that is not finite, the library
            is not installed, or there are several ranks.
    """
    if world.size > 1:
        raise ValueError(
            f"neighbours: got ivf on {world.size} ranks, expected exact; an inverted file is searched by a single process"
        )
    if features.ndim != 2 or features.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"features: got shape {tuple(features.shape)} {features.dtype}, expected (n, D) float32 or float64"
        )
    n = len(features)
    if not 1 <= k <= MAX_K + 1:
        raise ValueError(f"k: got {k}, expected 1 to {MAX_K + 1}")
    if lists is not None and lists < 1:
        raise ValueError(f"lists: got {lists}, expected at least 1")
    if probes is not None and probes < 1:
        raise ValueError(f"probes: got {probes}, expected at least 1")
    if sample < 1:
        raise ValueError(f"sample: got {sample}, expected at least 1")
    check_library(features.device.type)
    bad = (~torch.isfinite(features).all(1)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"features: {len(bad)} of {n} rows are not finite, the first is row {int(bad[0])}"
        )
    rows = features.detach().float().contiguous()
    own = torch.arange(n, device=rows.device)
    k = min(k, n)
    if k <= 1:
        return Approximate(own[:, None][:, :k], 1.0)
    lists = min(n, lists or round(_LISTS * math.sqrt(n)))
    index = (_cuvs if rows.is_cuda else _faiss)(rows, lists)
    drawn = _draw(n, sample).to(rows.device)
    least = similarity_topk(rows[drawn], rows, k - 1, normalize=False, exclude=drawn)[0][:, -1]

    def search(queries: Tensor, probes: int) -> Tensor:
        return _others(index(rows[queries], k, probes), queries, rows, k)

    if probes is None:
        probes = _FEWEST_PROBES
        while probes < lists and _recall(rows, drawn, search(drawn, probes), least) < _RECALL:
            probes *= 2
    probes = min(lists, probes)
    others = torch.cat([search(queries, probes) for queries in own.split(_QUERIES)])
    return Approximate(
        torch.cat([own[:, None], others], dim=1), _recall(rows, drawn, others[drawn], least)
    )


def check_library(device: str) -> None:
    """Refuse a search on a kind of device whose library is not installed.

    Raises:
        ValueError: One line that says what to install.
    """
    if device == "cuda" and importlib.util.find_spec("cuvs") is None:
        raise ValueError(
            "--cluster.neighbours ivf: an approximate search on a GPU needs cuVS; pip install cuvs-cu12 (or cuvs-cu13), "
            "or search exactly"
        )
    if device != "cuda" and importlib.util.find_spec("faiss") is None:
        raise ValueError(
            "--cluster.neighbours ivf: an approximate search needs FAISS; pip install 'fastreid_al[ivf]', or search exactly"
        )


#: Similarities and rows (m, k) that an index finds for queries (m, D), the row itself among them: (queries, k, probes).
Search = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


def _faiss(rows: Tensor, lists: int) -> Search:
    faiss: Any = importlib.import_module("faiss")
    centres = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(centres, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.spherical = _SEED, True
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _TRAIN_PER_LIST
    with _threads_of_torch(faiss):
        index.train(rows.numpy())
        index.add(rows.numpy())

    def search(queries: Tensor, k: int, probes: int) -> tuple[Tensor, Tensor]:
        index.nprobe = probes
        with _threads_of_torch(faiss):
            similarity, found = index.search(queries.numpy(), k)
        return torch.from_numpy(similarity), torch.from_numpy(found)

    return search


def _cuvs(rows: Tensor, lists: int) -> Search:
    ivf_flat: Any = importlib.import_module("cuvs.neighbors.ivf_flat")
    share = min(1.0, _TRAIN_PER_LIST * lists / len(rows))
    settings = ivf_flat.IndexParams(
        n_lists=lists, metric="inner_product", kmeans_trainset_fraction=share
    )
    with torch.cuda.device(rows.device):
        # cuVS has a stream of its own.
        torch.cuda.current_stream().synchronize()
        index = ivf_flat.build(settings, rows)

    def search(queries: Tensor, k: int, probes: int) -> tuple[Tensor, Tensor]:
        with torch.cuda.device(rows.device):
            torch.cuda.current_stream().synchronize()
            found = ivf_flat.search(ivf_flat.SearchParams(n_probes=probes), index, queries, k)
            similarity, places = (torch.as_tensor(x, device=rows.device).clone() for x in found)
            torch.cuda.synchronize()
        return similarity, places.to(torch.int64)

    return search


def _others(hits: tuple[Tensor, Tensor], queries: Tensor, rows: Tensor, k: int) -> Tensor:
    """The k - 1 others of each row, by descending similarity, ties to the lowest index; searched exactly where some lack."""
    similarity, found = hits
    none = (found < 0) | (found >= len(rows)) | (found == queries[:, None])
    found, order = found.masked_fill(none, len(rows)).sort(dim=1, stable=True)
    similarity = similarity.masked_fill(none, -torch.inf).gather(1, order)
    found = found.gather(1, similarity.argsort(dim=1, descending=True, stable=True))[:, : k - 1]
    short = (found == len(rows)).any(1).nonzero()[:, 0]
    if len(short):
        lacking = queries[short]
        found[short] = similarity_topk(
            rows[lacking], rows, k - 1, normalize=False, exclude=lacking
        )[1]
    return found


def _draw(n: int, sample: int) -> Tensor:
    return torch.from_numpy(np.sort(np.random.default_rng(_SEED).permutation(n)[:sample]))


def _recall(rows: Tensor, queries: Tensor, found: Tensor, least: Tensor) -> float:
    """The share of what was found that is as similar as the last of the true neighbours: ties are all right."""
    hits = 0
    for q, f, similarity in zip(queries.split(16), found.split(16), least.split(16), strict=True):
        hits += int(((rows[q][:, None] * rows[f]).sum(-1) >= similarity[:, None] - _ROUNDING).sum())
    return hits / found.numel()


@contextlib.contextmanager
def _threads_of_torch(faiss: Any) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
