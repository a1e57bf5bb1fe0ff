"""`gain`: the question first that is expected to set the most pairs of images right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

from ...answers.asker import Asker
from ...answers.question import Question, Verdict
from ...clustering.neighbours import nearest_neighbours
from ...config import QuestionConfig
from ..partition import Partition, Split
from ..snps import clusters, propose_splits

#: A split whose gain, weighted, is expected to be less than this is left to a later round.
_LEAST_SPLIT = 0.5
#: Pairs that count like one that a merge brings in, for each that a split takes out: F1 / (2 - F1) at an F1 of 3/4.
_SPLIT_WEIGHT = 0.6
#: Merges go on until the best split is expected to gain so many times as much as the best merge.
_PATIENCE = 1.5
#: An answered image stands for its group when it is not among this share of least central members.
_CENTRAL = 0.25
#: Priors, in standard deviations: of p(different) for the similarity of medoids, of p(same) for relative similarity and size.
_DIFFERENT, _SAME = (-0.5, [-1.0]), (-1.7, [1.2, -0.7])
#: Least standard deviation, so that a few questions that are alike do not make the next one look certain.
_LEAST_SCALE = 0.01
#: Neighbours of a group that are candidates at a time; more are looked up when all of these are decided.
_NEAR = 10


class Calibration:
    """p(yes) of a question from what is seen of it: logistic regression on the answers so far, pulled to a prior.

    Args:
        bias: Prior log-odds at the mean of what is seen.
        weights: (d,) prior change of the log-odds over one standard deviation of each of the d figures seen.
    """

    def __init__(self, bias: float, weights: Sequence[float]) -> None:
        self._prior = np.array([bias, *weights])
        self._weights = self._prior.copy()
        self._precision = np.diag([1.0, *(4.0 for _ in weights)])
        self._mean, self._scale = np.zeros(len(weights)), np.zeros(len(weights))
        self._seen: list[np.ndarray] = []
        self._answers: list[bool] = []

    def scale(self, seen: np.ndarray) -> None:
        """Take means and standard deviations from the first questions that there are, (m, d)."""
        if not self._scale.any() and len(seen):
            self._mean, self._scale = (
                seen.mean(0),
                np.maximum(seen.std(0), _LEAST_SCALE if len(seen) > 8 else 0.1),
            )

    def __call__(self, seen: np.ndarray) -> np.ndarray:
        """Probability of each question, (m, d) -> (m,)."""
        return expit(self._inputs(seen) @ self._weights)

    def learn(self, seen: np.ndarray, yes: bool) -> None:
        """Take in one answer, (d,): Newton's method from where the last one ended."""
        self._seen.append(self._inputs(seen[None])[0])
        self._answers.append(yes)
        x, y = np.array(self._seen), np.array(self._answers)
        for _ in range(8):
            p = expit(x @ self._weights)
            gradient = x.T @ (y - p) - self._precision @ (self._weights - self._prior)
            hessian = (x * (p * (1 - p))[:, None]).T @ x + self._precision
            self._weights = self._weights + np.clip(np.linalg.solve(hessian, gradient), -1, 1)

    def _inputs(self, seen: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones((len(seen), 1)), (seen - self._mean) / self._scale], 1)


def ask_by_expected_gain(
    features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig
) -> None:
    """Ask until no question is left that could change something, or the budget is spent.

    Splits inside clusters and merges of cluster centroids and single images, whichever is expected to gain more, the best
    first; centroids and candidates are brought up to date after every answer. The expected gain of a question is
    p * (|A| |B|)^0.7, with p the probability that the answer changes the labels, learnt from the answers of the round.
    A pair that a split takes out of a cluster counts `_SPLIT_WEIGHT` of one that a merge brings in.

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
    different, same = Calibration(*_DIFFERENT), Calibration(*_SAME)
    while True:
        splits = _Splits(
            propose_splits(features, partition.current(), "root"), partition, asker, different
        )
        merges = _Merges(features, partition, asker, same)
        asked, parted = 0, False
        while (gain := splits.best()) >= max(merges.best(), _LEAST_SPLIT):
            parted |= splits.ask() is Verdict.DIFFERENT
            asked += 1
        if parted:
            merges = _Merges(features, partition, asker, same)
        while (best := merges.best()) > 0 and (gain < _LEAST_SPLIT or gain <= _PATIENCE * best):
            merges.ask()
            asked += 1
        if not asked:
            return


class _Splits:
    """Questions that may split a cluster, and what became of them."""

    def __init__(
        self, questions: list[Question], partition: Partition, asker: Asker, different: Calibration
    ) -> None:
        self.partition, self.asker, self.different = partition, asker, different
        self.splits = Split.of_clusters(questions)
        self.questions = [q for q in questions if self._is_open(q)]
        self.seen = np.array([[q.similarity] for q in self.questions]).reshape(-1, 1)
        self.size = np.array([_size(*map(len, q.groups)) for q in self.questions])
        different.scale(self.seen)

    def best(self) -> float:
        """Expected gain of the best question, 0 when none is left."""
        while self.questions:
            gain = self.different(self.seen) * self.size
            best = int(gain.argmax())
            if self._is_open(self.questions[best]):
                self._best = best
                return _SPLIT_WEIGHT * float(gain[best])
            self._drop(best)
        return 0.0

    def ask(self) -> Verdict:
        """Ask the best question."""
        question = self._drop(self._best)
        verdict = self.asker.ask(question)
        if verdict in (Verdict.SAME, Verdict.DIFFERENT):
            self.different.learn(np.array([question.similarity]), verdict is Verdict.DIFFERENT)
        self.splits[question.cluster].answer(question, verdict, self.partition)
        return verdict

    def _is_open(self, question: Question) -> bool:
        """Whether it can be asked; a known answer is acted on at once."""
        if self.asker.can_ask(*question.images):
            return True
        self.splits[question.cluster].answer(question, self.asker.ask(question), self.partition)
        return False

    def _drop(self, place: int) -> Question:
        self.seen, self.size = np.delete(self.seen, place, 0), np.delete(self.size, place)
        return self.questions.pop(place)


class _Merges:
    """Candidate merges of groups: the most similar groups of each, without those whose answer is known.

    p(same) is judged from the mean similarity of the images of two groups, less the mean of each group's to its nearest groups
    (so that a group that is near to everything is not near to anything), and from the size of the larger: two large groups
    that were not clustered together more often differ.
    """

    def __init__(
        self, features: Tensor, partition: Partition, asker: Asker, same: Calibration
    ) -> None:
        self.features, self.partition, self.asker, self.same = (
            features.float().cpu(),
            partition,
            asker,
            same,
        )
        for row in (partition.current() < 0).nonzero()[:, 0].tolist():
            partition.label_of(row)
        self.groups = [g.tolist() for g in clusters(partition.current())]
        self.sums = (
            torch.stack([self.features[g].sum(0) for g in self.groups])
            if self.groups
            else self.features[:0]
        )
        self.units = nn.functional.normalize(self.sums, dim=1)
        self.size = np.array([len(g) for g in self.groups], dtype=np.float64)
        self.shown = [self._representative(i) for i in range(len(self.groups))]
        near = nearest_neighbours(self.units, _NEAR + 1)[:, 1:]
        #: Mean similarity of each group to its nearest groups.
        self.around = np.array(
            [
                self._similarity(i, near[i].numpy()).mean() if near.numel() else 0
                for i in range(len(near))
            ]
        )
        pairs = torch.stack([torch.arange(len(near))[:, None].expand_as(near), near], 2).reshape(
            -1, 2
        )
        self.pairs = pairs.sort(1).values.unique(dim=0).numpy()
        self.seen = self._see(self.pairs)
        same.scale(self.seen)

    def best(self) -> float:
        """Expected gain of the best candidate, 0 when none is left."""
        while len(self.pairs):
            gain = self.same(self.seen) * _size(*self.size[self.pairs.T])
            best = int(gain.argmax())
            i, j = self.pairs[best].tolist()
            if self._askable(i, j):
                self._best = best
                return float(gain[best])
            self._drop(best)
            known = self.asker.closure.verdict(self.shown[i], self.shown[j])
            if known is Verdict.SAME and not self._apart(i, j):
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

    def _drop(self, place: int) -> tuple[int, int]:
        i, j = self.pairs[place].tolist()
        self.pairs, self.seen = np.delete(self.pairs, place, 0), np.delete(self.seen, place, 0)
        return i, j

    def _replace(self, *groups: int) -> None:
        """Look for further candidates of groups that have none left."""
        for group in groups:
            if not (self.pairs == group).any():
                self._look_up(group)

    def _askable(self, i: int, j: int) -> bool:
        """Whether the answers so far leave open what two groups are to each other."""
        a, b = self.shown[i], self.shown[j]
        return (
            self.asker.can_ask(a, b) or self.asker.awaits_confirmation(a, b)
        ) and not self._apart(i, j)

    def _apart(self, i: int, j: int) -> bool:
        """Whether two groups hold images that are known to be different."""
        return bool(self._roots(i) & self._enemies(j))

    def _roots(self, group: int) -> set[int]:
        return {
            root
            for image in self.groups[group]
            if (root := self.asker.closure.root(image)) is not None
        }

    def _enemies(self, group: int) -> set[int]:
        return set().union(*(self.asker.closure.cannot_links(root) for root in self._roots(group)))

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
        self.size[i], self.size[j] = len(self.groups[i]), 0
        touched = ((self.pairs == i) | (self.pairs == j)).any(1)
        left_alone = set(self.pairs[touched].ravel().tolist()) - {i, j}
        self.pairs, self.seen = self.pairs[~touched], self.seen[~touched]
        self._look_up(i)
        self._replace(*sorted(left_alone))

    def _look_up(self, group: int) -> None:
        """Offer the most similar groups that may be asked about."""
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
        """Mean similarity of the images of a group to those of others."""
        return (self.sums[others] @ self.sums[group]).numpy() / (
            self.size[others] * self.size[group]
        )

    def _see(self, pairs: np.ndarray) -> np.ndarray:
        """What p(same) is judged from, (m, 2)."""
        a, b = pairs.T
        between = np.concatenate(
            [np.zeros(0)]
            + [
                (self.sums[x] * self.sums[y]).sum(1).numpy()
                for x, y in zip(
                    *(torch.from_numpy(side).split(4096) for side in (a, b)), strict=True
                )
            ]
        ) / (self.size[a] * self.size[b])
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
        """Images of a group: the one that is shown first, the others by descending similarity to the centroid."""
        rows = torch.tensor(self.groups[group])
        similarity = self.features[rows] @ self.units[group]
        similarity[rows == self.shown[group]] = torch.inf
        return rows[similarity.argsort(descending=True, stable=True)]

    def _representative(self, group: int) -> int:
        """The image that is shown: one with answers, when it is central enough, because the answers then carry over."""
        rows = self.groups[group]
        if len(rows) == 1:
            return rows[0]
        similarity = (self.features[rows] @ self.units[group]).numpy()
        answered = np.array([self.asker.closure.root(row) is not None for row in rows])
        central = answered & (similarity >= np.quantile(similarity, _CENTRAL))
        return rows[
            int(
                np.where(central, similarity, -np.inf).argmax()
                if central.any()
                else similarity.argmax()
            )
        ]


def _size(a: np.ndarray | int, b: np.ndarray | int) -> np.ndarray:
    """How much a question about groups of these sizes weighs, beside its probability."""
    return (a * b) ** 0.7
