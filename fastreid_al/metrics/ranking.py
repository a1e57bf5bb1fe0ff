"""Retrieval quality: CMC, mAP and mINP under the single-gallery-shot protocol of Market-1501."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from reid_kernels.numerics import full_precision
from torch import Tensor

from ..arguments import as_ids, as_integer, as_tensor, as_world
from ..clustering.csr import ranges
from ..distributed.world import SINGLE_PROCESS, World

#: How far the norm of a row may be from 1 before it is divided by it: half floats are a little off.
_UNIT_TOLERANCE = 1e-3
#: Similarities that exist at a time, in elements: 32 MiB of float32 on a CPU, 512 MiB on a GPU.
_BLOCK = 2**23
_BLOCK_GPU = 2**27
#: Gallery rows of one product.
_TILE = 2**13
#: Similarities that are counted at a time; on a CPU they fit in its cache.
_COUNTED = 2**17
_COUNTED_GPU = 2**23
#: Up to this many matches per query, each is compared with every similarity. More are found by
#: binary search, whose cost grows with the logarithm of their number.
_FEW = 128


class QueryScores(NamedTuple):
    """Scores of each query, in the order of the queries; on the CPU.

    40 bytes a query: 0.5 MB for MSMT17's 11,659, 40 MB at 1e6.

    Args:
        average_precision: (q,) float64, 0 for a query without a match.
        inverse_penalty: (q,) float64, inverse negative penalty, 0 for a query without a match.
        first: (q,) int64, rank of the first match, 0 for a query without a match.
        matches: (q,) int64, matches that are ranked.
        same_camera: (q,) int64, gallery images of the query's identity that are ignored because
            they are of its camera.
        junk: Gallery images that are ignored for every query, because their identity is -1.
    """

    average_precision: Tensor
    inverse_penalty: Tensor
    first: Tensor
    matches: Tensor
    same_camera: Tensor
    junk: int

    @property
    def ranked(self) -> Tensor:
        """(q,) bool, whether a query has a match and so a score."""
        return self.first > 0


class Ranking(NamedTuple):
    """Scores in [0, 1], averaged over the queries that have a match.

    Args:
        mAP: Mean average precision.
        mINP: Mean inverse negative penalty: matches divided by the rank of the last one (Ye et al.,
            TPAMI 2021).
        cmc: (length,) float64, fraction of queries whose first match is at this rank or before.
        queries: Queries that were ranked.
        skipped: Queries without a match left in the gallery.
        of_queries: The scores that the means are of.
    """

    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    cmc: Tensor
    queries: int
    skipped: int
    of_queries: QueryScores

    def rank(self, k: int) -> float:
        """Rank-k accuracy; k is 1 or more."""
        k = as_integer("k", k, 1)
        return float(self.cmc[min(k, len(self.cmc)) - 1]) if len(self.cmc) else 0.0


class Side(NamedTuple):
    """The queries or the gallery.

    Args:
        features: (own rows, D) float; on several ranks this rank's rows.
        identities: (m,) int64, of all rows, on any device.
        cameras: (m,) int64, of all rows, on any device.
    """

    features: Tensor
    identities: Tensor
    cameras: Tensor


def rank_gallery(
    query_features: Tensor,
    query_ids: Tensor,
    query_cameras: Tensor,
    gallery_features: Tensor,
    gallery_ids: Tensor,
    gallery_cameras: Tensor,
    *,
    length: int = 50,
    world: World = SINGLE_PROCESS,
) -> Ranking:
    """Rank the gallery for each query by cosine similarity, and score the rankings.

    Rows whose length is within 1e-3 of 1 are taken as they are; others are divided by their length.
    A row of zeros has the similarity 0 to all others.

    For each query, gallery images of the same identity and camera are dropped, as is junk (identity
    -1). An unknown camera (-1) equals no other. Average precision is the mean of the precision at
    each match. Ties are broken by the lowest gallery index. Nothing is sorted: the rank of a match
    is the number of images before it, by counting.

    Products have at least float32 precision and the same shape for any number of ranks. On several
    ranks the queries are broadcast; each rank counts among its own gallery rows, and the counts are
    all-reduced. The result is the same on all ranks and in a single process.

    Args:
        query_features: (q, D) float, rows of any length, on any device; on several ranks this
            rank's rows.
        query_ids: (q,) int64, -1 for junk, of all queries on each rank, on any device, as the three
            below.
        query_cameras: (q,) int64, -1 where unknown.
        gallery_features: (g, D) float, rows of any length, on the device of the queries; on several
            ranks this rank's rows.
        gallery_ids: (g,) int64.
        gallery_cameras: (g,) int64.
        length: Length of the CMC curve; the size of the gallery if that is smaller.
        world: The ranks of the run.

    Returns:
        The scores; all 0 if no query has a match.

    Memory:
        In addition to the features, a block of similarities, 32 MiB on a CPU and 512 MiB on a GPU,
        and what is counted of it at a time; on several ranks also one rank's queries. MSMT17's
        11,659 x 82,161 takes 50 MB on a CPU (measured, D = 256) and about 0.7 GB on a GPU
        (computed); all similarities would be 3.8 GB.

    Time:
        Each similarity is compared with each match of its query, up to 128 of them. About 30
        matches a query, as re-id sets have, take a fraction of the time of the products. With more
        than about 70, sorting would be faster on a CPU.

    Raises:
        ValueError: Lengths, widths or dtypes disagree, or features are not finite. If it is so on
            one rank, all ranks raise.
    """
    length = as_integer("length", length, 0)
    sides = (query_features, query_ids, query_cameras, gallery_features, gallery_ids)
    query, gallery = checked(*sides, gallery_cameras, world)
    matches = Matches(query, gallery)
    device = query.features.device
    rows = block_rows(matches, _BLOCK if device.type == "cpu" else _BLOCK_GPU)
    blocks = similarities(query.features, gallery.features, matches, rows, world)
    return score_blocks(blocks, matches, rows, device, length, world)


class Matches:
    """Which gallery images match each query, and which are dropped for it; on the CPU.

    Args:
        query: The queries, of which identities and cameras are used.
        gallery: The gallery, of which identities and cameras are used.
    """

    def __init__(self, query: Side, gallery: Side) -> None:
        query_ids = query.identities.cpu()
        gallery_ids = gallery.identities.cpu()
        self._query_cameras = query.cameras.cpu()
        self._gallery_cameras = gallery.cameras.cpu()
        # Gallery images of one identity are consecutive in `_order`.
        ascending, self._order = gallery_ids.sort(stable=True)
        self._first = torch.searchsorted(ascending, query_ids)
        end = torch.searchsorted(ascending, query_ids, right=True)
        self._same = torch.where(query_ids < 0, 0, end - self._first)  # (q,)
        self.queries = len(query_ids)
        self.gallery = len(gallery_ids)
        #: The most gallery images of the identity of a query.
        self.most = int(self._same.max()) if self.queries else 0
        self.junk = (gallery_ids < 0).nonzero()[:, 0]

    def blocks(self, queries: slice, rows: int, every: bool = False) -> tuple[Tensor, ...]:
        """Batches of the queries in a range that have a match, sorted by falling number of matches.

        Args:
            queries: The range.
            rows: The most queries of a batch.
            every: Whether queries without a match are in batches too, the last ones.

        Returns:
            Queries (m,) int64 of each batch.
        """
        same = self._same[queries]
        count = len(same) if every else int((same > 0).sum())
        if not count:
            return ()
        order = same.argsort(descending=True, stable=True)[:count]
        return (order + queries.start).split(rows)

    def pairs(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of a query and a gallery image of the same identity.

        Args:
            queries: (m,) int64.

        Returns:
            Index of the query in `queries`, ascending; gallery index; and whether the gallery image
            is dropped, because its camera is that of the query. (pairs,) each.
        """
        counts = self._same[queries]
        row = torch.arange(len(queries)).repeat_interleave(counts)
        column = self._order[ranges(self._first[queries], counts)]
        camera = self._query_cameras[queries][row]
        return row, column, (camera >= 0) & (camera == self._gallery_cameras[column])


def checked(
    query_features: Tensor,
    query_ids: Tensor,
    query_cameras: Tensor,
    gallery_features: Tensor,
    gallery_ids: Tensor,
    gallery_cameras: Tensor,
    world: World,
) -> tuple[Side, Side]:
    """Check both sides on all ranks, and return them with detached unit-norm features.

    Raises:
        ValueError: On every rank, if the arguments of one rank have a problem.
    """
    as_world(world)
    query, gallery = world.raise_together(
        lambda: (
            _side("query", query_features, query_ids, query_cameras),
            _side("gallery", gallery_features, gallery_ids, gallery_cameras),
        )
    )
    sides = (("query", query), ("gallery", gallery))
    problems = [problem for name, side in sides for problem in _problems(name, side, world)]
    own_widths = [
        side.features.shape[1]
        for _, side in sides
        if side.features.ndim == 2 and len(side.features)
    ]
    of_ranks = world.all_gather_objects((problems, own_widths))
    for problems_of_rank, _ in of_ranks:
        if problems_of_rank:
            raise ValueError(problems_of_rank[0])
    widths = [width for _, widths_of_rank in of_ranks for width in widths_of_rank]
    width = max(widths, default=0)
    if any(w != width for w in widths):
        raise ValueError(
            f"query_features and gallery_features: got widths {widths}, expected one width"
        )
    return _normalised(query, width), _normalised(gallery, width)


def _side(name: str, features: Tensor, identities: Tensor, cameras: Tensor) -> Side:
    """The queries or the gallery as tensors of the right ranks and dtypes."""
    features = as_tensor(f"{name}_features", features, 2, "(m, D)").detach()
    identities = as_ids(f"{name}_ids", identities, low=-1, per="image")
    cameras = as_ids(f"{name}_cameras", cameras, len(identities), low=-1, per=f"of {name}_ids")
    return Side(features, identities, cameras)


def _normalised(side: Side, width: int) -> Side:
    """With rows of unit norm; a rank without rows may not know their width."""
    features = side.features
    if not len(features):
        return side._replace(features=features.new_zeros(0, width))
    accumulated = torch.promote_types(features.dtype, torch.float32)
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=accumulated)
    other = (length - 1).abs() > _UNIT_TOLERANCE
    if not bool(other.any()):
        return side
    # Divided by the greatest value first, so that no square leaves the range of the dtype.
    greatest = features.abs().amax(1, keepdim=True).to(accumulated)
    scaled = features / greatest.clamp(min=torch.finfo(accumulated).tiny)
    unit = torch.nn.functional.normalize(scaled, dim=1)
    return side._replace(features=torch.where(other, unit.to(features.dtype), features))


def _problems(name: str, side: Side, world: World) -> Iterator[str]:
    features = side.features
    own = world.local_slice(len(side.identities))
    rows = own.stop - own.start
    if len(features) != rows or not features.is_floating_point():
        yield (
            f"{name}_features: got shape {tuple(features.shape)}, {features.dtype}, expected "
            f"({rows}, D), float, for {len(side.identities)} ids"
        )
        return
    if not features.shape[1]:
        if rows:
            shape = tuple(features.shape)
            yield f"{name}_features: got shape {shape}, expected one column or more"
        return
    greatest = torch.linalg.vector_norm(features, torch.inf, dim=1)
    bad = int((~torch.isfinite(greatest)).sum())
    if bad:
        yield f"{name}_features: {bad} of {len(features)} rows are not finite"


def block_rows(matches: Matches, block: int) -> int:
    """Queries of a block with at most `block` similarities; the same on all ranks."""
    return max(1, min(matches.queries, block // max(1, matches.gallery)))


def similarities(
    query_features: Tensor,
    gallery_features: Tensor,
    matches: Matches,
    rows: int,
    world: World = SINGLE_PROCESS,
    every: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield queries and their similarities to this rank's gallery rows, block by block.

    All products have one shape, because the last bits of a product may depend on its shape: short
    blocks are padded with rows of zeros.

    Args:
        query_features: (own queries, D).
        gallery_features: (own gallery, D).
        matches: Which queries have a match.
        rows: The most queries of a block.
        world: The ranks.
        every: Whether queries without a match are yielded too.

    Yields:
        Queries (m,) int64, on the CPU, and similarities (m, own gallery), in a buffer that the next
        block reuses and that the caller may change.
    """
    dtype = torch.promote_types(query_features.dtype, gallery_features.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    own = len(gallery_features)
    tile = min(_TILE, matches.gallery)
    if 0 < own < tile:
        gallery_features = torch.nn.functional.pad(gallery_features, (0, 0, 0, tile - own))
    padded = len(gallery_features)
    out = query_features.new_empty((rows, padded), dtype=dtype)
    for where, shard in world.broadcast_each(query_features, matches.queries):
        for queries in matches.blocks(where, rows, every):
            block = out.new_zeros(rows, shard.shape[1])  # (rows, D)
            block[: len(queries)] = shard[(queries - where.start).to(shard.device)]
            with full_precision(block):
                for start in range(0, own, tile):
                    # The last tile begins earlier, so that it has the same shape.
                    now = slice(min(start, padded - tile), min(start + tile, padded))
                    torch.mm(block, gallery_features[now].to(dtype).T, out=out[:, now])
            yield queries, out[: len(queries), :own]


def score_blocks(
    blocks: Iterable[tuple[Tensor, Tensor]],
    matches: Matches,
    rows: int,
    device: torch.device,
    length: int,
    world: World,
) -> Ranking:
    """Score rankings from blocks of scores.

    Args:
        blocks: Queries (m,) int64 on the CPU, of all ranks and in the same order on each, and
            scores of this rank's gallery rows for them (m, own gallery), by which they are ranked,
            greatest first; changed.
        matches: Which gallery images match and which are dropped.
        rows: The most queries of a block.
        device: The device of the scores.
        length: Length of the CMC curve.
        world: The ranks of the run.
    """
    own = world.local_slice(matches.gallery)
    found = torch.zeros(3, matches.queries, dtype=torch.float64, device=device)
    counts = torch.zeros(2, matches.queries, dtype=torch.int64)
    for queries, scores in blocks:
        row, column, dropped = matches.pairs(queries)
        leave_out(scores, matches, (row[dropped], column[dropped]), own)
        kept = row[~dropped]
        counts[0, queries] = kept.bincount(minlength=len(queries))
        counts[1, queries] = row[dropped].bincount(minlength=len(queries))
        if len(kept):
            positions = _positions(scores, kept, column[~dropped], own, world)
            found[:, queries.to(device)] = _query_scores(positions, rows, matches.most)
    average_precision, inverse_penalty, first = found
    length = min(length, matches.gallery)
    first = first.long()
    reached = torch.bincount(first.clamp(max=length + 1), minlength=length + 2)[1 : length + 1]
    ranked = int((first > 0).sum())
    return Ranking(
        mAP=float(average_precision.sum()) / max(ranked, 1),
        mINP=float(inverse_penalty.sum()) / max(ranked, 1),
        cmc=reached.cumsum(0).double().cpu() / max(ranked, 1),
        queries=ranked,
        skipped=matches.queries - ranked,
        of_queries=QueryScores(
            average_precision.cpu(),
            inverse_penalty.cpu(),
            first.cpu(),
            matches=counts[0],
            same_camera=counts[1],
            junk=len(matches.junk),
        ),
    )


def leave_out(scores: Tensor, matches: Matches, dropped: tuple[Tensor, Tensor], own: slice) -> None:
    """Give ignored gallery images the score -inf, in place, so that they rank after every match.

    Args:
        scores: (m, own gallery).
        matches: Knows the junk.
        dropped: Row in `scores` and gallery index of images of the query's identity and camera.
        own: The gallery rows of this rank.
    """
    row, column = dropped
    here = (column >= own.start) & (column < own.stop)
    junk = matches.junk[(matches.junk >= own.start) & (matches.junk < own.stop)]
    scores.index_fill_(1, (junk - own.start).to(scores.device), -torch.inf)
    scores[row[here].to(scores.device), (column[here] - own.start).to(scores.device)] = -torch.inf


def _query_scores(positions: Tensor, rows: int, most: int) -> Tensor:
    """Average precision, inverse negative penalty and rank of the first match of each query.

    Sums are over rows of one length, so that their order is always the same.

    Args:
        positions: (m, at most `most`) int64, ranks of each query's matches, padded with 0.
        rows: Rows of the table of sums, at least m.
        most: Columns of the table.

    Returns:
        (3, m) float64, 0 for a query without a match.
    """
    m = len(positions)
    table = torch.full((rows, most), torch.inf, dtype=torch.float64, device=positions.device)
    table[:m, : positions.shape[1]] = positions.double().masked_fill_(positions == 0, torch.inf)
    table = table.sort(1).values  # padding, which is infinite, comes last
    total = (positions > 0).sum(1).double()
    # The i-th match at rank r has precision i / r; padding adds zeros.
    precision = (torch.arange(1, most + 1, device=positions.device) / table).sum(1)[:m]
    first = torch.where(total > 0, table[:m, 0], 0)
    penalty = total / positions.amax(1).clamp(min=1)
    return torch.stack([precision / total.clamp(min=1), penalty, first])


def _positions(scores: Tensor, row: Tensor, column: Tensor, own: slice, world: World) -> Tensor:
    """The 1-based ranks of each query's matches: (m, most matches) int64, padded with 0.

    Args:
        scores: (m, own gallery), this rank's; -inf is ranked after every match.
        row: (matches,) int64, ascending, on the CPU.
        column: (matches,) int64, the gallery indices of the matches, on the CPU.
        own: The gallery rows of this rank.
        world: The ranks of the run.
    """
    total = torch.bincount(row, minlength=len(scores))
    index = torch.arange(len(row)) - (total.cumsum(0) - total)[row]  # among the row's matches
    columns = torch.full((len(scores), int(total.max())), -1)
    columns[row, index] = column
    columns = columns.to(scores.device)
    real = columns >= 0
    local = columns - own.start  # outside [0, own gallery) if the match is on another rank
    value = scores.new_zeros(columns.shape)
    if scores.shape[1]:
        here = (local >= 0) & (local < scores.shape[1])
        value = torch.where(here, scores.gather(1, local.clamp(0, scores.shape[1] - 1)), value)
    # One rank has the score of a match, the others zero.
    value = world.all_reduce_sum(value).masked_fill_(~real, torch.inf)
    order = column.argsort()
    pairs = torch.stack([row, index, column - own.start])[:, order]
    before = _count_before(scores, value, local, pairs)
    return (world.all_reduce_sum(before) + 1).masked_fill_(~real, 0)


def _count_before(scores: Tensor, value: Tensor, local: Tensor, pairs: Tensor) -> Tensor:
    """Count the scores before each match: greater ones, and equal ones with a lower column.

    Instead of comparing columns for every score, scores are counted in blocks of columns. In a
    block left of the match, equal scores count too: the threshold is lowered to the next smaller
    float. Only in the block of the match itself are equal scores compared by column.

    Args:
        scores: (m, own gallery).
        value: (m, most matches), the scores of the matches, padded with infinity.
        local: (m, most matches), their columns, which may lie outside this rank's.
        pairs: (3, matches) row, index among the row's matches, and column; by ascending column, on
            the CPU.

    Returns:
        (m, most matches) int64.
    """
    block = _COUNTED if scores.is_cpu else _COUNTED_GPU
    width = max(256, block // len(scores))
    starts = range(0, scores.shape[1], width)
    bounds = torch.tensor([*starts, scores.shape[1]])
    cuts = torch.searchsorted(pairs[2].contiguous(), bounds).tolist()
    pairs = pairs.to(scores.device)
    # Sort matches by score, equal ones by falling column: the order stays valid when the thresholds
    # of those right of a block are lowered.
    ascending, order = value.flip(1).sort(dim=1, stable=True)
    local = local.flip(1).gather(1, order)
    lower = torch.nextafter(ascending, value.new_tensor(-torch.inf))
    above = torch.zeros_like(local)
    tied = torch.zeros_like(local)
    for start, first, last in zip(starts, cuts[:-1], cuts[1:], strict=True):
        columns = scores[:, start : start + width]
        stop = start + columns.shape[1]
        above += _count_above(columns, torch.where(local >= stop, lower, ascending))
        index = torch.arange(start, stop, device=scores.device)
        for part in pairs[:, first:last].split(max(1, block // width), 1):
            row, match, column = part.unbind()
            equal = columns[row] == value[row, match][:, None]  # (pairs, width)
            tied[row, match] = (equal & (index < column[:, None])).sum(1)
    return torch.empty_like(above).scatter_(1, order, above).flip(1) + tied


def _count_above(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Count the scores of each row that are greater than each of its ascending thresholds.

    Args:
        scores: (m, columns).
        thresholds: (m, t), ascending in each row.

    Returns:
        (m, t) int64.
    """
    count = thresholds.shape[1]
    if count <= _FEW:
        greater = torch.empty_like(scores)
        out = scores.new_empty(count, len(scores))
        for threshold, number in zip(thresholds.T, out, strict=True):
            # Sums of ones in float are exact up to 2^24 columns, and need no copy in int64.
            torch.gt(scores, threshold[:, None], out=greater)
            torch.sum(greater, 1, out=number)
        return out.T.long()
    # Count the scores between two thresholds, then sum from the top.
    passed = torch.searchsorted(thresholds, scores.contiguous())
    number = torch.zeros(len(scores), count + 1, dtype=torch.int64, device=scores.device)
    number.scatter_add_(1, passed, torch.ones_like(passed))
    return number[:, 1:].flip(1).cumsum(1).flip(1)
