"""Clusters that are split and merged, and labels that are changed to agree with the answers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from ..answers.closure import Closure
from ..answers.question import Question, Verdict
from ..clustering.jaccard import Graph
from .group_graph import parts_of

#: Which clusters follow their images when these join another cluster.
Follow = Literal["all", "compact"]
#: Images that are compared with the answered images of a cluster at a time.
_ROWS = 1024
#: A cluster is compact if this share of its images is nearest to its own mean.
_COMPACT = 0.8
#: Share of the images of a cluster that are too far from its mean to represent it.
_LEAST_CENTRAL = 0.25
#: Clusters that the images of a cluster are compared with: those with the most similar means.
_NEAR = 10
#: Cosine similarities that differ by rounding alone.
_ROUNDING = 1e-6


class Partition:
    """Clusters that are split and merged in place.

    Args:
        labels: (n,) int64, -1 for an image outside every cluster.

    The rows of each cluster are kept in addition to the labels: 16 bytes an image.
    """

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels.cpu().numpy().copy()
        self._members: dict[int, list[int]] = defaultdict(list)
        for row, label in enumerate(self._labels.tolist()):
            if label >= 0:
                self._members[label].append(row)
        self._next = int(self._labels.max(initial=-1)) + 1

    def labels(self) -> Tensor:
        """Return (n,) int64: clusters of two or more images, numbered by their lowest image; -1 for
        other images.
        """
        kept = sorted((rows for rows in self._members.values() if len(rows) > 1), key=min)
        labels = torch.full((len(self._labels),), -1, dtype=torch.int64)  # (n,)
        for number, rows in enumerate(kept):
            labels[rows] = number
        return labels

    def current(self) -> Tensor:
        """Return (n,) int64: the present labels, including clusters of one image."""
        return torch.from_numpy(self._labels.copy())

    def label_of(self, row: int) -> int:
        """Return the present label of an image; an image outside every cluster becomes a cluster of
        its own.
        """
        if self._labels[row] < 0:
            self._assign([row], self.new_label())
        return int(self._labels[row])

    def members(self, label: int) -> list[int]:
        """Return the rows of a cluster."""
        return self._members[label]

    def new_label(self) -> int:
        """Return a label that no image has."""
        self._next += 1
        return self._next - 1

    def merge(self, a: int, b: int) -> int:
        """Merge two clusters and return the label of the result, that of the larger cluster."""
        if a == b:
            return a
        if len(self._members[a]) < len(self._members[b]):
            a, b = b, a
        self._assign(self._members.pop(b), a)
        return a

    def move(self, rows: Iterable[int], label: int) -> None:
        """Move images into a cluster."""
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
        group_of: dict[int, Tensor] = {}
        for question in questions:
            for medoid, group in zip(question.images, question.groups, strict=True):
                group_of[medoid] = group
        medoids = sorted(group_of)
        self._groups = [group_of[medoid] for medoid in medoids]
        self._index = {medoid: index for index, medoid in enumerate(medoids)}
        self._similarity = {self._pair(q): q.similarity for q in questions}
        self._verdicts: dict[tuple[int, int], Verdict] = {}
        #: Label of each part, by the lowest group in it.
        self._labels: dict[int, int] = {}

    @classmethod
    def of_clusters(cls, questions: list[Question]) -> dict[int, Split]:
        """Return one split for each cluster that the questions are about, by its label."""
        by_cluster: dict[int, list[Question]] = defaultdict(list)
        for question in questions:
            by_cluster[question.cluster].append(question)
        return {cluster: cls(of_cluster) for cluster, of_cluster in by_cluster.items()}

    def answer(self, question: Question, verdict: Verdict, partition: Partition) -> None:
        """Take in an answer, and move the groups so that the partition agrees with the answers so
        far.
        """
        self._verdicts[self._pair(question)] = verdict
        parts = join_groups(len(self._groups), self._verdicts, self._similarity)
        for index, part in enumerate(parts):
            if part not in self._labels:
                # The first part keeps the label of the cluster.
                self._labels[part] = partition.new_label() if self._labels else question.cluster
            partition.move(self._groups[index].tolist(), self._labels[part])

    def _pair(self, question: Question) -> tuple[int, int]:
        a, b = sorted(self._index[image] for image in question.images)
        return a, b


def join_groups(
    count: int,
    verdicts: Mapping[tuple[int, int], Verdict],
    similarity: Mapping[tuple[int, int], float],
) -> list[int]:
    """Decide which groups of a cluster stay together.

    Groups answered "same" are joined first, then groups without an answer that decides, the most
    similar first. Two groups answered "different" are never joined, not even through others. So a
    cluster is not split by a budget that ends early or by an annotator who is unsure.

    Args:
        count: Number of groups.
        verdicts: Answers by pair of groups (i, j), i < j.
        similarity: Similarity by pair of groups, for every pair.

    Returns:
        For each group, the lowest group that it stays with.
    """
    part = list(range(count))
    different = {pair for pair, verdict in verdicts.items() if verdict is Verdict.DIFFERENT}
    same = {pair for pair, verdict in verdicts.items() if verdict is Verdict.SAME}
    candidates = sorted(
        set(similarity) - different, key=lambda pair: (pair not in same, -similarity[pair], pair)
    )
    for i, j in candidates:
        a = part[i]
        b = part[j]
        if not any({part[x], part[y]} == {a, b} for x, y in different):
            part = [min(a, b) if p in (a, b) else p for p in part]
    return part


def apply_answers(
    features: Tensor,
    labels: Tensor,
    closure: Closure,
    graph: Graph | None = None,
    *,
    follow: Follow = "compact",
) -> Tensor:
    """Change labels so that no answer contradicts them.

    First, clusters that hold images known to be different are split. With a graph, average linkage
    divides them (`group_graph.parts_of`). Without one, their images with cannot-links inside the
    cluster are divided into conflict-free groups, and every other member joins the group of its
    most similar image among these.

    Then the images of each must-link component are brought together, the largest component first.
    An answer is about images and may be older than the clusters that they lie in today. With
    `follow="all"` the whole clusters are merged. With "compact", a cluster follows as a whole only
    if the images represent it: at least 80 % of its images are nearer to its mean than to that of
    another cluster, and the images are not among the quarter of least central ones. In all other
    cases, and where the merged cluster would hold images known to be different, the images of the
    component move and the rest of their clusters stays. Of the clusters that hold images of a
    component, one that follows as a whole takes the component, then the one with most of them, then
    the one whose other images are most similar to them. A cluster that is left with one image is no
    cluster any more.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64, -1 for an image outside every cluster.
        closure: The answers and what follows from them.
        graph: Distances of the images, on the CPU, such as those of `jaccard_graph`.
        follow: Which clusters follow their answered images: "all" of them, or the "compact" ones
            that these represent.

    Returns:
        (n,) int64 labels as `Partition.labels` numbers them. The time is linear in the answered
        images, in the members of the clusters that are split, and in those of clusters that share a
        component with another cluster. With "compact", if there are any of these, the mean of each
        cluster is computed as well, and compared with those of the others: 8 bytes times 1,024
        times the number of clusters, and 4 D bytes a cluster. The features of one cluster at a time
        are copied.
    """
    partition = Partition(labels)
    check_images(closure, len(labels))
    for label in sorted(_contradicted_labels(partition.current(), closure)):
        if graph is None:
            _split_by_answers(features, partition, label, closure)
        else:
            for part in parts_of(graph, sorted(partition.members(label)), closure)[1:]:
                partition.move(part, partition.new_label())
    _join_by_answers(features, partition, closure, follow)
    return partition.labels()


def join_images(features: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Bring images that are known to be the same together, and move no other image.

    The cluster with most images of a group takes all of them; among several, the one whose other
    images are most similar to them. Large groups come first. A cluster that is left with one image
    is no cluster any more.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64, -1 for an image outside every cluster.
        groups: (n,) int64, images of one number are the same; -1 for any other image.

    Returns:
        (n,) int64 labels as `Partition.labels` numbers them.
    """
    partition = Partition(labels)
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        if group >= 0:
            members[group].append(row)
    for images in sorted(members.values(), key=lambda images: (-len(images), images)):
        held: dict[int, list[int]] = defaultdict(list)
        for image in images:
            held[partition.label_of(image)].append(image)
        if len(held) > 1:
            partition.move(images, _by_claim(features, partition, images, held, set())[0])
    return partition.labels()


def check_images(closure: Closure, n: int) -> None:
    """Refuse answers about images outside [0, n)."""
    last = max((max(images) for images in closure.components().values()), default=-1)
    if last >= n:
        raise ValueError(
            f"asker: got an answer about image {last}, expected images 0 to {n - 1}; it has the "
            "answers of another set"
        )


def _contradicted_labels(labels: Tensor, closure: Closure) -> set[int]:
    """Return the labels of clusters with a cannot-link inside."""
    components_in: dict[int, set[int]] = defaultdict(set)
    for root, images in closure.components().items():
        for label in set(labels[images].tolist()) - {-1}:
            components_in[label].add(root)
    return {
        label
        for label, roots in components_in.items()
        if any(closure.cannot_links(root) & roots for root in roots)
    }


def _split_by_answers(features: Tensor, partition: Partition, label: int, closure: Closure) -> None:
    """Split a cluster into conflict-free groups: sets of components without a cannot-link between
    them.
    """
    rows = sorted(partition.members(label))
    component_of: dict[int, int] = {}
    for row in rows:
        root = closure.root(row)
        if root is not None:
            component_of[row] = root
    inside = set(component_of.values())
    # Images of components with a cannot-link inside the cluster.
    anchors = {
        row: root for row, root in component_of.items() if closure.cannot_links(root) & inside
    }
    groups = _conflict_free_groups(Counter(anchors.values()), closure)
    group_of: dict[int, int] = {}
    for number, group in enumerate(groups):
        for root in group:
            group_of[root] = number
    members: dict[int, list[int]] = defaultdict(list)
    for row, nearest in zip(rows, _nearest_anchors(features, rows, sorted(anchors)), strict=True):
        root = anchors.get(row, anchors[nearest])
        members[group_of[root]].append(row)
    # The first group keeps the label.
    for number in range(1, len(groups)):
        partition.move(members[number], partition.new_label())


def _conflict_free_groups(sizes: Counter[int], closure: Closure) -> list[set[int]]:
    """Divide components greedily into groups without a cannot-link inside.

    Args:
        sizes: Number of images by root of the component.
        closure: The cannot-links.
    """
    groups: list[set[int]] = []
    # Large components first, so that a stray answer joins a group that exists already.
    for root, _ in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        for group in groups:
            if not closure.cannot_links(root) & group:
                group.add(root)
                break
        else:
            groups.append({root})
    return groups


def _nearest_anchors(features: Tensor, rows: list[int], anchors: list[int]) -> list[int]:
    """Return the most similar anchor of each row, both given as rows of the features."""
    device = features.device
    of_anchors = features[torch.tensor(anchors, device=device)].T  # (D, a)
    nearest: list[int] = []
    for block in torch.tensor(rows, device=device).split(_ROWS):
        nearest += (features[block] @ of_anchors).argmax(1).tolist()
    return [anchors[index] for index in nearest]


def _join_by_answers(
    features: Tensor, partition: Partition, closure: Closure, follow: Follow
) -> None:
    """Bring the images of each component together, the largest component first."""
    components_in: dict[int, set[int]] = defaultdict(set)
    spread: list[tuple[int, list[int]]] = []
    for root, images in closure.components().items():
        labels = {partition.label_of(image) for image in images}
        for label in labels:
            components_in[label].add(root)
        if len(labels) > 1:
            spread.append((root, sorted(images)))
    spread.sort(key=lambda component: (-len(component[1]), component[1]))
    standing = None
    if follow == "compact":
        rows = [image for _, images in spread for image in images]
        standing = _Standing(features, partition, rows)
    for root, images in spread:
        held: dict[int, list[int]] = defaultdict(list)
        for image in images:
            held[partition.label_of(image)].append(image)
        whole = set(held)
        if standing is not None:
            whole = {label for label, own in held.items() if standing.represents(own)}
        target, *others = _by_claim(features, partition, images, held, whole)
        for label in others:
            conflict = any(
                closure.cannot_links(r) & components_in[target] for r in components_in[label]
            )
            if {target, label} <= whole and not conflict:
                both = components_in.pop(target) | components_in.pop(label)
                target = partition.merge(target, label)
                components_in[target] = both
                whole.add(target)
            else:
                partition.move(held[label], target)
                components_in[label].discard(root)


def _by_claim(
    features: Tensor,
    partition: Partition,
    images: list[int],
    held: Mapping[int, list[int]],
    whole: set[int],
) -> list[int]:
    """Order the clusters that hold images of a component; the first one takes the component.

    First come those that its images represent, then those with more of its images, then those whose
    other images are more similar to it, then those with the lowest image.

    Args:
        features: (n, D) unit-norm.
        partition: The clusters.
        images: Images of the component.
        held: Images of the component in each cluster, by its label.
        whole: Labels of the clusters that the images of the component represent.
    """
    first = {label: (label not in whole, -len(own)) for label, own in held.items()}
    ties = Counter(first.values())
    of_component = set(images)

    def similarity(label: int) -> float:
        others = [row for row in partition.members(label) if row not in of_component]
        if ties[first[label]] == 1 or not others:
            # A cluster without other images is taken in by one that has some.
            return -math.inf
        return float(_mean(features, others) @ _mean(features, images))

    claims = {label: (*first[label], -similarity(label), min(held[label])) for label in held}
    return sorted(held, key=claims.__getitem__)


def _mean(features: Tensor, rows: list[int]) -> Tensor:
    """Unit-norm mean of some rows of the features, (D,)."""
    return nn.functional.normalize(features[rows].float().mean(0), dim=0)


class _Standing:
    """How well images represent the clusters that they lie in.

    An image represents its cluster if nearly all images of the cluster are nearer to the mean of
    the cluster than to that of any other cluster, and the image is not among the least central
    ones. "Same" of two such images then speaks for their clusters.

    Args:
        features: (n, D) unit-norm.
        partition: The clusters.
        images: Images that are asked about; only their clusters are looked at.
    """

    def __init__(self, features: Tensor, partition: Partition, images: list[int]) -> None:
        #: How much more central an image is than the least central ones, in cosine similarity; only
        #: of images in compact clusters.
        self._margin: dict[int, float] = {}
        if not images:
            return
        labels, sizes = partition.current().unique(return_counts=True)
        groups = [
            sorted(partition.members(label))
            for label in labels[(labels >= 0) & (sizes > 1)].tolist()
        ]
        means = torch.stack([_mean(features, rows) for rows in groups] or [features[0].float()])
        number = {row: at for at, rows in enumerate(groups) for row in rows}
        wanted = {number[image] for image in images if image in number}
        near = self._nearest(means, sorted(wanted))
        for at, others in near.items():
            rows = groups[at]
            of_rows = features[rows].float()  # (m, D)
            own = of_rows @ means[at]  # (m,)
            nearest = (of_rows @ means[others].T).amax(1) if others else own - 1  # (m,)
            if float((own >= nearest).float().mean()) >= _COMPACT:
                margins = own - own.quantile(_LEAST_CENTRAL)
                self._margin.update(zip(rows, margins.tolist(), strict=True))

    def represents(self, images: list[int]) -> bool:
        """Return whether images of one cluster represent it, on the average."""
        margins = [self._margin.get(image, -math.inf) for image in images]
        return sum(margins) / len(margins) >= -_ROUNDING

    @staticmethod
    def _nearest(means: Tensor, wanted: list[int]) -> dict[int, list[int]]:
        """The clusters with the most similar means, for some clusters."""
        count = min(_NEAR, len(means) - 1)
        near: dict[int, list[int]] = {}
        for block in torch.tensor(wanted, dtype=torch.int64).split(_ROWS):
            if count < 1 or not len(block):
                near.update((at, []) for at in block.tolist())
                continue
            at_block = block.to(means.device)
            similarity = means[at_block] @ means.T  # (b, G)
            similarity[torch.arange(len(block)), at_block] = -torch.inf
            found = similarity.topk(count).indices.tolist()
            near.update(zip(block.tolist(), found, strict=True))
        return near
