"""Which queries a page shows, and their lists of gallery images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ..data.records import Record
from ..data.walk import relative
from ..errors import printable
from ..metrics import QueryScores, RankLists
from .crops import Crops

#: Ranks of a list in a page.
RANKS = 10


@dataclass(frozen=True)
class Entry:
    """A gallery image of a list.

    Args:
        crop: The picture.
        rank: Its rank, or "ignored".
        kind: "right", "wrong" or "ignored".
        sign: A sign that says the same without colour.
        similarity: Cosine similarity.
    """

    crop: Markup
    rank: str
    kind: str
    sign: str
    similarity: str


@dataclass(frozen=True)
class QueryList:
    """A query and its list.

    Args:
        name: Path of the query, relative to the folder of the set.
        crop: The picture.
        facts: Its scores in words.
        entries: The gallery images, most similar first.
    """

    name: str
    crop: Markup
    facts: str
    entries: Sequence[Entry]


@dataclass(frozen=True)
class Ranked:
    """The rankings of a run, by which its queries are shown.

    Args:
        root: Folder of the set.
        queries: The q queries.
        gallery: The g gallery images.
        scores: Scores of the queries.
        lists: Their lists.
        digests: Digest of the content of each query, by which those of two runs are compared.
    """

    root: Path
    queries: Sequence[Record]
    gallery: Sequence[Record]
    scores: QueryScores
    lists: RankLists
    digests: Sequence[str]

    def name(self, query: int) -> str:
        """Path of a query relative to the folder of the set, as a page shows it."""
        return printable(relative(self.queries[query].path, self.root).as_posix())


def choose_queries(scores: QueryScores, count: int) -> Mapping[str, list[int]]:
    """Return the queries of the lowest, the middle and the highest average precision.

    A query is in one group only. Queries without a match are in none.

    Args:
        scores: Scores of all queries.
        count: Queries of each group.
    """
    ranked = scores.ranked.nonzero()[:, 0]
    order = ranked[scores.average_precision[ranked].argsort(stable=True)].tolist()
    worst = order[:count]
    rest = order[len(worst) :]
    best = rest[max(0, len(rest) - count) :][::-1]
    rest = rest[: len(rest) - len(best)]
    # The middle of all queries, of which the worst were taken off the front.
    start = min(max(0, (len(order) - count) // 2 - len(worst)), max(0, len(rest) - count))
    return {"Worst": worst, "Median": rest[start : start + count], "Best": best}


def show_query(ranked: Ranked, query: int, crops: Crops) -> QueryList:
    """Return a query with the first gallery images of its list."""
    name = ranked.name(query)
    crop = crops.show(ranked.queries[query].path, f"query {name}")
    score = float(ranked.scores.average_precision[query])
    matches = int(ranked.scores.matches[query])
    first = int(ranked.scores.first[query])
    listed = (ranked.lists.gallery[query] >= 0) & (ranked.lists.rank[query] <= RANKS)
    shown = listed.nonzero()[:, 0].tolist()
    facts = (
        f"average precision {100 * score:.1f} %, first match at rank {first:,}, "
        f"{matches:,} {'match' if matches == 1 else 'matches'}"
    )
    return QueryList(name, crop, facts, [_entry(ranked, query, i, crops) for i in shown])


def _entry(ranked: Ranked, query: int, position: int, crops: Crops) -> Entry:
    """The gallery image at a position of the list of a query."""
    lists = ranked.lists
    record = ranked.gallery[int(lists.gallery[query, position])]
    rank = int(lists.rank[query, position])
    if lists.junk[query, position]:
        kind, sign = "ignored", "\u2013"
    elif lists.right[query, position]:
        kind, sign = "right", "\u2713"
    else:
        kind, sign = "wrong", "\u2717"
    name = printable(relative(record.path, ranked.root).as_posix())
    place = f"rank {rank}" if rank else "no rank"
    crop = crops.show(record.path, f"{place}, {kind}: {name}")
    similarity = f"{float(lists.similarity[query, position]):.3f}"
    return Entry(crop, str(rank) if rank else "", kind, sign, similarity)


def average_precisions(scores: QueryScores) -> list[float]:
    """Return the average precision of the queries that have a match."""
    values: list[float] = scores.average_precision[scores.ranked].tolist()
    return values
