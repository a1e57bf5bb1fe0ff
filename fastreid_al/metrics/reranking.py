"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), by blocks of queries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..clustering.csr import ranges
from ..clustering.jaccard_torch import Shares, averaged_weights, by_column, distances
from ..clustering.neighbours import nearest_neighbours
from ..distributed.world import SINGLE_PROCESS, World
from .ranking import Lists, Ranking, block_rows, checked, score_blocks, similarities

#: Overlaps that exist at a time, in elements of 8 bytes: 32 MiB on a CPU, 128 MiB on a GPU.
_BLOCK, _BLOCK_GPU = 2**22, 2**24
#: Rows may be off length one by so much: half floats and grids of features are.
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
    """Rank the gallery for each query by d* = (1 - lambda) d_J + lambda d (eq. 12), and score the lists as `rank_gallery` does.

    d is the cosine distance 1 - s, half the squared Euclidean distance of unit rows. d_J is the Jaccard distance (eq. 10) of
    the weights of the clustering engine over queries and gallery together: R(i, k1) are the rows that i and they have among
    each other's k1 nearest, i itself with them; R*(i) adds R(q, k1 / 2) of each q in it of which more than two thirds lie in
    R(i, k1); the weights of i are exp(-|x_i - x_j|^2) over j in R*(i), divided by their sum; and their mean over i and its
    k2 - 1 nearest takes their place. Pairs that share no support have d_J = 1.

    Neighbours, sets and means are those of the authors' code. The distances differ: theirs are squared and divided by the
    greatest of their column, in the exponent and in d, which takes all (q + g)^2 of them; here neither is divided. On planted
    sets mAP is lower than theirs by 0 to 2 points of a hundred, where both gain 1 to 25. Weights are whole shares of 2^-31,
    2^-52 for float64.

    Args:
        query_features: (q, D) float32 or float64, unit rows; like the others as `rank_gallery` takes them.
        query_ids: (q,) int64.
        query_cameras: (q,) int64.
        gallery_features: (g, D), of the same dtype.
        gallery_ids: (g,) int64. Junk takes part in the neighbours, and is dropped from the lists.
        gallery_cameras: (g,) int64.
        k1: Neighbours of a row, itself not counted.
        k2: Rows of a mean, the row itself counted.
        original: lambda, the share of the original distance.
        length: Length of the CMC curve; the gallery's size when it is smaller.
        world: The ranks of the run. Each holds the features of all of them and does the whole work: this is not shared out.

    Returns:
        The scores.

    Memory:
        Over the features a copy of them (769 MB for MSMT17's 93,820 rows at D = 2,048), some 3 kB a row (280 MB; 3 GB at 1e6
        rows) and a few blocks of q rows by q + g, 32 MiB each on a CPU and 128 MiB on a GPU. Nothing is q x g.

    Raises:
        ValueError: As `rank_gallery`; features that are not float32 or float64 both or far from unit length, k1 or k2 below 1,
            k1 above 1,024, or `original` outside [0, 1].
    """
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1 and k2: got {k1} and {k2}, expected at least 1")
    if not 0 <= original <= 1:
        raise ValueError(f"original: got {original}, expected a share in [0, 1]")
    lists = Lists(query_ids, query_cameras, gallery_ids, gallery_cameras)
    sides = checked(query_features, gallery_features, lists, world)
    query_features, gallery_features = (world.all_gather_rows(side) for side in sides)
    features = torch.cat([query_features, gallery_features])
    if query_features.dtype != gallery_features.dtype or features.dtype not in (
        torch.float32,
        torch.float64,
    ):
        raise ValueError(
            f"features: got {query_features.dtype} and {gallery_features.dtype}, expected float32 or float64, both alike"
        )
    lengths = torch.linalg.vector_norm(features, dim=1)
    if len(features) and float((lengths - 1).abs().max()) > _UNIT_TOLERANCE:
        raise ValueError(
            f"features: got rows of lengths {float(lengths.min()):.4g} to {float(lengths.max()):.4g}, expected unit rows"
        )
    rows = block_rows(lists, _BLOCK if features.is_cpu else _BLOCK_GPU)
    blocks = similarities(query_features, gallery_features, lists, rows)
    if lists.queries:
        neighbours = nearest_neighbours(features, k1 + 1)
        width = neighbours.shape[1]
        weights = averaged_weights(
            features, neighbours, min(round(k1 / 2) + 1, width), min(k2, width)
        )
        del features, neighbours
        blocks = _final(blocks, weights, lists.queries, original)
    return score_blocks(blocks, lists, rows, query_features.device, length, SINGLE_PROCESS)


def _final(
    blocks: Iterator[tuple[Tensor, Tensor]], weights: Shares, queries: int, original: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """The blocks with -d* in place of similarities."""
    n = len(weights.indptr) - 1
    columns, _ = by_column(weights, n)
    longest = int(columns.indptr.diff().max())
    for some, similarity in blocks:
        overlap = _overlaps(weights, columns, some.to(similarity.device), longest)[:, queries:]
        apart = distances(overlap, similarity.dtype)
        yield some, similarity.sub_(1).mul_(original).sub_(apart, alpha=1 - original)


def _overlaps(weights: Shares, columns: Shares, rows: Tensor, longest: int) -> Tensor:
    """Sums of the smaller shares of some rows and all rows: (m, n) int64."""
    n = len(weights.indptr) - 1
    sums = torch.zeros(len(rows) * n, dtype=torch.int64, device=rows.device)
    count = weights.indptr[rows + 1] - weights.indptr[rows]
    entries = ranges(weights.indptr[rows], count)
    place = (
        torch.arange(len(rows), device=rows.device).repeat_interleave(
            count, output_size=len(entries)
        )
        * n
    )
    step = max(1, (_BLOCK if rows.is_cpu else _BLOCK_GPU) // longest)
    # An entry of a row meets all that is in its column.
    for entry, start in zip(entries.split(step), place.split(step), strict=True):
        column = weights.columns[entry]
        met = columns.indptr[column + 1] - columns.indptr[column]
        partner = ranges(columns.indptr[column], met)
        smaller = weights.shares[entry].repeat_interleave(met, output_size=len(partner))
        smaller = torch.minimum(smaller, columns.shares[partner])
        key = start.repeat_interleave(met, output_size=len(partner)) + columns.columns[partner]
        sums.scatter_add_(0, key, smaller)
    return sums.view(len(rows), n)
