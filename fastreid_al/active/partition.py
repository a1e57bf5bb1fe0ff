"""Clusters under constraints: what a set of answers makes of a labelling."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..answers.closure import Closure
from ..answers.question import Question, Verdict

#: Images whose similarity to the answered images of a cluster is looked at together.
_ROWS = 1024


class Partition:
    """A labelling that is split and merged in place.

    Args:
        labels: (n,) int64, -1 for an image outside every cluster.

    Rows of each cluster are kept beside the labels: 16 bytes an image.
    """

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels.cpu().numpy().copy()
        self._members: dict[int, list[int]] = defaultdict(list)
        for row, label in enumerate(self._labels.tolist()):
            if label >= 0:
                self._members[label].append(row)
        self._next = int(self._labels.max(initial=-1)) + 1

    def labels(self) -> Tensor:
        """(n,) int64: clusters of two images and more numbered by their lowest image, -1 for every other image."""
        kept = sorted((rows for rows in self._members.values() if len(rows) > 1), key=min)
        out = torch.full((len(self._labels),), -1, dtype=torch.int64)
        for number, rows in enumerate(kept):
            out[rows] = number
        return out

    def label_of(self, row: int) -> int:
        """Present label of an image; one outside every cluster is given a cluster of its own."""
        if self._labels[row] < 0:
            self._assign([row], self.fresh())
        return int(self._labels[row])

    def members(self, label: int) -> list[int]:
        """Rows of a cluster."""
        return self._members[label]

    def current(self) -> Tensor:
        """(n,) int64: the labels as they stand, clusters of one image included."""
        return torch.from_numpy(self._labels.copy())

    def fresh(self) -> int:
        """A label that no image has."""
        self._next += 1
        return self._next - 1

    def merge(self, a: int, b: int) -> int:
        """Merge two clusters; gives the label of the result, that of the larger."""
        if a == b:
            return a
        if len(self._members[a]) < len(self._members[b]):
            a, b = b, a
        self._assign(self._members.pop(b), a)
        return a

    def move(self, rows: Iterable[int], label: int) -> None:
        """Put images into a cluster."""
        rows = list(rows)
        moved = set(rows)
        for old in {int(self._labels[r]) for r in rows} - {-1, label}:
            left = [r for r in self._members[old] if r not in moved]
            if left:
                self._members[old] = left
            else:
                del self._members[old]
        self._assign([r for r in rows if self._labels[r] != label], label)

    def _assign(self, rows: list[int], label: int) -> None:
        self._labels[rows] = label
        self._members[label] += rows


class Split:
    """The groups of one cluster, and the answers about them.

    Args:
        questions: One for every two groups.
    """

    def __init__(self, questions: list[Question]) -> None:
        by_medoid = {
            image: side for q in questions for image, side in zip(q.images, q.groups, strict=True)
        }
        self._groups = [by_medoid[medoid] for medoid in sorted(by_medoid)]
        self._place = {medoid: place for place, medoid in enumerate(sorted(by_medoid))}
        self._similarity = {self._pair(q): q.similarity for q in questions}
        self._verdicts: dict[tuple[int, int], Verdict] = {}
        self._labels: dict[int, int] = {}

    @classmethod
    def of_clusters(cls, questions: list[Question]) -> dict[int, Split]:
        """One for each cluster that the questions are about."""
        by_cluster: dict[int, list[Question]] = defaultdict(list)
        for question in questions:
            by_cluster[question.cluster].append(question)
        return {cluster: cls(asked) for cluster, asked in by_cluster.items()}

    def answer(self, question: Question, verdict: Verdict, partition: Partition) -> None:
        """Take in an answer and put the groups where the answers so far want them."""
        self._verdicts[self._pair(question)] = verdict
        for place, home in enumerate(settle(len(self._groups), self._verdicts, self._similarity)):
            if home not in self._labels:
                self._labels[home] = partition.fresh() if self._labels else question.cluster
            partition.move(self._groups[place].tolist(), self._labels[home])

    def _pair(self, question: Question) -> tuple[int, int]:
        a, b = sorted(self._place[image] for image in question.images)
        return a, b


def settle(
    count: int,
    verdicts: Mapping[tuple[int, int], Verdict],
    similarity: Mapping[tuple[int, int], float],
) -> list[int]:
    """Which groups of a cluster stay together.

    Groups answered "same" are joined first, then those without an answer that decides, the most similar first; two groups
    answered "different" never end up together. So a short budget, or someone who is unsure, leaves a cluster as it was.

    Args:
        count: Number of groups.
        verdicts: Answers by pair of groups (i, j), i < j.
        similarity: Similarity by pair of groups, for every pair.

    Returns:
        For each group, the lowest group that it stays with.
    """
    part = list(range(count))
    apart = {pair for pair, verdict in verdicts.items() if verdict is Verdict.DIFFERENT}
    together = {pair for pair, verdict in verdicts.items() if verdict is Verdict.SAME}
    for i, j in sorted(
        set(similarity) - apart, key=lambda pair: (pair not in together, -similarity[pair], pair)
    ):
        a, b = part[i], part[j]
        if not any({part[x], part[y]} == {a, b} for x, y in apart):
            part = [min(a, b) if p in (a, b) else p for p in part]
    return part


def apply_answers(features: Tensor, labels: Tensor, closure: Closure) -> Tensor:
    """Change a labelling so that no answer contradicts it.

    A cluster that holds images known to be different is split: its images with enemies there are put into camps, and
    every other member goes to the camp of its most similar of these. Then clusters that hold images known to be the same
    are merged, unless that would bring enemies together; where it would, the images alone are moved.

    Args:
        features: (n, D) unit rows.
        labels: (n,) int64, -1 for an image outside every cluster.
        closure: The answers.

    Returns:
        (n,) int64 labels as `Partition.labels` numbers them. Linear in the answered images and the members of the clusters
        that are split; the features of one cluster at a time are copied.
    """
    partition = Partition(labels)
    for label in sorted(_labels_with_enemies(partition.current(), closure)):
        _split_by_answers(features, partition, label, closure)
    _join_by_answers(partition, closure)
    return partition.labels()


def _labels_with_enemies(labels: Tensor, closure: Closure) -> set[int]:
    roots: dict[int, set[int]] = defaultdict(set)
    for root, images in closure.components().items():
        for label in set(labels[images].tolist()) - {-1}:
            roots[label].add(root)
    return {
        label
        for label, found in roots.items()
        if any(closure.cannot_links(r) & found for r in found)
    }


def _split_by_answers(features: Tensor, partition: Partition, label: int, closure: Closure) -> None:
    """Split a cluster between camps: sets of components without enemies among them."""
    rows = sorted(partition.members(label))
    here = {root for row in rows if (root := closure.root(row)) is not None}
    known = {
        row: root
        for row in rows
        if (root := closure.root(row)) is not None and closure.cannot_links(root) & here
    }
    camps: list[set[int]] = []
    # Large components first: a stray answer goes to the camp that stands already.
    for root, _ in sorted(Counter(known.values()).items(), key=lambda item: (-item[1], item[0])):
        camp = next((c for c in camps if not closure.cannot_links(root) & c), None)
        if camp is None:
            camps.append({root})
        else:
            camp.add(root)
    anchors = sorted(known)
    device = features.device
    of_anchors = features[torch.tensor(anchors, device=device)].T
    nearest = torch.cat(
        [
            (features[r] @ of_anchors).argmax(1)
            for r in torch.tensor(rows, device=device).split(_ROWS)
        ]
    )
    camp_of = {root: number for number, camp in enumerate(camps) for root in camp}
    sides: dict[int, list[int]] = defaultdict(list)
    for row, anchor in zip(rows, nearest.tolist(), strict=True):
        sides[camp_of[known.get(row, known[anchors[anchor]])]].append(row)
    for number in range(1, len(camps)):
        partition.move(sides[number], partition.fresh())


def _join_by_answers(partition: Partition, closure: Closure) -> None:
    """Bring the images of each component together, the largest component first."""
    inside: dict[int, set[int]] = defaultdict(set)
    for root, images in closure.components().items():
        for image in images:
            inside[partition.label_of(image)].add(root)
    for _, images in sorted(
        closure.components().items(), key=lambda item: (-len(item[1]), item[0])
    ):
        shares = Counter(partition.label_of(image) for image in images)
        (home, _), *others = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
        for label, _ in others:
            if any(closure.cannot_links(r) & inside[home] for r in inside[label]):
                partition.move([i for i in images if partition.label_of(i) == label], home)
            else:
                merged = partition.merge(home, label)
                both = inside.pop(home) | inside.pop(label)
                home, inside[merged] = merged, both
