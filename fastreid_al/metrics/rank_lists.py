"""The first gallery images of each query, as lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import as_integer
from ..distributed.world import SINGLE_PROCESS, World
from . import ranking
from .ranking import Matches, Ranking, block_rows, checked, leave_out, score_blocks, similarities


class RankLists(NamedTuple):
    """For each query its most similar gallery images, most similar first; on the CPU.

    The first `top` ranked images are listed, and between them the ignored images that are more
    similar than the last one, `top` of them at most. Lists shorter than the longest end with
    padding. 22 bytes an entry, so that with `top` 50 MSMT17's 11,659 queries take 13 to 26 MB, and
    1e6 queries 1.1 to 2.2 GB.

    Args:
        gallery: (q, w) int64, gallery index; -1 for padding.
        rank: (q, w) int64, rank by which the scores are computed; 0 for ignored images and padding.
        similarity: (q, w) float, cosine similarity; NaN for padding.
        right: (q, w) bool, whether the gallery image has the identity of the query.
        junk: (q, w) bool, whether the gallery image is ignored: its identity is -1, or its identity
            and its camera are those of the query.
    """

    gallery: Tensor
    rank: Tensor
    similarity: Tensor
    right: Tensor
    junk: Tensor


def list_gallery(
    query_features: Tensor,
    query_ids: Tensor,
    query_cameras: Tensor,
    gallery_features: Tensor,
    gallery_ids: Tensor,
    gallery_cameras: Tensor,
    *,
    top: int = 50,
    length: int = 50,
    world: World = SINGLE_PROCESS,
) -> tuple[Ranking, RankLists]:
    """Rank the gallery for each query as `rank_gallery` does, and list its first images.

    Queries without a match have a list too. Ties are broken by the lowest gallery index. The result
    is the same on all ranks and in a single process.

    Args:
        query_features: (q, D) float, rows of any length, on any device; on several ranks this
            rank's rows.
        query_ids: (q,) int64, -1 for junk, of all queries on each rank, on any device, as the three
            below.
        query_cameras: (q,) int64, -1 where unknown.
        gallery_features: (g, D) float, on the device of the queries; on several ranks this rank's
            rows.
        gallery_ids: (g,) int64.
        gallery_cameras: (g,) int64.
        top: Ranks that are listed.
        length: Length of the CMC curve; the size of the gallery if that is smaller.
        world: The ranks of the run.

    Returns:
        The scores, which are those of `rank_gallery`, and the lists.

    Memory:
        That of `rank_gallery`, a copy of its block of similarities, and the lists. Nothing is
        q x g.

    Raises:
        ValueError: As `rank_gallery`, or `top` is below 1.
    """
    top = as_integer("top", top, 1)
    length = as_integer("length", length, 0)
    sides = (query_features, query_ids, query_cameras, gallery_features, gallery_ids)
    query, gallery = checked(*sides, gallery_cameras, world)
    matches = Matches(query, gallery)
    device = query.features.device
    block = ranking._BLOCK if device.type == "cpu" else ranking._BLOCK_GPU
    rows = block_rows(matches, block)
    collector = _Collector(matches, min(top, matches.gallery), world)
    every = matches.gallery > 0
    blocks = similarities(query.features, gallery.features, matches, rows, world, every)
    scores = score_blocks(collector.watch(blocks), matches, rows, device, length, world)
    return scores, collector.lists(query.identities.cpu(), gallery.identities.cpu())


class _Collector:
    """Takes the first gallery images of each query from the blocks that are scored.

    Args:
        matches: Which gallery images are ignored.
        top: Ranks that are listed, the size of the gallery at most.
        world: The ranks of the run.
    """

    def __init__(self, matches: Matches, top: int, world: World) -> None:
        self._matches = matches
        self._top = top
        self._world = world
        self._own = world.local_slice(matches.gallery)
        shape = (matches.queries, 2 * top)
        self._columns = torch.full(shape, -1)
        self._values = torch.full(shape, torch.nan)
        self._junk = torch.zeros(shape, dtype=torch.bool)

    def watch(self, blocks: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the blocks as they are, and take the lists of their queries."""
        for queries, scores in blocks:
            self._take(queries, scores)
            yield queries, scores

    def _take(self, queries: Tensor, scores: Tensor) -> None:
        """Take the lists of some queries (m,) from their similarities (m, own gallery)."""
        row, column, dropped = self._matches.pairs(queries)
        same_camera = row[dropped], column[dropped]
        ignored = self._across_ranks(*self._ignored(scores, same_camera))
        leave_out(scores, self._matches, same_camera, self._own)
        ranked = self._across_ranks(*_largest(scores, self._top, self._own.start))
        values, columns, junk = _merged(ranked, ignored, self._top)
        width = values.shape[1]
        self._values = self._values.to(values.dtype)
        self._values[queries, :width] = values.cpu()
        self._columns[queries, :width] = columns.cpu()
        self._junk[queries, :width] = junk.cpu()

    def _ignored(self, scores: Tensor, same_camera: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """This rank's ignored images that are most similar: values and columns (m, top or less)."""
        row, column = same_camera
        junk = self._matches.junk
        junk = junk[(junk >= self._own.start) & (junk < self._own.stop)]
        here = (column >= self._own.start) & (column < self._own.stop)
        row, column = row[here], column[here]
        counts = row.bincount(minlength=len(scores))
        index = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        columns = torch.full((len(scores), int(counts.max())), -1)
        columns[row, index] = column
        columns = torch.cat([junk.expand(len(scores), -1), columns], 1).to(scores.device)
        if not columns.shape[1]:
            return scores.new_empty(len(scores), 0), columns
        local = (columns - self._own.start).clamp(min=0)
        values = scores.gather(1, local).masked_fill_(columns < 0, -torch.inf)
        return _sorted(values, columns, self._top)

    def _across_ranks(self, values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The largest values (m, top or less) of all ranks, and their columns."""
        if self._world.size == 1:
            return values, columns
        padding = (0, self._top - values.shape[1])
        values = torch.nn.functional.pad(values, padding, value=-torch.inf)
        columns = torch.nn.functional.pad(columns, padding, value=-1)
        gathered = [
            self._world.all_gather(part[None]).transpose(0, 1).flatten(1)
            for part in (values.contiguous(), columns.contiguous())
        ]
        return _sorted(gathered[0], gathered[1], self._top)

    def lists(self, query_ids: Tensor, gallery_ids: Tensor) -> RankLists:
        """The lists of all queries, without columns of padding alone."""
        used = (self._columns >= 0).sum(1)
        width = int(used.max()) if len(used) else 0
        columns = self._columns[:, :width]
        junk = self._junk[:, :width]
        listed = columns >= 0
        ranked = listed & ~junk
        identities = torch.where(listed, gallery_ids[columns.clamp(min=0)], -1)
        return RankLists(
            gallery=columns,
            rank=torch.where(ranked, ranked.cumsum(1), 0),
            similarity=self._values[:, :width],
            right=listed & (identities >= 0) & (identities == query_ids[:, None]),
            junk=junk,
        )


def _largest(scores: Tensor, top: int, start: int) -> tuple[Tensor, Tensor]:
    """The largest scores (m, top or less) and their gallery indices, equal ones by lowest index.

    Args:
        scores: (m, own gallery); -inf for ignored images.
        top: Scores that are taken.
        start: First gallery index of this rank.
    """
    top = min(top, scores.shape[1])
    if not top:
        return scores[:, :0], torch.empty(len(scores), 0, dtype=torch.int64, device=scores.device)
    values, columns = scores.topk(top)
    # topk takes any of several equal scores; where it left some out, all are sorted.
    last = values[:, -1:]
    tied = (scores == last).sum(1) > (values == last).sum(1)
    tied &= last[:, 0] > -torch.inf
    if tied.any():
        whole = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = whole.values[:, :top], whole.indices[:, :top]
    columns = torch.where(values > -torch.inf, columns + start, -1)
    return _sorted(values, columns, top)


def _sorted(values: Tensor, columns: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The largest `top` values of each row, equal ones by lowest column, and their columns."""
    by_column = columns.argsort(1)
    values = values.gather(1, by_column)
    columns = columns.gather(1, by_column)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :top]
    return values.gather(1, order), columns.gather(1, order)


def _merged(
    ranked: tuple[Tensor, Tensor], ignored: tuple[Tensor, Tensor], top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Put ignored images between the ranked ones.

    Args:
        ranked: Values and columns of ranked images, (m, top or less) each, sorted.
        ignored: Values and columns of ignored images, (m, top or less) each, sorted.
        top: Ranks that are listed.

    Returns:
        Values, columns and whether they are ignored, (m, w) each; NaN, -1 and False for padding.
    """
    values = torch.cat([ranked[0], ignored[0]], 1)
    columns = torch.cat([ranked[1], ignored[1]], 1)
    by_column = columns.argsort(1)
    order = by_column.gather(
        1, values.gather(1, by_column).argsort(dim=1, descending=True, stable=True)
    )
    values = values.gather(1, order)
    columns = columns.gather(1, order)
    junk = (order >= ranked[0].shape[1]) & (columns >= 0)
    # A complete list ends at its last rank: what is ignored after it is left out.
    count = ((columns >= 0) & ~junk).cumsum(1)
    listed = (columns >= 0) & ~(junk & (count >= top))
    values = values.masked_fill(~listed, torch.nan)
    columns = columns.masked_fill(~listed, -1)
    return values, columns, junk & listed
