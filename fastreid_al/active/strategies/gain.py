"""The `gain` strategy: the question that is expected to correct the most pairs comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...answers.asker import Asker
from ...answers.question import Question, Verdict
from ...answers.rounds import Outlook
from ...config import QuestionConfig
from ..calibration import Calibration, probability
from ..group_graph import (
    Groups,
    Neighbourhoods,
    Pairs,
    graph_of_images,
    linkage_of,
    pairs_of_groups,
    parts_of,
)
from ..partition import Partition
from ..snps import propose_splits

#: Questions or sheets between two looks at all candidates. Within them a cluster is asked about
#: once.
_WINDOW = 10
#: Candidates for merges whose probability is computed: the likeliest by linkage and size.
_CANDIDATES = 3000


class _Aim(NamedTuple):
    """What a question is worth.

    Args:
        size_power: The expected gain is the probability that the answer changes the clusters, times
            (|A| |B|)^size_power.
        split_weight: Weight of a split, where a merge has weight 1.
        counts: What the outlook counts.
    """

    size_power: float
    split_weight: float
    counts: Literal["pairs", "clusters"]


_AIMS = {
    # F1 of pairs. A pair that a split sets apart counts F1 / (2 - F1) of one that a merge joins,
    # here at an F1 of 0.92.
    "pairs": _Aim(0.8, 0.85, "pairs"),
    # Completeness of classes. It rises by about the same with every merge, and falls with splits.
    "classes": _Aim(0.2, 0.0, "clusters"),
}
#: An answered image represents its group unless it is among this share of least central members.
_CENTRAL = 0.25
#: Prior of p(same) of two clusters: log-odds at the mean, and change by one standard deviation of
#: each column of `_merge_inputs`.
_MERGE_PRIOR = (-1.3, (0.5, 0.1, -0.3, 0.0, 0.4, -0.2, -0.3, -0.3))
#: Prior of p(same) of two groups of a cluster, for the columns of `_split_inputs`.
_SPLIT_PRIOR = (0.3, (0.8, 0.0, 0.0, 0.6))
#: Rough p(same) by which candidates for merges are chosen: log-odds at 0, and their change with the
#: columns of `_linkage_inputs`.
_LIKELY = (-5.0, (11.0, 0.0, -0.3))
#: Standardised inputs are limited to plus and minus this.
_LIMIT = 4.0
#: What the answers of an epoch count in the next one, whose features are others.
_FADING = 0.5
#: Time for a further image of a sheet, over the time for a pair.
_MORE_TIME = 1 / 7
#: Questions that the outlook is about.
_AHEAD = 50
#: Names of what is learnt, in `Asker.observations`.
_MERGE = "merge"
_SPLIT = "split"


def ask_by_expected_gain(
    features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig
) -> None:
    """Ask the question with the greatest expected gain until none could change the labels.

    Questions are about merges of clusters and of single images that are connected in the Jaccard
    graph or have near centroids, and about splits of a cluster into the groups that SNPS finds
    (UCAL, Sec. 3.2.1). The expected gain depends on `config.aim`. For "pairs" it is
    p (|A| |B|)^0.8, where p is the probability that the answer changes the labels, and a split
    counts 0.85 of a merge. For "classes" it is p (|A| |B|)^0.2, and there are no splits.

    p is learnt from the answers of this round, and with half the weight from those of the round
    before: by a logistic regression with a prior for merges, from the mean Jaccard similarity of
    the two clusters, their sizes, the similarity of their centroids, alone and compared with their
    neighbourhoods, cameras, and the place of each among the other's neighbours; and by another one
    for splits, from the mean Jaccard similarity, the sizes, and the similarity of the medoids.

    A cluster that was asked about is divided as soon as answers contradict it, also those about the
    small images beside the two of a question. A merge joins only the parts that belong to the two
    images.

    With `config.sheet` above 1, and an annotator that takes sheets, a cluster is compared with
    several others at a time: with those whose expected gains are the greatest in relation to the
    time. After every ten questions or sheets all candidates are computed anew.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) int64, -1 for an image outside every cluster.
        asker: Asks the annotator and records the answers; its cameras are used if it has them.
        config: Its `aim` and `sheet` count.

    Raises:
        OutOfQuestions: The budget is spent.
    """
    state = _Round(features, labels, asker, _AIMS[config.aim], config.sheet)
    while True:
        asker.make_room()
        if not state.ask_window():
            if not asker.is_waiting():
                break
            # The answer may make further questions possible.
            asker.settle_first()


class _Candidates(NamedTuple):
    """Questions that could be asked.

    Args:
        items: (m,) int64 number of the pair of groups, or of the split.
        inputs: (m, d) what the probability is computed from.
        same: (m,) p(same).
        gain: (m,) expected gain.
        pairs: (m,) pairs of images that the answer is expected to change.
    """

    items: np.ndarray
    inputs: np.ndarray
    same: np.ndarray
    gain: np.ndarray
    pairs: np.ndarray


class _Sheet(NamedTuple):
    """Questions about merges of one group with others, which are asked at a time.

    Args:
        group: The group.
        candidates: Numbers of the candidates, the best first.
        value: Expected gain, over the time that the sheet takes in relation to a pair.
    """

    group: int
    candidates: list[int]
    value: float


class _Round:
    """A round of questions: the clusters as they are, and what was learnt from the answers."""

    def __init__(
        self, features: Tensor, labels: Tensor, asker: Asker, aim: _Aim, sheet: int
    ) -> None:
        self.aim = aim
        #: Most clusters that are compared with one cluster at a time.
        self.sheet = sheet if asker.takes_sheets else 1
        self.graph = graph_of_images(features)
        self.features = features.float().cpu()  # (n, D)
        self.asker = asker
        self.partition = Partition(labels)
        # Each image outside every cluster becomes a cluster of its own.
        for row in (labels < 0).nonzero()[:, 0].tolist():
            self.partition.label_of(row)
        asker.current_labels = self.partition.labels
        self.merging = Calibration(*_MERGE_PRIOR, limit=_LIMIT)
        self.splitting = Calibration(*_SPLIT_PRIOR, limit=_LIMIT)
        #: Images of the splits that were asked about, which may be shown by others.
        self.asked: set[tuple[int, int]] = set()
        self.neighbourhoods = Neighbourhoods()
        #: Images of each cluster when SNPS last looked at it, and the splits that it found.
        self.known_splits: dict[int, tuple[list[int], list[Question]]] = {}
        for name, calibration in ((_MERGE, self.merging), (_SPLIT, self.splitting)):
            for epoch, inputs, answer in asker.observations.get(name, ()):
                count = _FADING ** (asker.epoch - epoch)
                calibration.remember(np.array([inputs]), [answer], count)
            calibration.fit()

    def ask_window(self) -> bool:
        """Offer up to ten questions or sheets, best first; return whether there was one."""
        window = _Window(self)
        merges = window.merges()
        splits = window.splits()
        gains = np.concatenate([merges.gain, splits.gain])
        best = np.argsort(-gains, kind="stable").tolist()
        self.asker.outlook = window.outlook(merges, splits, best)
        sheets = window.sheets(merges)
        values = np.concatenate([[sheet.value for sheet in sheets], splits.gain])
        asked = 0
        for at in np.argsort(-values, kind="stable").tolist():
            if at < len(sheets):
                asked += self._ask_merges(window, merges, sheets[at])
            else:
                asked += self._ask_split(window, splits, at - len(sheets))
            if asked == _WINDOW:
                break
        return asked > 0

    def _ask_merges(self, window: _Window, merges: _Candidates, sheet: _Sheet) -> bool:
        """Ask whether groups are the same identity as one group, as far as it can be asked now.

        Returns:
            Whether anything was asked.
        """
        self.asker.make_room()
        if sheet.group in window.used:
            return False
        questions, inputs, others = [], [], []
        for at in sheet.candidates:
            item = merges.items[at]
            a, b = int(window.pairs.first[item]), int(window.pairs.second[item])
            other = b if a == sheet.group else a
            if other in window.used:
                continue
            sides = window.sides[sheet.group], window.sides[other]
            question = self._question(sides, "merge", float(merges.gain[at]))
            if question is None:
                continue
            questions.append(replace(question, probability=float(merges.same[at])))
            inputs.append(merges.inputs[at])
            others.append(other)
        if not questions:
            return False
        window.used.update((sheet.group, *others))

        def merge(verdicts: list[Verdict]) -> None:
            self._learn(verdicts, _MERGE, self.merging, inputs)
            # Images that were marked as odd leave their group before it is merged.
            self._divide(window.names[group] for group in (sheet.group, *others))
            for question, verdict in zip(questions, verdicts, strict=True):
                if verdict is Verdict.SAME:
                    self.partition.merge(*map(self.partition.label_of, question.images))
            # What is known of one group may contradict what is known of another.
            self._divide([self.partition.label_of(questions[0].images[0])])

        self._offer(questions, merge)
        return True

    def _ask_split(self, window: _Window, splits: _Candidates, at: int) -> bool:
        """Ask whether two groups of a cluster are the same identity, unless it cannot be asked."""
        self.asker.make_room()
        split = window.proposed[int(splits.items[at])]
        group = int(window.groups.labels[split.images[0]])
        if group in window.used:
            return False
        one, other = (images.tolist() for images in split.groups)
        question = self._question((one, other), "split", float(splits.gain[at]), split.cluster)
        if question is None:
            return False
        window.used.add(group)
        self.asked.add(split.images)
        inputs = [splits.inputs[at]]

        def divide(verdicts: list[Verdict]) -> None:
            self._learn(verdicts, _SPLIT, self.splitting, inputs)
            self._divide([window.names[group]])

        self._offer([question], divide)
        return True

    def _divide(self, labels: Iterable[int]) -> None:
        """Divide those clusters that hold images known to be different.

        The largest part of a cluster keeps its label.
        """
        closure = self.asker.closure
        for label in labels:
            images = sorted(self.partition.members(label))
            roots = {root for root in map(closure.root, images) if root is not None}
            if any(closure.cannot_links(root) & roots for root in roots):
                for part in parts_of(self.graph, images, closure)[1:]:
                    self.partition.move(part, self.partition.new_label())

    def splits(self, names: list[int], sides: list[list[int]]) -> list[Question]:
        """Return the splits of all clusters that SNPS proposes; only changed ones are looked at.

        Args:
            names: Label of each cluster.
            sides: Images of each cluster.
        """
        changed = torch.full((self.graph.n,), -1)
        for name, images in zip(names, sides, strict=True):
            if self.known_splits.get(name, ([], []))[0] != images:
                self.known_splits[name] = images, []
                changed[images] = name
        for question in propose_splits(self.features, changed, "root"):
            self.known_splits[question.cluster][1].append(question)
        return [question for name in names for question in self.known_splits[name][1]]

    def _offer(self, questions: list[Question], then: Callable[[list[Verdict]], None]) -> None:
        """Ask a question, or several on a sheet."""
        if len(questions) == 1:
            self.asker.offer(questions[0], lambda verdict: then([verdict]))
        else:
            self.asker.offer_sheet(questions, then)

    def _learn(
        self,
        verdicts: list[Verdict],
        name: str,
        calibration: Calibration,
        inputs: list[np.ndarray],
    ) -> None:
        """Learn from answers for this round and for later ones."""
        error = self.asker.expected_error or 0.0
        for verdict, of_question in zip(verdicts, inputs, strict=True):
            if verdict not in (Verdict.SAME, Verdict.DIFFERENT):
                continue
            answer = 1 - error if verdict is Verdict.SAME else error
            calibration.learn_all(of_question[None], [answer])
            (standardised,) = calibration.standardised(of_question[None])
            self.asker.observe(name, standardised.tolist(), answer)

    def _question(
        self,
        sides: tuple[list[int], list[int]],
        reason: str,
        score: float,
        cluster: int = -1,
    ) -> Question | None:
        """A question about two groups of images, each shown by its most central image.

        None if the answers so far leave nothing to ask about these images.
        """
        first, second = (self._by_centrality(rows) for rows in sides)
        shown = int(first[0]), int(second[0])
        if not (self.asker.can_ask(*shown) or self.asker.awaits_confirmation(*shown)):
            return None
        similarity = float(self.features[shown[0]] @ self.features[shown[1]])
        return Question(shown, (first, second), reason, similarity, score, cluster)

    def _by_centrality(self, images: list[int]) -> Tensor:
        """Images by similarity to their mean, the one that is shown first.

        An image with answers is shown if it is central enough, because its answers then apply.
        Where answers may be wrong, the others come by similarity to it: they confirm its merges,
        and those are the likeliest to show the same identity.
        """
        rows = torch.tensor(images)
        if len(rows) == 1:
            return rows
        of_rows = self.features[rows]  # (m, D)
        similarity = of_rows @ of_rows.mean(0)  # (m,)
        answered = torch.tensor([self.asker.closure.root(row) is not None for row in images])
        central = answered & (similarity >= similarity.quantile(_CENTRAL))
        if bool(central.any()):
            shown = similarity.masked_fill(~central, -torch.inf).argmax()
            similarity[shown] = torch.inf
        if self.asker.expected_error != 0:
            shown = similarity.argmax()
            similarity = of_rows @ of_rows[shown]
            similarity[shown] = torch.inf
        return rows[similarity.argsort(descending=True, stable=True)]


class _Window:
    """The candidates of a round at one moment."""

    def __init__(self, state: _Round) -> None:
        self.state = state
        current = state.partition.current()
        self.groups = Groups.of_labels(state.features, current, state.asker.cameras)
        order = self.groups.labels.argsort(stable=True)
        #: Label in the partition of each group, and its images.
        self.names = current.unique().tolist()
        self.sides = [rows.tolist() for rows in order.split(self.groups.sizes.tolist())]
        near, self.around = state.neighbourhoods.update(
            self.names, self.sides, self.groups.centroids
        )
        #: Pairs of groups that could be merged.
        self.pairs = self._open_pairs(pairs_of_groups(state.graph, self.groups, near))
        #: Questions about splits, and the group of each image in the split of its cluster.
        self.proposed = []
        if state.aim.split_weight > 0:
            self.proposed = self._open_splits(state.splits(self.names, self.sides))
        self.parts = torch.full((state.graph.n,), -1)
        for number, images in enumerate(_groups_of(self.proposed)):
            self.parts[images] = number
        #: Groups that were asked about, also those of open questions.
        self.used: set[int] = {
            int(self.groups.labels[image])
            for question in state.asker.open_questions()
            for image in question.images
        }

    def _open_pairs(self, pairs: Pairs) -> Pairs:
        """The pairs of groups that may be asked about: not known to be different, nor asked."""
        asker = self.state.asker
        closure = asker.closure
        images = asker.closed_pairs()
        images += [
            (root, other) for root in closure.components() for other in closure.cannot_links(root)
        ]
        if not images:
            return pairs
        groups = self.groups.labels[torch.tensor(images)].sort(dim=1).values  # (m, 2)
        low, high = groups.numpy().T
        count = len(self.groups.sizes)
        closed = np.isin(pairs.first * count + pairs.second, low * count + high)
        return Pairs(*(values[~closed] for values in pairs))

    def _open_splits(self, proposed: list[Question]) -> list[Question]:
        """The splits that may be asked about: nothing is known to be the same in both groups."""
        state = self.state
        component = torch.full((state.graph.n,), -1)
        for number, images in enumerate(state.asker.closure.components().values()):
            component[list(images)] = number
        found = []
        for split in proposed:
            first, second = (component[group] for group in split.groups)
            known_same = bool(torch.isin(first[first >= 0], second).any())
            if not known_same and split.images not in state.asked:
                found.append(split)
        return found

    def merges(self) -> _Candidates:
        """The likeliest pairs of groups that could be merged."""
        a, b, linkage, _ = self.pairs
        sizes = np.stack([self.groups.sizes[a], self.groups.sizes[b]], axis=1)
        likely = probability(_linkage_inputs(linkage, sizes) @ _LIKELY[1] + _LIKELY[0])
        worth = sizes.prod(1) ** self.state.aim.size_power
        items = np.argsort(-likely * worth, kind="stable")[:_CANDIDATES]
        inputs = self._merge_inputs(items, sizes[items])
        self.state.merging.scale(inputs)
        same = self.state.merging(inputs)
        pairs = same * sizes[items].prod(1)
        return _Candidates(items, inputs, same, same * worth[items], pairs)

    def _merge_inputs(self, items: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """What p(same) of pairs of groups is computed from, (m, 8)."""
        groups = self.groups
        a, b, linkage, ranks = (part[items] for part in self.pairs)
        cosine = groups.cosines(a, b)
        nearby = (self.around[a] + self.around[b]) / 2
        columns = [
            *_linkage_inputs(linkage, sizes).T,
            cosine,
            cosine - nearby,
            groups.same_camera(a, b),
            *np.log1p(np.sort(ranks, axis=1)).T,
        ]
        return np.stack(columns, axis=1)

    def splits(self) -> _Candidates:
        """The splits that SNPS proposes."""
        images = np.array([q.images for q in self.proposed], dtype=np.int64).reshape(-1, 2)
        sizes = np.array([list(map(len, q.groups)) for q in self.proposed]).reshape(-1, 2)
        first, second = self.parts.numpy()[images].T
        linkage = linkage_of(self.state.graph, self.parts, first, second)
        similarity = np.array([q.similarity for q in self.proposed])
        inputs = np.column_stack([_linkage_inputs(linkage, sizes), similarity])
        self.state.splitting.scale(inputs)
        same = self.state.splitting(inputs)
        wrong = 1 - same
        pairs = sizes.prod(1)
        gain = wrong * pairs**self.state.aim.size_power * self.state.aim.split_weight
        items = np.arange(len(self.proposed))
        return _Candidates(items, inputs, same, gain, wrong * pairs)

    def sheets(self, merges: _Candidates) -> list[_Sheet]:
        """The sheets that could be asked; one for each candidate if the annotator takes pairs.

        A sheet has so many of the best candidates of its group that its value is the greatest.
        """
        first, second = self.pairs.first[merges.items], self.pairs.second[merges.items]
        if self.state.sheet == 1:
            return [
                _Sheet(group, [at], gain)
                for at, (group, gain) in enumerate(
                    zip(first.tolist(), merges.gain.tolist(), strict=True)
                )
            ]
        groups = np.concatenate([first, second])
        candidates = np.tile(np.arange(len(first)), 2)
        order = np.lexsort((-merges.gain[candidates], groups))
        times = 1 + _MORE_TIME * np.arange(self.state.sheet)
        sheets = []
        starts = np.unique(groups[order], return_index=True)[1][1:]
        for part in np.split(order, starts):
            best = candidates[part[: self.state.sheet]]
            values = merges.gain[best].cumsum() / times[: len(best)]
            count = int(values.argmax()) + 1 if len(values) else 0
            if count:
                group = int(groups[part[0]])
                sheets.append(_Sheet(group, best[:count].tolist(), float(values[count - 1])))
        return sheets

    def outlook(self, merges: _Candidates, splits: _Candidates, best: list[int]) -> Outlook:
        """What the next questions are expected to change.

        Args:
            merges: The candidates for merges.
            splits: The candidates for splits.
            best: Numbers of candidates, best first: the merges, then the splits.
        """
        counts = self.state.aim.counts
        if counts == "pairs":
            changed = np.concatenate([merges.pairs, splits.pairs])
            total = int((self.groups.sizes * (self.groups.sizes - 1) // 2).sum())
        else:
            changed = np.concatenate([merges.same, np.zeros(len(splits.items))])
            total = len(self.groups.sizes)
        following: list[int] = []
        uses: Counter[int] = Counter()
        for at in best:
            groups = self._groups(merges, at)
            # A cluster is asked about once in a window.
            if max(uses[group] for group in groups) < _AHEAD // _WINDOW:
                uses.update(groups)
                following.append(at)
            if len(following) == _AHEAD:
                break
        return Outlook(len(following), float(changed[following].sum()), total, counts)

    def _groups(self, merges: _Candidates, at: int) -> tuple[int, ...]:
        """The groups that a candidate is about."""
        if at < len(merges.items):
            item = merges.items[at]
            return int(self.pairs.first[item]), int(self.pairs.second[item])
        images = self.proposed[at - len(merges.items)].images
        return (int(self.groups.labels[images[0]]),)


def _groups_of(questions: list[Question]) -> list[Tensor]:
    """The groups of splits, each once."""
    groups = {int(group[0]): group for question in questions for group in question.groups}
    return list(groups.values())


def _linkage_inputs(linkage: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Root of the mean similarity (m,), and logarithms of the lower and the greater size (m, 2)."""
    return np.stack([np.sqrt(linkage), np.log(sizes.min(1)), np.log(sizes.max(1))], axis=1)
