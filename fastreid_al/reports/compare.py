"""What differs between two runs: settings, scores, and queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics.bootstrap import Interval, paired_bootstrap
from .queries import Ranked

#: Seed of the bootstrap, and its samples.
SEED = 0
SAMPLES = 10_000


@dataclass(frozen=True)
class ScoreDifference:
    """The means of a score in two runs, and their difference, over the queries of both.

    Args:
        name: Name of the score.
        first: Mean in the first run.
        second: Mean in the second.
        interval: Second minus first, with its interval.
    """

    name: str
    first: float
    second: float
    interval: Interval

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval.low > 0 or self.interval.high < 0


@dataclass(frozen=True)
class ChangedQuery:
    """A query of two runs.

    Args:
        first: Its row in the first run.
        second: Its row in the second.
        change: Average precision of the second minus that of the first.
    """

    first: int
    second: int
    change: float


def common_queries(first: Ranked, second: Ranked) -> list[tuple[int, int]]:
    """Return the rows, in each run, of the queries that have a match in both.

    A query is the same by its path and its content: paths of two sets may be equal.
    """
    ranked = second.scores.ranked.tolist()
    rows = {_key(second, row): row for row in range(len(second.queries)) if ranked[row]}
    return [
        (row, rows[key])
        for row, has_match in enumerate(first.scores.ranked.tolist())
        if has_match and (key := _key(first, row)) in rows
    ]


def _key(ranked: Ranked, query: int) -> tuple[str, str]:
    return ranked.name(query), ranked.digests[query]


def score_differences(
    first: Ranked, second: Ranked, common: Sequence[tuple[int, int]]
) -> list[ScoreDifference]:
    """Compare mAP, mINP and rank-1 over the same queries.

    Args:
        first: Rankings of the first run.
        second: Rankings of the second.
        common: Rows of the queries of both, at least one.
    """
    rows = np.array(common)
    found = []
    for name, (values, others) in {
        "mAP": (first.scores.average_precision, second.scores.average_precision),
        "mINP": (first.scores.inverse_penalty, second.scores.inverse_penalty),
        "rank-1": (first.scores.first == 1, second.scores.first == 1),
    }.items():
        a = values.double().numpy()[rows[:, 0]]
        b = others.double().numpy()[rows[:, 1]]
        interval = paired_bootstrap(b - a, samples=SAMPLES, seed=SEED)
        found.append(ScoreDifference(name, float(a.mean()), float(b.mean()), interval))
    return found


def changed_queries(
    first: Ranked, second: Ranked, common: Sequence[tuple[int, int]], count: int
) -> tuple[list[ChangedQuery], list[ChangedQuery]]:
    """Return the queries whose average precision rose most and fell most, most changed first.

    Args:
        first: Rankings of the first run.
        second: Rankings of the second.
        common: Rows of the queries of both.
        count: Most queries of each of the two lists.
    """
    a = first.scores.average_precision.tolist()
    b = second.scores.average_precision.tolist()
    changes = [ChangedQuery(i, j, b[j] - a[i]) for i, j in common]
    changes.sort(key=lambda found: (-found.change, found.first))
    rose = [found for found in changes if found.change > 0][:count]
    fell = [found for found in reversed(changes) if found.change < 0][:count]
    return rose, fell


def differing_settings(
    first: Mapping[str, str], second: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Return key and both values of the settings that differ, in the order of the first.

    Args:
        first: Settings by key, as a page shows them.
        second: Those of the other run.
    """
    keys = [*first, *(key for key in second if key not in first)]
    rows = [(key, first.get(key, "none"), second.get(key, "none")) for key in keys]
    return [row for row in rows if row[1] != row[2]]
