"""Approximate nearest neighbours by an inverted file, if exact search takes too long."""

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

from ..arguments import SINGLE_AND_DOUBLE, as_features, as_integer, as_world
from ..distributed.world import SINGLE_PROCESS, World

#: Default number of lists, as a multiple of sqrt(n).
_LISTS = 4
#: Without `probes`, this many lists are probed first; the number is doubled until the sample
#: reaches the recall.
_FEWEST_PROBES = 4
_RECALL = 0.98
#: Training rows per list for the k-means.
_TRAIN_PER_LIST = 64
#: Queries that are searched at a time.
_QUERIES = 2**16
_SEED = 0
#: Rows are unit-norm; the sums of the k-means hold the squares of lengths up to here.
_LONGEST = 1e6
#: Similarities that differ by less count as equal in float32.
_ROUNDING = 1e-6


class Approximate(NamedTuple):
    """Approximate neighbour lists.

    Args:
        neighbours: (n, min(k, n)) int64.
        recall: Fraction of the true neighbours that the lists hold, on a sample of the rows.
    """

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
    """Find most of the k nearest rows of every row by dot product; the row itself is the first.

    An inverted file (Sivic and Zisserman, ICCV 2003; Johnson et al., IEEE Big Data 2019): each row
    is assigned to the list of its nearest k-means centre, and only the lists of the centres nearest
    to a query are searched. FAISS is used on the CPU, cuVS for features on a GPU.

    How many lists must be probed depends on how well the features cluster. Measured with k = 30 on
    planted clusters of 20 rows with noise as long as their centres (similarity 0.5 in a cluster; n
    = 32,621, D = 512), on two cores: recall 0.91 with 8 probes of 722 lists in 3.0 s, and 0.99 in
    11.0 s; exact search with the extension takes 2.4 s there. So measure before you choose it.
    Lists shorter than the clusters are easier: 0.99 with 4 probes for k = 15 (n = 100,000, noise
    0.7), where k = 30 took 256. Four lists for each sqrt(n) were searched twice as fast as two at
    the same recall.

    Args:
        features: (n, D) float32 or float64 unit-norm rows, on the CPU or a GPU; searched in
            float32.
        k: Number of neighbours including the row itself, at most 1,025; n if there are fewer rows.
        lists: Number of lists (k-means centres); 4 sqrt(n) by default, n at most.
        probes: Lists that are searched for a query. By default 4, 8, 16 and so on, until the recall
            on the sample is 0.98.
        sample: Number of rows whose neighbours are compared with the exact ones; sampled with a
            fixed seed.
        world: Must be a single process.

    Returns:
        Neighbours, on the device of the features: by descending similarity, ties to the lowest
        index. A row whose probed lists hold fewer than k others is searched exactly. Recall: the
        fraction of neighbours of the sampled rows that are at least as similar as the true k-th;
        1.0 if there are no neighbours. The index is a copy of the features: 67 MB at n = 32,621 and
        2 GB at 1e6, for D = 512; the lists take as much as those of `nearest_neighbours`, 7.8 MB
        and 240 MB for k = 30. The k-means is seeded: the same rows give the same result.

    Raises:
        ValueError: Wrong shape or dtype, k, lists, probes or sample out of range, a row that is not
            finite, the library is not installed, or there are several ranks.
    """
    if as_world(world).size > 1:
        raise ValueError(
            f"neighbours: got ivf on {world.size} ranks, expected exact; an inverted file is "
            "searched by a single process"
        )
    features = as_features("features", features, SINGLE_AND_DOUBLE)
    k = as_integer("k", k, 1, MAX_K + 1)
    lists = None if lists is None else as_integer("lists", lists, 1)
    probes = None if probes is None else as_integer("probes", probes, 1)
    sample = as_integer("sample", sample, 1)
    check_library(features.device.type)
    rows = features.float().contiguous()
    _check_lengths(rows)
    n = len(rows)
    own = torch.arange(n, device=rows.device)
    k = min(k, n)
    if k <= 1:
        return Approximate(own[:, None][:, :k], 1.0)
    lists = min(n, lists or round(_LISTS * math.sqrt(n)))
    index = (_cuvs if rows.is_cuda else _faiss)(rows, lists)
    sampled = _sample(n, sample).to(rows.device)
    exact, _ = similarity_topk(rows[sampled], rows, k - 1, normalize=False, exclude=sampled)
    least = exact[:, -1]  # similarity of the true k-th neighbour

    def search(queries: Tensor, probes: int) -> Tensor:
        return _others(index(rows[queries], k, probes), queries, rows, k)

    if probes is None:
        probes = _FEWEST_PROBES
        while probes < lists and _recall(rows, sampled, search(sampled, probes), least) < _RECALL:
            probes *= 2
    probes = min(lists, probes)
    others = torch.cat([search(queries, probes) for queries in own.split(_QUERIES)])
    recall = _recall(rows, sampled, others[sampled], least)
    return Approximate(torch.cat([own[:, None], others], dim=1), recall)


def _check_lengths(rows: Tensor) -> None:
    """Refuse rows whose squares a library cannot sum: it would end the process."""
    if not rows.shape[1]:
        raise ValueError(
            f"features: got shape {tuple(rows.shape)}, expected (n, D), D of 1 or more"
        )
    lengths = torch.linalg.vector_norm(rows, dim=1)
    bad = (~(lengths <= _LONGEST)).nonzero()[:, 0]
    if len(bad):
        raise ValueError(
            f"features: row {int(bad[0])} has the length {float(lengths[bad[0]]):.4g}, expected "
            "unit-norm rows"
        )


def check_library(device: str) -> None:
    """Refuse an approximate search if the library for the device type is not installed.

    Raises:
        ValueError: One line that says what to install.
    """
    if device == "cuda" and importlib.util.find_spec("cuvs") is None:
        raise ValueError(
            "`cluster.neighbours` ivf: an approximate search on a GPU needs cuVS; "
            "pip install cuvs-cu12 (or cuvs-cu13), or search exactly"
        )
    if device != "cuda" and importlib.util.find_spec("faiss") is None:
        raise ValueError(
            "`cluster.neighbours` ivf: an approximate search needs FAISS; "
            "pip install 'fastreid_al[ivf]', or search exactly"
        )


#: search(queries, k, probes) of an index: similarities and rows (m, k) for queries (m, D),
#: including the query's own row.
Search = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


def _faiss(rows: Tensor, lists: int) -> Search:
    faiss: Any = importlib.import_module("faiss")
    centres = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFFlat(centres, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = _SEED
    index.cp.spherical = True
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = _TRAIN_PER_LIST
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
    fraction = min(1.0, _TRAIN_PER_LIST * lists / len(rows))
    settings = ivf_flat.IndexParams(
        n_lists=lists, metric="inner_product", kmeans_trainset_fraction=fraction
    )
    with torch.cuda.device(rows.device):
        # cuVS has its own stream: wait for the features before it starts.
        torch.cuda.current_stream().synchronize()
        index = ivf_flat.build(settings, rows)

    def search(queries: Tensor, k: int, probes: int) -> tuple[Tensor, Tensor]:
        with torch.cuda.device(rows.device):
            torch.cuda.current_stream().synchronize()
            found = ivf_flat.search(ivf_flat.SearchParams(n_probes=probes), index, queries, k)
            similarity, neighbours = (torch.as_tensor(x, device=rows.device).clone() for x in found)
            torch.cuda.synchronize()
        return similarity, neighbours.to(torch.int64)

    return search


def _others(hits: tuple[Tensor, Tensor], queries: Tensor, rows: Tensor, k: int) -> Tensor:
    """The k - 1 others of each query, by descending similarity, ties to the lowest index.

    Queries for which the index found fewer are searched exactly.
    """
    similarity, found = hits  # (m, k)
    none = (found < 0) | (found >= len(rows)) | (found == queries[:, None])
    found, order = found.masked_fill(none, len(rows)).sort(dim=1, stable=True)
    similarity = similarity.masked_fill(none, -torch.inf).gather(1, order)
    found = found.gather(1, similarity.argsort(dim=1, descending=True, stable=True))[:, : k - 1]
    short = (found == len(rows)).any(1).nonzero()[:, 0]
    if len(short):
        query = queries[short]
        exact = similarity_topk(rows[query], rows, k - 1, normalize=False, exclude=query)
        found[short] = exact[1]
    return found


def _sample(n: int, sample: int) -> Tensor:
    return torch.from_numpy(np.sort(np.random.default_rng(_SEED).permutation(n)[:sample]))


def _recall(rows: Tensor, queries: Tensor, found: Tensor, least: Tensor) -> float:
    """Fraction of the found neighbours that are at least as similar as the last true one.

    By similarity, so that any of several tied neighbours counts.
    """
    hits = 0
    for q, f, similarity in zip(queries.split(16), found.split(16), least.split(16), strict=True):
        hits += int(((rows[q][:, None] * rows[f]).sum(-1) >= similarity[:, None] - _ROUNDING).sum())
    return hits / found.numel()


@contextlib.contextmanager
def _threads_of_torch(faiss: Any) -> Iterator[None]:
    """Let FAISS use as many threads as PyTorch."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
