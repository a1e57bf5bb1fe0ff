"""Retrieval quality: CMC, mAP and mINP under the single-gallery-shot protocol of Market-1501."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from reid_kernels.numerics import full_precision
from torch import Tensor

from ..clustering.csr import ranges
from ..distributed.world import SINGLE_PROCESS, World

#: Similarities that exist at a time, in elements: 32 MiB of float32 on a CPU, 512 MiB on a GPU.
_BLOCK, _BLOCK_GPU = 2**23, 2**27
#: Gallery rows of one product.
_TILE = 2**13
#: Similarities that are counted at a time: on a CPU they stay in its cache.
_COUNTED, _COUNTED_GPU = 2**17, 2**23
#: Up to so many matches a query each is compared with every similarity; more are searched for, which costs their logarithm.
_FEW = 128


class Ranking(NamedTuple):
    """Shares in [0, 1] over the queries that have a match.

    Args:
        mAP: Mean average precision.
        mINP: Mean inverse negative penalty: true matches over the rank of the last one (Ye et al., TPAMI 2021).
        cmc: (length,) float64, share of queries whose first match stands at that rank or before.
        queries: Queries that were ranked.
        skipped: Queries without a match left in the gallery.
    """

    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    cmc: Tensor
    queries: int
    skipped: int

    def rank(self, k: int) -> float:
        """Rank-k accuracy."""
        return float(self.cmc[min(k, len(self.cmc)) - 1]) if len(self.cmc) else 0.0


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
    """Rank the gallery for each query by dot product, and score the lists.

    For each query the gallery images of the same identity and camera are dropped, as is junk (identity -1); an unknown camera
    (-1) is never the same as another. Average precision is the mean of the precision at each match. Ties are broken by the
    lowest gallery index. No list is sorted: the rank of a match is the number of images before it, counted.

    Products are of the features' own precision, in float32 at least, and of one shape whatever the number of ranks. Among
    ranks the queries pass from one to the next; each counts among its own gallery rows, and the counts are summed: the result
    is the same on all of them, and that of one process.

    Args:
        query_features: (q, D) float, unit rows, on any device; among ranks this one's rows of them.
        query_ids: (q,) int64, all of them on each rank, on any device, as are the three below.
        query_cameras: (q,) int64.
        gallery_features: (g, D) float, unit rows, on the device of the queries; among ranks this one's.
        gallery_ids: (g,) int64.
        gallery_cameras: (g,) int64.
        length: Length of the CMC curve; the gallery's size when it is smaller.
        world: The ranks of the run.

    Returns:
        The scores; all 0 when no query has a match.

    Memory:
        Over the features a block of similarities, 32 MiB on a CPU and 512 MiB on a GPU, and what is counted of it at a time;
        among ranks also one rank's queries. MSMT17's 11,659 x 82,161 takes 50 MB on a CPU (measured, D = 256) and some 0.7 GB
        on a GPU (reckoned), where all similarities are 3.8 GB.

    Time:
        Each similarity is compared with each match of its query, up to 128 of them. Some 30 matches a query, as image sets
        have, take a fraction of the products' time; with more than some 70 sorted rows would be found faster on a CPU.

    Raises:
        ValueError: Lengths, widths or dtypes that do not go together, features that are not finite, on all ranks when on one.
    """
    lists = Lists(query_ids, query_cameras, gallery_ids, gallery_cameras)
    query_features, gallery_features = checked(query_features, gallery_features, lists, world)
    device = query_features.device
    rows = block_rows(lists, _BLOCK if device.type == "cpu" else _BLOCK_GPU)
    blocks = similarities(query_features, gallery_features, lists, rows, world)
    return score_blocks(blocks, lists, rows, device, length, world)


class Lists:
    """Which gallery images match each query and which are dropped for it: what ids and cameras say, on the host.

    Args:
        query_ids: (q,) int64, as `rank_gallery` takes them.
        query_cameras: (q,) int64.
        gallery_ids: (g,) int64.
        gallery_cameras: (g,) int64.
    """

    def __init__(
        self, query_ids: Tensor, query_cameras: Tensor, gallery_ids: Tensor, gallery_cameras: Tensor
    ) -> None:
        for name, ids, cameras in (
            ("query", query_ids, query_cameras),
            ("gallery", gallery_ids, gallery_cameras),
        ):
            if ids.ndim != 1 or ids.shape != cameras.shape:
                raise ValueError(
                    f"{name}: got ids {tuple(ids.shape)} and cameras {tuple(cameras.shape)}, expected (m,) and (m,)"
                )
        query_ids, gallery_ids = query_ids.cpu(), gallery_ids.cpu()
        self._query_cameras, self._gallery_cameras = query_cameras.cpu(), gallery_cameras.cpu()
        ascending, self._order = gallery_ids.sort(stable=True)
        self._first = torch.searchsorted(ascending, query_ids)
        beyond = torch.searchsorted(ascending, query_ids, right=True)
        self._same = torch.where(query_ids < 0, 0, beyond - self._first)
        self.queries, self.gallery = len(query_ids), len(gallery_ids)
        #: Gallery images of an identity, at most.
        self.most = int(self._same.max()) if self.queries else 0
        self.junk = (gallery_ids < 0).nonzero()[:, 0]

    def blocks(self, where: slice, rows: int) -> tuple[Tensor, ...]:
        """Of a range of queries those whose identity is in the gallery, so many at a time; like beside like."""
        same = self._same[where]
        count = int((same > 0).sum())
        return (
            (same.argsort(descending=True, stable=True)[:count] + where.start).split(rows)
            if count
            else ()
        )

    def pairs(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Place of the query in `queries` and gallery index of each pair of one identity, ascending; whether it is dropped."""
        counts = self._same[queries]
        row = torch.arange(len(queries)).repeat_interleave(counts)
        column = self._order[ranges(self._first[queries], counts)]
        camera = self._query_cameras[queries][row]
        return row, column, (camera >= 0) & (camera == self._gallery_cameras[column])


def checked(
    query_features: Tensor, gallery_features: Tensor, lists: Lists, world: World
) -> tuple[Tensor, Tensor]:
    """This rank's features without their gradient, once they are found in order on all ranks."""
    sides = (("query", query_features, lists.queries), ("gallery", gallery_features, lists.gallery))
    wrong = [problem for name, x, n in sides for problem in _problems(name, x, n, world)]
    widths = [x.shape[1] for _, x, _ in sides if x.ndim == 2 and len(x)]
    said = world.all_gather_objects((wrong, widths))
    for problems, _ in said:
        if problems:
            raise ValueError(problems[0])
    width = max((w for _, theirs in said for w in theirs), default=0)
    if any(w != width for _, theirs in said for w in theirs):
        raise ValueError(
            f"query_features and gallery_features: got widths {[w for _, theirs in said for w in theirs]}, expected one width"
        )
    # A rank without rows may not know their width.
    first, second = (x.detach() if len(x) else x.new_zeros(0, width) for _, x, _ in sides)
    return first, second


def _problems(name: str, features: Tensor, n: int, world: World) -> Iterator[str]:
    own = world.local_slice(n)
    if (
        features.ndim != 2
        or len(features) != own.stop - own.start
        or not features.is_floating_point()
    ):
        yield (
            f"{name}: got features {tuple(features.shape)}, {features.dtype}, for {n} ids, "
            f"expected ({own.stop - own.start}, D), float"
        )
        return
    greatest = (
        torch.linalg.vector_norm(features, torch.inf, dim=1)
        if features.shape[1]
        else features.new_zeros(len(features))
    )
    bad = int((~torch.isfinite(greatest)).sum())
    if bad:
        yield f"{name}_features: {bad} of {len(features)} rows are not finite"


def block_rows(lists: Lists, block: int) -> int:
    """Queries of a block with so many similarities; the same on all ranks."""
    return max(1, min(lists.queries, block // max(1, lists.gallery)))


def similarities(
    query_features: Tensor,
    gallery_features: Tensor,
    lists: Lists,
    rows: int,
    world: World = SINGLE_PROCESS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """By blocks: queries (m,) int64, on the host, and their products with this rank's gallery rows (m, own), to be changed.

    All products have one shape, since their last bits may depend on it: rows of zeros fill up what is short.
    """
    dtype = torch.promote_types(
        torch.promote_types(query_features.dtype, gallery_features.dtype), torch.float32
    )
    own, tile = len(gallery_features), min(_TILE, lists.gallery)
    if 0 < own < tile:
        gallery_features = torch.nn.functional.pad(gallery_features, (0, 0, 0, tile - own))
    out = query_features.new_empty((rows, len(gallery_features)), dtype=dtype)
    for where, shard in world.broadcast_each(query_features, lists.queries):
        for queries in lists.blocks(where, rows):
            block = out.new_zeros(rows, shard.shape[1])
            block[: len(queries)] = shard[(queries - where.start).to(shard.device)]
            with full_precision(block):
                for start in range(0, own, tile):
                    now = slice(
                        min(start, len(gallery_features) - tile),
                        min(start + tile, len(gallery_features)),
                    )
                    torch.mm(block, gallery_features[now].to(dtype).T, out=out[:, now])
            yield queries, out[: len(queries), :own]


def score_blocks(
    blocks: Iterable[tuple[Tensor, Tensor]],
    lists: Lists,
    rows: int,
    device: torch.device,
    length: int,
    world: World,
) -> Ranking:
    """Score the lists of queries from blocks of what they are ranked by.

    Args:
        blocks: Queries (m,) int64 on the host, of all ranks and in the same order on each, and how well this rank's gallery
            rows do for them (m, own), greatest first in the list; changed.
        lists: What matches and what is dropped.
        rows: Queries of a block, at most.
        device: Where the blocks are.
        length: Length of the CMC curve.
        world: The ranks of the run.
    """
    own = world.local_slice(lists.gallery)
    junk = (lists.junk[(lists.junk >= own.start) & (lists.junk < own.stop)] - own.start).to(device)
    found = torch.zeros(3, lists.queries, dtype=torch.float64, device=device)
    for queries, scores in blocks:
        row, column, dropped = lists.pairs(queries)
        here = dropped & (column >= own.start) & (column < own.stop)
        nowhere = torch.stack([row[here], column[here] - own.start]).to(device)
        scores.index_fill_(1, junk, -torch.inf)
        scores[nowhere[0], nowhere[1]] = -torch.inf
        row, column = row[~dropped], column[~dropped]
        if len(row):
            placed = _positions(scores, row, column, own, world)
            found[:, queries.to(device)] = _scores(placed, rows, lists.most)
    ap, inp, first = found
    length, number = min(length, lists.gallery), first.long()
    reached = torch.bincount(number.clamp(max=length + 1), minlength=length + 2)[1 : length + 1]
    n = int((number > 0).sum())
    cmc = reached.cumsum(0).double().cpu() / max(n, 1)
    return Ranking(
        float(ap.sum()) / max(n, 1), float(inp.sum()) / max(n, 1), cmc, n, lists.queries - n
    )


def _scores(placed: Tensor, rows: int, most: int) -> Tensor:
    """Average precision, inverse negative penalty and rank of the first match of each query, 0 where there is none: (3, m).

    Sums are of rows of one length, so that they have one order.
    """
    table = torch.full((rows, most), torch.inf, dtype=torch.float64, device=placed.device)
    table[: len(placed), : placed.shape[1]] = placed.double().masked_fill_(placed == 0, torch.inf)
    table = table.sort(1).values
    total = (placed > 0).sum(1).double()
    precision = (torch.arange(1, most + 1, device=placed.device) / table).sum(1)[: len(placed)]
    first = torch.where(total > 0, table[: len(placed), 0], 0)
    return torch.stack([precision / total.clamp(min=1), total / placed.amax(1).clamp(min=1), first])


def _positions(scores: Tensor, row: Tensor, column: Tensor, own: slice, world: World) -> Tensor:
    """The 1-based ranks of each query's matches side by side, 0 past its last one: (m, most matches) int64.

    Args:
        scores: (m, own) of this rank's gallery rows; -inf is never before a match.
        row: (matches,) int64, ascending, on the host.
        column: (matches,) int64, their gallery indices.
        own: Which gallery rows are this rank's.
        world: The ranks of the run.
    """
    total = torch.bincount(row, minlength=len(scores))
    place = torch.arange(len(row)) - (total.cumsum(0) - total)[row]
    columns = torch.full((len(scores), int(total.max())), -1)
    columns[row, place] = column
    # Below 0 or past the last where the match is on another rank.
    columns = columns.to(scores.device)
    local, real = columns - own.start, columns >= 0
    value = scores.new_zeros(columns.shape)
    if scores.shape[1]:
        there = (local >= 0) & (local < scores.shape[1])
        value = torch.where(there, scores.gather(1, local.clamp(0, scores.shape[1] - 1)), value)
    value = world.all_reduce_sum(value).masked_fill_(~real, torch.inf)
    order = column.argsort()
    before = _before(scores, value, local, torch.stack([row, place, column - own.start])[:, order])
    return (world.all_reduce_sum(before) + 1).masked_fill_(~real, 0)


def _before(scores: Tensor, value: Tensor, local: Tensor, pairs: Tensor) -> Tensor:
    """How many of these scores stand before each match: greater ones, and equal ones further left: (m, most) int64.

    Args:
        scores: (m, own).
        value: (m, most), the scores of the matches, infinite where there is none.
        local: (m, most), their columns, which need not be among these.
        pairs: (3, matches) row, place among the row's matches, and column, by ascending column, on the host.
    """
    counted = _COUNTED if scores.is_cpu else _COUNTED_GPU
    width = max(256, counted // len(scores))
    starts = range(0, scores.shape[1], width)
    cuts = torch.searchsorted(
        pairs[2].contiguous(), torch.tensor([*starts, scores.shape[1]])
    ).tolist()
    pairs = pairs.to(scores.device)
    # Ascending, equal ones from the right: so they stay when some of them are lowered.
    ascending, order = value.flip(1).sort(dim=1, stable=True)
    local = local.flip(1).gather(1, order)
    lower = torch.nextafter(ascending, value.new_tensor(-torch.inf))
    above, tied = torch.zeros_like(local), torch.zeros_like(local)
    for start, first, last in zip(starts, cuts[:-1], cuts[1:], strict=True):
        some = scores[:, start : start + width]
        # Left of a match all that is not less stands before it.
        above += _above(some, torch.where(local >= start + some.shape[1], lower, ascending))
        index = torch.arange(start, start + some.shape[1], device=scores.device)
        for row, place, column in (
            part.unbind() for part in pairs[:, first:last].split(max(1, counted // width), 1)
        ):
            equal = (some[row] == value[row, place][:, None]) & (index < column[:, None])
            tied[row, place] = equal.sum(1)
    return torch.empty_like(above).scatter_(1, order, above).flip(1) + tied


def _above(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many scores of its row are greater than each of some ascending thresholds: (m, columns), (m, t) -> (m, t) int64."""
    count = thresholds.shape[1]
    if count <= _FEW:
        greater, out = torch.empty_like(scores), scores.new_empty(count, len(scores))
        for threshold, number in zip(thresholds.T, out, strict=True):
            # Ones and sums of floats: exact up to 2^24 columns, and without a copy in int64.
            torch.sum(torch.gt(scores, threshold[:, None], out=greater), 1, out=number)
        return out.T.long()
    passed = torch.searchsorted(thresholds, scores.contiguous())
    number = torch.zeros(len(scores), count + 1, dtype=torch.int64, device=scores.device)
    number.scatter_add_(1, passed, torch.ones_like(passed))
    return number[:, 1:].flip(1).cumsum(1).flip(1)
