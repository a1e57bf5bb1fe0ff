"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), by blocks of queries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from reid_kernels.topk import MAX_K
from torch import Tensor

from ..arguments import as_integer, as_number
from ..clustering.csr import ranges
from ..clustering.jaccard_torch import SparseWeights, averaged_weights, by_column, distances
from ..clustering.neighbours import nearest_neighbours
from ..distributed.world import SINGLE_PROCESS, World
from .ranking import Matches, Ranking, block_rows, checked, score_blocks, similarities

#: Overlaps that exist at a time, in elements of 8 bytes: 32 MiB on a CPU, 128 MiB on a GPU.
_BLOCK = 2**22
_BLOCK_GPU = 2**24
#: How far the norm of a row may be from 1: half floats and quantised features are a little off.
_UNIT_TOLERANCE = 1e-2


def rerank_gallery(
    query_features: Tensor,
    query_ids: Tensor,
    query_cameras: Tensor,
    gallery_features: Tensor,
    gallery_ids: Tensor,
    gallery_cameras: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    original: float = 0.3,
    length: int = 50,
    world: World = SINGLE_PROCESS,
) -> Ranking:
    """Rank the gallery for each query by d* = (1 - lambda) d_J + lambda d (eq. 12), and score it.

    d is the cosine distance 1 - s, half the squared Euclidean distance of unit-norm rows. d_J is
    the Jaccard distance (eq. 10) of weights over queries and gallery together, computed by the
    clustering package. R(i, k1) are the rows j such that i and j are among each other's k1 nearest,
    and i itself. R*(i) adds R(q, k1 / 2) of each q in R(i, k1) of which more than two thirds lie in
    R(i, k1). The weights of i are exp(-|x_i - x_j|^2) over j in R*(i), divided by their sum; then
    they are averaged over i and its k2 - 1 nearest. Pairs whose weights share no column have d_J =
    1.

    Neighbours, sets and means are those of the authors' code. The distances differ: theirs are
    squared and divided by the greatest of their column, in the exponent and in d, which needs all
    (q + g)^2 of them; here neither is divided. On planted sets mAP is lower than theirs by 0 to 2
    percentage points; both gain 1 to 25. Weights are in fixed point, in units of 2^-31 (2^-52 for
    float64). The rankings are scored as by `rank_gallery`.

    Args:
        query_features: (q, D) float32 or float64, rows of any length but 0, on any device; on
            several ranks this rank's rows.
        query_ids: (q,) int64, of all queries on each rank, on any device, as the three below.
        query_cameras: (q,) int64.
        gallery_features: (g, D), of the same dtype and device; on several ranks this rank's rows.
        gallery_ids: (g,) int64. Junk (-1) takes part as a neighbour, and is dropped from the
            rankings.
        gallery_cameras: (g,) int64.
        k1: Neighbours of a row, not including itself.
        k2: Rows of a mean, including the row itself.
        original: lambda, the weight of the original distance.
        length: Length of the CMC curve; the size of the gallery if that is smaller.
        world: The ranks of the run. Each rank holds the features of all ranks and does the whole
            work.

    Returns:
        The scores.

    Memory:
        In addition to the features, a copy of them (769 MB for MSMT17's 93,820 rows at D = 2,048),
        about 3 kB a row (280 MB; 3 GB at 1e6 rows) and a few blocks of some queries by q + g, 32
        MiB each on a CPU and 128 MiB on a GPU. Nothing is q x g.

    Raises:
        ValueError: As `rank_gallery`; the features are not both float32 or both float64 or have a
            row of zeros, k1 or k2 is below 1, k1 is above 1,024, or `original` is outside [0, 1].
    """
    k1 = as_integer("k1", k1, 1, MAX_K)
    k2 = as_integer("k2", k2, 1)
    original = as_number("original", original, 0, 1)
    length = as_integer("length", length, 0)
    sides = (query_features, query_ids, query_cameras, gallery_features, gallery_ids)
    query, gallery = checked(*sides, gallery_cameras, world)
    matches = Matches(query, gallery)
    query_features = world.all_gather_rows(query.features)
    gallery_features = world.all_gather_rows(gallery.features)
    features = torch.cat([query_features, gallery_features])  # (q + g, D)
    _check_features(features, query_features.dtype, gallery_features.dtype)
    rows = block_rows(matches, _BLOCK if features.is_cpu else _BLOCK_GPU)
    blocks = similarities(query_features, gallery_features, matches, rows)
    if matches.queries:
        neighbours = nearest_neighbours(features, k1 + 1)
        width = neighbours.shape[1]
        half = min(round(k1 / 2) + 1, width)
        weights = averaged_weights(features, neighbours, half, min(k2, width))
        del features, neighbours
        blocks = _final_distances(blocks, weights, matches.queries, original)
    return score_blocks(blocks, matches, rows, query_features.device, length, SINGLE_PROCESS)


def _check_features(features: Tensor, query_dtype: torch.dtype, gallery_dtype: torch.dtype) -> None:
    if query_dtype != gallery_dtype or features.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"features: got {query_dtype} and {gallery_dtype}, "
            "expected float32 or float64, both alike"
        )
    norms = torch.linalg.vector_norm(features, dim=1)
    if len(features) and float((norms - 1).abs().max()) > _UNIT_TOLERANCE:
        raise ValueError(
            f"features: got rows of lengths {float(norms.min()):.4g} to {float(norms.max()):.4g}, "
            "expected rows that are not zero"
        )


def _final_distances(
    blocks: Iterator[tuple[Tensor, Tensor]],
    weights: SparseWeights,
    queries: int,
    original: float,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Replace the similarities of the blocks by -d*."""
    n = len(weights.indptr) - 1
    columns, _ = by_column(weights, n)
    longest = int(columns.indptr.diff().max())
    for block, similarity in blocks:
        rows = block.to(similarity.device)
        overlap = _overlaps(weights, columns, rows, longest)[:, queries:]
        jaccard = distances(overlap, similarity.dtype)
        # -d* = lambda (s - 1) - (1 - lambda) d_J, in place.
        yield block, similarity.sub_(1).mul_(original).sub_(jaccard, alpha=1 - original)


def _overlaps(weights: SparseWeights, columns: SparseWeights, rows: Tensor, longest: int) -> Tensor:
    """Overlaps of some rows with all rows: sums of the smaller weights of shared columns.

    Args:
        weights: Weights by row, n rows.
        columns: The same weights by column.
        rows: (m,) int64.
        longest: Entries of the longest column.

    Returns:
        (m, n) int64, in fixed point.
    """
    n = len(weights.indptr) - 1
    sums = torch.zeros(len(rows) * n, dtype=torch.int64, device=rows.device)
    count = weights.indptr[rows + 1] - weights.indptr[rows]
    entries = ranges(weights.indptr[rows], count)
    row = torch.arange(len(rows), device=rows.device)
    row_start = row.repeat_interleave(count, output_size=len(entries)) * n
    step = max(1, (_BLOCK if rows.is_cpu else _BLOCK_GPU) // longest)
    # Entry (i, t) overlaps with every entry (j, t) of column t.
    for entry, start in zip(entries.split(step), row_start.split(step), strict=True):
        column = weights.columns[entry]
        overlapping = columns.indptr[column + 1] - columns.indptr[column]
        partner = ranges(columns.indptr[column], overlapping)
        pairs = len(partner)
        smaller = weights.weights[entry].repeat_interleave(overlapping, output_size=pairs)
        smaller = torch.minimum(smaller, columns.weights[partner])
        key = start.repeat_interleave(overlapping, output_size=pairs) + columns.columns[partner]
        sums.scatter_add_(0, key, smaller)
    return sums.view(len(rows), n)
