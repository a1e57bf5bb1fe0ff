"""Slow, plain float64 references of the questions and of the closure, written from the algorithm
notes alone.

Nothing here is imported from the library, and nothing is optimised: every function follows its rule
step by step.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

import numpy as np


def _best_similarities(s: np.ndarray, medoids: list[int]) -> np.ndarray:
    """Return the similarity of each point to its most similar medoid; -inf without a medoid."""
    best = np.full(len(s), -np.inf)
    for h in medoids:
        best = np.maximum(best, s[h])
    return best


def reference_kmedoids(similarity: np.ndarray, k: int) -> tuple[list[int], list[int]]:
    """Return the medoids of PAM in their places, and the place of each point's medoid.

    BUILD and SWAP maximise the sum of the points' similarities to their most similar medoid.
    """
    s = np.asarray(similarity, dtype=np.float64)
    m = len(s)
    if not 1 <= k <= m:
        raise ValueError(f"k = {k} with {m} points")

    # BUILD.
    medoids: list[int] = []
    for _ in range(k):
        best = _best_similarities(s, medoids)
        winner, winner_gain = -1, -np.inf
        for i in range(m):
            if i in medoids:
                continue
            gain = s[i].sum() if not medoids else np.maximum(0.0, s[i] - best).sum()
            if gain > winner_gain:  # Strictly, so that a tie stays with the lowest index.
                winner, winner_gain = i, gain
        medoids.append(winner)

    # SWAP: i outside and the place inside, both ascending, and strictly better only: the order of
    # the ties.
    while True:
        total = _best_similarities(s, medoids).sum()
        rest = [_best_similarities(s, medoids[:p] + medoids[p + 1 :]) for p in range(k)]
        swap, swap_total = None, -np.inf
        for i in range(m):
            if i in medoids:
                continue
            for p in range(k):
                after = np.maximum(rest[p], s[i]).sum()
                if after > swap_total:
                    swap, swap_total = (p, i), after
        if swap is None or not swap_total - total > 1e-9:
            break
        medoids[swap[0]] = swap[1]

    labels = []
    for j in range(m):
        if j in medoids:
            labels.append(medoids.index(j))
            continue
        place = 0
        for p in range(1, k):
            if s[medoids[p], j] > s[medoids[place], j]:
                place = p
        labels.append(place)
    return medoids, labels


class ReferenceSplit(NamedTuple):
    """One cluster that is split: its label, and each group's rows and medoid at the same places of
    two lists.
    """

    cluster: int
    groups: list[frozenset[int]]
    medoids: list[int]

    def questions(self) -> set[frozenset[tuple[int, frozenset[int]]]]:
        """Return all pairs of (medoid, rows of its group)."""
        sides = list(zip(self.medoids, self.groups, strict=True))
        return {frozenset(pair) for pair in combinations(sides, 2)}


def _largest_k(size: int, rule: str) -> int:
    """floor(sqrt(size / 2) / 2) or floor(sqrt(size / 2)), in whole numbers."""
    factor = {"paper": 8, "root": 2}[rule]
    k = 0
    while factor * (k + 1) ** 2 <= size:
        k += 1
    return k


def _split_score(s: np.ndarray, groups: list[list[int]]) -> float:
    """Sum over the groups of compactness times independence, similarities clamped to [0, 1]."""
    clamped = np.minimum(np.maximum(s, 0.0), 1.0)
    score = 0.0
    for g, group in enumerate(groups):
        compactness = 1.0
        for x, y in combinations(group, 2):
            compactness = min(compactness, clamped[x, y])
        nearest_other = 0.0
        for o, other in enumerate(groups):
            if o != g:
                nearest_other = max(nearest_other, clamped[np.ix_(group, other)].max())
        score += compactness * (1.0 - nearest_other)
    return score


def reference_splits(
    features: np.ndarray, labels: np.ndarray, k_max_rule: str = "paper"
) -> list[ReferenceSplit]:
    """Return the split of each cluster that SNPS splits, by ascending label."""
    features = np.asarray(features, dtype=np.float64)
    labels = np.asarray(labels)
    splits = []
    for label in sorted({int(x) for x in labels if x >= 0}):
        rows = [i for i in range(len(labels)) if labels[i] == label]
        s = features[rows] @ features[rows].T
        best_score, best = -np.inf, None
        for k in range(2, _largest_k(len(rows), k_max_rule) + 1):
            medoids, places = reference_kmedoids(s, k)
            groups = [[j for j in range(len(rows)) if places[j] == p] for p in range(k)]
            score = _split_score(s, groups)
            if score > best_score:
                best_score, best = score, (medoids, groups)
        if best is not None:
            medoids, groups = best
            splits.append(
                ReferenceSplit(
                    label,
                    [frozenset(rows[j] for j in g) for g in groups],
                    [rows[h] for h in medoids],
                )
            )
    return splits


class ReferenceMerge(NamedTuple):
    """Two clusters that may be one identity: labels ascending, and the row shown for each."""

    clusters: tuple[int, int]
    shown: tuple[int, int]
    similarity: float


def reference_merges(
    features: np.ndarray, labels: np.ndarray, l_max: int = 10, delta: float = 0.3
) -> list[ReferenceMerge]:
    """Return the pairs of clusters that MPPS asks about, each once, by ascending labels."""
    features = np.asarray(features, dtype=np.float64)
    labels = np.asarray(labels)
    names = sorted({int(x) for x in labels if x >= 0})
    centroids, shown = {}, {}
    for name in names:
        rows = [i for i in range(len(labels)) if labels[i] == name]
        mean = np.zeros(features.shape[1])
        for i in rows:
            mean += features[i]
        # The order of the members by similarity to the centroid is that by similarity to their sum,
        # which is exact where the features are short binary fractions: a tie stays a tie.
        shown[name] = max(rows, key=lambda i, total=mean: (float((features[i] * total).sum()), -i))
        mean = mean / len(rows)
        centroids[name] = mean / np.sqrt((mean * mean).sum())

    def similarity(x: int, y: int) -> float:
        return min(max(float((centroids[x] * centroids[y]).sum()), 0.0), 1.0)

    pairs: set[tuple[int, int]] = set()
    for name in names:
        near = sorted(
            (o for o in names if o != name), key=lambda o, x=name: (-similarity(x, o), o)
        )[:l_max]
        descending = [similarity(name, o) for o in near]
        gaps = [descending[i] - descending[i + 1] for i in range(len(descending) - 1)]
        if not gaps or max(gaps) == min(gaps):
            continue
        for i, gap in enumerate(gaps):
            if (gap - min(gaps)) / (max(gaps) - min(gaps)) > delta:
                pairs |= {(min(name, o), max(name, o)) for o in near[: i + 1]}
                break
    return [
        ReferenceMerge((x, y), (shown[x], shown[y]), similarity(x, y)) for x, y in sorted(pairs)
    ]


class BruteAnswer(NamedTuple):
    """One answer; the fields of a line of the ledger, the verdict as its plain words."""

    event: int
    left: int
    right: int
    verdict: str
    need: int = 1
    confirms: int | None = None


class _Edge(NamedTuple):
    event: int
    a: int
    b: int


def _reached(edges: Iterable[_Edge], start: int) -> set[int]:
    """Breadth first: everything that the edges connect with the start, the start included."""
    edges = list(edges)
    seen, frontier = {start}, [start]
    while frontier:
        following = []
        for x in frontier:
            for edge in edges:
                for here, there in ((edge.a, edge.b), (edge.b, edge.a)):
                    if here == x and there not in seen:
                        seen.add(there)
                        following.append(there)
        frontier = following
    return seen


class BruteClosure:
    """What follows from the answers, with nothing kept between queries but the edges in force.

    Attributes:
        same: The "same" edges in force.
        different: The "different" edges in force.
        contradictions: Events of the answers that contradicted those before them, in the order in
            which it was seen.
        set_aside: Events of the "same" edges that each of the contradictions put out of force, in
            its place.
    """

    def __init__(self, answers: Iterable[BruteAnswer] = ()) -> None:
        self.same: list[_Edge] = []
        self.different: list[_Edge] = []
        self.contradictions: list[int] = []
        self.set_aside: list[set[int]] = []
        self._merges: dict[int, list[BruteAnswer]] = {}
        self._counted: set[int] = set()
        for answer in answers:
            self._add(BruteAnswer(*answer))

    def _add(self, answer: BruteAnswer) -> None:
        if answer.verdict == "different":
            self._add_different(_Edge(answer.event, answer.left, answer.right))
        elif answer.verdict == "same" and answer.need <= 1:
            self._add_same(_Edge(answer.event, answer.left, answer.right))
        elif answer.verdict == "same":
            merge = self._merges.setdefault(
                answer.event if answer.confirms is None else answer.confirms, []
            )
            merge.append(answer)
            if len({frozenset((x.left, x.right)) for x in merge}) >= answer.need:
                # Each has its effect once: an answer after the last one that was needed counts at
                # once, alone.
                for x in sorted(x for x in merge if x.event not in self._counted):
                    self._counted.add(x.event)
                    self._add_same(_Edge(x.event, x.left, x.right))
        else:
            assert answer.verdict in ("unsure", "not comparable")

    def _joined(self, edges: Iterable[_Edge], a: int, b: int) -> bool:
        return b in _reached(edges, a)

    def _enemies(self, a: int, b: int) -> bool:
        side_a, side_b = _reached(self.same, a), _reached(self.same, b)
        return any(
            (edge.a in side_a and edge.b in side_b) or (edge.a in side_b and edge.b in side_a)
            for edge in self.different
        )

    def _add_same(self, edge: _Edge) -> None:
        if any({x.a, x.b} == {edge.a, edge.b} for x in self.same):
            return
        if self._enemies(edge.a, edge.b):
            self.contradictions.append(edge.event)
            self.set_aside.append({edge.event})
        else:
            self.same.append(edge)

    def _add_different(self, edge: _Edge) -> None:
        if self._joined(self.same, edge.a, edge.b):
            self.contradictions.append(edge.event)
            component = _reached(self.same, edge.a)
            again: list[_Edge] = [x for x in self.same if x.a not in component]
            for x in sorted(x for x in self.same if x.a in component):
                if not self._joined([*again, x], edge.a, edge.b):
                    again.append(x)
            self.set_aside.append({x.event for x in self.same} - {x.event for x in again})
            self.same = again
        self.different.append(edge)

    def verdict(self, a: int, b: int) -> str | None:
        """Return "same", "different", or None when nothing follows."""
        if self._joined(self.same, a, b):
            return "same"
        return "different" if self._enemies(a, b) else None

    def in_force(self) -> dict[int, str]:
        """Return the verdict of each event whose edge is in force."""
        return {x.event: "same" for x in self.same} | {x.event: "different" for x in self.different}
