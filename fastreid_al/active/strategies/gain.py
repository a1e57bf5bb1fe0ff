"""The `gain` strategy: the question that is expected to correct the most pairs comes first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...answers.asker import Asker
from ...answers.question import Question, Verdict
from ...clustering.neighbours import nearest_neighbours
from ...config import QuestionConfig
from ..calibration import Calibration
from ..partition import Partition, Split
from ..snps import propose_splits, rows_by_cluster

#: Least expected gain, weighted, of a split; other splits are left to a later round.
_LEAST_SPLIT = 0.5
#: Weight of a pair that a split separates, where a pair that a merge adds counts 1: F1 / (2 - F1)
#: at an F1 of 3/4.
_SPLIT_WEIGHT = 0.6
#: Merges continue until the best split is expected to gain this many times as much as the best
#: merge.
_PATIENCE = 1.5
#: An answered image represents its group unless it is among this share of least central members.
_CENTRAL = 0.25
#: Priors of p(different), for the similarity of medoids, and of p(same), for relative similarity
#: and size: log-odds at the mean, and their change per standard deviation.
_DIFFERENT = (-0.5, [-1.0])
_SAME = (-1.7, [1.2, -0.7])
#: Neighbours of a group that are candidates at a time; more are looked up when these are decided.
_NEAR = 10


def ask_by_expected_gain(
    features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig
) -> None:
    """Ask the question with the greatest expected gain until none could change the labels.

    Questions are about splits inside clusters, and about merges of clusters and single images.
    Centroids and candidates are updated after every answer. The expected gain of a question is
    p * (|A| |B|)^0.7, where p is the probability that the answer changes the labels, learnt from
    the answers of the round. A pair that a split separates counts `_SPLIT_WEIGHT` of a pair that a
    merge adds.

    Args:
        features: (n, D) unit rows.
        labels: (n,) int64, -1 for an image outside every cluster.
        asker: Asks the annotator and records the answers.
        config: Not used; the constants of this strategy are those of this module.

    Raises:
        OutOfQuestions: The budget is spent.
    """
    partition = Partition(labels)
    asker.current_labels = partition.labels
    different = Calibration(*_DIFFERENT)
    same = Calibration(*_SAME)
    while True:
        splits = _Splits(
            propose_splits(features, partition.current(), "root"), partition, asker, different
        )
        merges = _Merges(features, partition, asker, same)
        asked = 0
        separated = False
        while (gain := splits.best()) >= max(merges.best(), _LEAST_SPLIT):
            separated |= splits.ask() is Verdict.DIFFERENT
            asked += 1
        if separated:
            merges = _Merges(features, partition, asker, same)
        while (best := merges.best()) > 0 and (gain < _LEAST_SPLIT or gain <= _PATIENCE * best):
            merges.ask()
            asked += 1
        if not asked:
            return


class _Splits:
    """Questions that may split a cluster, and their answers so far."""

    def __init__(
        self, questions: list[Question], partition: Partition, asker: Asker, different: Calibration
    ) -> None:
        self.partition = partition
        self.asker = asker
        self.different = different
        self.splits = Split.of_clusters(questions)
        self.questions = [q for q in questions if self._is_open(q)]
        self.seen = np.array([[q.similarity] for q in self.questions]).reshape(-1, 1)
        self.size = np.array([_size(*map(len, q.groups)) for q in self.questions])
        different.scale(self.seen)

    def best(self) -> float:
        """Return the expected gain of the best question, 0 when none is left."""
        while self.questions:
            gain = self.different(self.seen) * self.size
            best = int(gain.argmax())
            if self._is_open(self.questions[best]):
                self._best = best
                return _SPLIT_WEIGHT * float(gain[best])
            self._drop(best)
        return 0.0

    def ask(self) -> Verdict:
        """Ask the best question and act on the answer."""
        question = self._drop(self._best)
        verdict = self.asker.ask(question)
        if verdict in (Verdict.SAME, Verdict.DIFFERENT):
            self.different.learn(np.array([question.similarity]), verdict is Verdict.DIFFERENT)
        self.splits[question.cluster].answer(question, verdict, self.partition)
        return verdict

    def _is_open(self, question: Question) -> bool:
        """Return whether a question can be asked; a known answer is acted on at once."""
        if self.asker.can_ask(*question.images):
            return True
        self.splits[question.cluster].answer(question, self.asker.ask(question), self.partition)
        return False

    def _drop(self, index: int) -> Question:
        self.seen = np.delete(self.seen, index, 0)
        self.size = np.delete(self.size, index)
        return self.questions.pop(index)


class _Merges:
    """Candidate merges of groups: for each group the most similar groups that can be asked about.

    p(same) has two inputs. The first is the mean similarity of the images of two groups, minus the
    mean similarity of each group to its nearest groups, because a group that is similar to all
    groups would otherwise always come first. The second is the size of the larger group, because
    two large groups that were not clustered together differ more often.
    """

    def __init__(
        self, features: Tensor, partition: Partition, asker: Asker, same: Calibration
    ) -> None:
        self.features = features.float().cpu()  # (n, D)
        self.partition = partition
        self.asker = asker
        self.same = same
        # Give each image outside every cluster a cluster of its own.
        for row in (partition.current() < 0).nonzero()[:, 0].tolist():
            partition.label_of(row)
        self.groups = [g.tolist() for g in rows_by_cluster(partition.current())]
        if self.groups:
            self.sums = torch.stack([self.features[g].sum(0) for g in self.groups])  # (G, D)
        else:
            self.sums = self.features[:0]
        self.units = nn.functional.normalize(self.sums, dim=1)  # (G, D)
        self.size = np.array([len(g) for g in self.groups], dtype=np.float64)
        self.shown = [self._representative(i) for i in range(len(self.groups))]
        near = nearest_neighbours(self.units, _NEAR + 1)[:, 1:]
        #: Mean similarity of each group to its nearest groups, (G,).
        self.around = np.array(
            [self._mean_similarity(i, row.numpy()) for i, row in enumerate(near)]
        )
        pairs = torch.stack([torch.arange(len(near))[:, None].expand_as(near), near], 2).reshape(
            -1, 2
        )
        self.pairs = pairs.sort(1).values.unique(dim=0).numpy()
        self.seen = self._see(self.pairs)
        same.scale(self.seen)

    def best(self) -> float:
        """Return the expected gain of the best candidate, 0 when none is left."""
        while len(self.pairs):
            gain = self.same(self.seen) * _size(*self.size[self.pairs.T])
            best = int(gain.argmax())
            i, j = self.pairs[best].tolist()
            if self._askable(i, j):
                self._best = best
                return float(gain[best])
            self._drop(best)
            known = self.asker.closure.verdict(self.shown[i], self.shown[j])
            if known is Verdict.SAME and not self._cannot_link(i, j):
                self._merge(i, j)
            else:
                self._replace(i, j)
        return 0.0

    def ask(self) -> None:
        """Ask about the best candidate, and act on the answer."""
        seen = self.seen[self._best]
        i, j = self._drop(self._best)
        verdict = self.asker.ask(self._question(i, j, float(self.same(seen[None])[0])))
        if verdict in (Verdict.SAME, Verdict.DIFFERENT):
            self.same.learn(seen, verdict is Verdict.SAME)
        if verdict is Verdict.SAME:
            self._merge(i, j)
        else:
            self._replace(i, j)

    def _drop(self, index: int) -> tuple[int, int]:
        i, j = self.pairs[index].tolist()
        self.pairs = np.delete(self.pairs, index, 0)
        self.seen = np.delete(self.seen, index, 0)
        return i, j

    def _replace(self, *groups: int) -> None:
        """Add candidates for groups that have none left."""
        for group in groups:
            if not (self.pairs == group).any():
                self._look_up(group)

    def _askable(self, i: int, j: int) -> bool:
        """Return whether the answers so far leave it open if two groups are the same identity."""
        a, b = self.shown[i], self.shown[j]
        return (
            self.asker.can_ask(a, b) or self.asker.awaits_confirmation(a, b)
        ) and not self._cannot_link(i, j)

    def _cannot_link(self, i: int, j: int) -> bool:
        """Return whether two groups hold images that are known to be different."""
        closure = self.asker.closure
        roots = self._roots(i)
        return any(closure.cannot_links(root) & roots for root in self._roots(j))

    def _roots(self, group: int) -> set[int]:
        return {
            root
            for image in self.groups[group]
            if (root := self.asker.closure.root(image)) is not None
        }

    def _merge(self, i: int, j: int) -> None:
        if len(self.groups[i]) < len(self.groups[j]):
            i, j = j, i
        self.partition.merge(
            self.partition.label_of(self.groups[i][0]), self.partition.label_of(self.groups[j][0])
        )
        self.groups[i] += self.groups[j]
        self.groups[j] = []
        self.sums[i] += self.sums[j]
        self.units[i] = nn.functional.normalize(self.sums[i], dim=0)
        self.size[i] = len(self.groups[i])
        self.size[j] = 0
        touched = ((self.pairs == i) | (self.pairs == j)).any(1)
        without_pairs = set(self.pairs[touched].ravel().tolist()) - {i, j}
        self.pairs = self.pairs[~touched]
        self.seen = self.seen[~touched]
        self._look_up(i)
        self._replace(*sorted(without_pairs))

    def _look_up(self, group: int) -> None:
        """Add the most similar groups that may be asked about as candidates."""
        similarity = self.units @ self.units[group]
        similarity[group] = -torch.inf
        similarity[torch.from_numpy(self.size == 0)] = -torch.inf
        found = similarity.topk(min(5 * _NEAR, len(similarity)))
        order = found.indices[found.values > -torch.inf].tolist()
        if order:
            self.around[group] = self._similarity(group, np.array(order[:_NEAR])).mean()
        askable = [j for j in order if self._askable(group, j)][:_NEAR]
        if askable:
            pairs = np.sort([(group, j) for j in askable], axis=1)
            self.pairs = np.concatenate([self.pairs, pairs])
            self.seen = np.concatenate([self.seen, self._see(pairs)])

    def _similarity(self, group: int, others: np.ndarray) -> np.ndarray:
        """Return the mean similarity of the images of a group to those of each other group."""
        return (self.sums[others] @ self.sums[group]).numpy() / (
            self.size[others] * self.size[group]
        )

    def _mean_similarity(self, group: int, others: np.ndarray) -> float:
        return float(self._similarity(group, others).mean()) if len(others) else 0.0

    def _see(self, pairs: np.ndarray) -> np.ndarray:
        """Return the inputs of p(same) for pairs of groups, (m, 2)."""
        a, b = pairs.T
        products = [np.zeros(0)]
        # In blocks, because each copies the sums of its groups.
        for block in torch.from_numpy(pairs).split(4096):
            products.append((self.sums[block[:, 0]] * self.sums[block[:, 1]]).sum(1).numpy())
        between = np.concatenate(products) / (self.size[a] * self.size[b])
        hubness = (self.around[a] + self.around[b]) / 2
        return np.stack([between - hubness, np.log(np.maximum(self.size[a], self.size[b]))], 1)

    def _question(self, i: int, j: int, probability: float) -> Question:
        similarity = float(self._similarity(i, np.array([j]))[0])
        score = probability * float(_size(self.size[i], self.size[j]))
        return Question(
            (self.shown[i], self.shown[j]),
            (self._side(i), self._side(j)),
            "merge",
            similarity,
            score,
        )

    def _side(self, group: int) -> Tensor:
        """Return the images of a group: the shown one, then by similarity to the centroid."""
        rows = torch.tensor(self.groups[group])
        similarity = self.features[rows] @ self.units[group]
        similarity[rows == self.shown[group]] = torch.inf
        return rows[similarity.argsort(descending=True, stable=True)]

    def _representative(self, group: int) -> int:
        """Return the image that is shown.

        An image with answers is preferred if it is central enough, because its answers then apply.
        """
        rows = self.groups[group]
        if len(rows) == 1:
            return rows[0]
        similarity = (self.features[rows] @ self.units[group]).numpy()
        answered = np.array([self.asker.closure.root(row) is not None for row in rows])
        central = answered & (similarity >= np.quantile(similarity, _CENTRAL))
        if central.any():
            similarity = np.where(central, similarity, -np.inf)
        return rows[int(similarity.argmax())]


def _size(a: np.ndarray | int, b: np.ndarray | int) -> np.ndarray:
    """Return the weight of a question about groups of these sizes, by which its probability is
    multiplied.
    """
    return (a * b) ** 0.7
