"""Which answers of a contradiction are likely to be wrong, by minimum cut."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from ..arguments import as_integer
from .agreement import estimate_errors, known_verdicts, votes_of
from .closure import Closure, Contradiction
from .ledger import Event, Ledger
from .posterior import UNKNOWN_RATE, Prior, answer_weight, decides, limited
from .question import Answer, Verdict

#: Suspects of a conflict that are returned.
MOST_SUSPECTS = 5
#: Capacities are integers: log-odds times this.
_SCALE = 1000
#: No answer weighs less, also where others or the features contradict it.
_LEAST_WEIGHT = 1 / _SCALE
#: An answer weighs at most this: sums of capacities fit into 32 bits up to 40,000 answers.
_MOST_WEIGHT = 50.0
#: Pairs of a component that are each tried as wrong; in a larger one only those of the chain and of
#: the minimum cut.
_MOST_TRIED = 150

_Pair = tuple[int, int]


class Suspect(NamedTuple):
    """An answer that may be wrong: its question should be asked again.

    Args:
        event: Event of the answer.
        probability: Estimated probability that it is wrong.
    """

    event: int
    probability: float


class Link(NamedTuple):
    """One answer of a contradiction.

    Args:
        event: Event of the answer; of several people's answers to a question that of the first.
        left: One image, as in the answers of the ledger: a row of the set, or its number.
        right: The other image.
        names: Paths of the two images.
        verdict: "same" or "different".
        people: Names of those who gave this verdict to the question.
        answered_at: When it was answered, in unix seconds.
        epoch: Epoch of the run that asked.
        weight: Log-odds that the answer is right, of the votes and the features.
    """

    event: int
    left: int
    right: int
    names: tuple[str, str]
    verdict: str
    people: tuple[str, ...]
    answered_at: float
    epoch: int | None
    weight: float


class Conflict(NamedTuple):
    """A contradiction, with the answers that may be wrong.

    Args:
        answer: The answer whose opposite follows from earlier ones.
        against: The earlier answers, in the order of the path between its two images.
        set_aside: Events of "same" answers that do not count because of it.
        suspects: The answers that are most likely wrong, the likeliest first.
    """

    answer: Link
    against: tuple[Link, ...]
    set_aside: tuple[int, ...]
    suspects: tuple[Suspect, ...]


def conflicts(
    ledger: Ledger, prior: Prior | None = None, limit: int = MOST_SUSPECTS
) -> list[Conflict]:
    """Return the contradictions among the answers of a ledger, and who may be wrong in each.

    Each person's answers weigh as much as the person's rate of errors says, which is estimated from
    second votes and known answers (`agreement.estimate_errors`).

    Args:
        ledger: The ledger; it is read only.
        prior: Log-odds of "same" for two images before any answer, limited to -5 to 5.
        limit: Suspects of each conflict that are returned.

    Raises:
        LedgerError: It cannot be read.
    """
    answers = ledger.answers()
    closure = Closure.replay(answers)
    if not closure.contradictions:
        return []
    events = list(ledger.events())
    rates = {
        name: estimate.rate
        for name, estimate in estimate_errors(*votes_of(events, known_verdicts(ledger))).items()
    }
    groups = _votes_by_answer(events)
    by_number = {event.id: event for event in events}
    votes = {
        # Without an order, answers to a question are not combined.
        a.event: [by_number[a.event]]
        if a.order is None
        else groups[_question_of(by_number[a.event])]
        for a in answers
    }
    weights = {a.event: _weight_of_votes(a, votes[a.event], rates) for a in answers}
    suspects = find_suspects(answers, closure, weights, prior, limit)
    by_event = {a.event: a for a in answers}

    def link(event: int) -> Link:
        answer = by_event[event]
        written = by_number[event]
        said = answer.verdict.value
        people = tuple(v.annotator for v in votes[event] if v.verdict == said)
        return Link(
            *(event, answer.left, answer.right, (str(written.left), str(written.right))),
            *(said, people, written.answered_at, written.epoch),
            _with_prior(answer, weights[event], prior),
        )

    return [
        Conflict(link(c.event), tuple(map(link, c.against)), c.set_aside, found)
        for c, found in zip(closure.contradictions, suspects, strict=True)
    ]


def find_suspects(
    answers: Sequence[Answer],
    closure: Closure | None = None,
    weights: Mapping[int, float] | None = None,
    prior: Prior | None = None,
    limit: int = MOST_SUSPECTS,
) -> list[tuple[Suspect, ...]]:
    """Return the answers that are likely wrong, for each contradiction of a closure.

    A contradiction is a "different" between two images that "same" answers connect. Either the
    "different" is wrong, or all "same" answers of some cut between the two images are. For each
    pair of the component, the minimum cut that contains it is found by maximum flow, with the
    log-odds that an answer is right as capacity. A cut explains every "different" between its two
    sides. So it is exp(w - c) times as likely as that the "different" is wrong, where c is the
    capacity of the cut and w the weight of the "different" answers across it. These probabilities,
    scaled to a sum of 1, are added up by answer. Other repairs are not considered.

    Planted errors in 480 or 720 answers about 40 identities with 6 images each, half of the
    questions within an identity, all answers of equal weight, 12 draws with 96 to 892
    contradictions in all. The last column is what an answer drawn from the contradiction reaches:

    | wrong answers | answers an image | first is wrong | one of 5 is | one at random is |
    |---|---|---|---|---|
    | 2 % | 2 | 59 % | 100 % | 25 % |
    | 5 % | 2 | 53 % | 94 % | 26 % |
    | 10 % | 2 | 42 % | 91 % | 28 % |
    | 2 % | 3 | 75 % | 95 % | 26 % |
    | 5 % | 3 | 63 % | 90 % | 27 % |
    | 10 % | 3 | 50 % | 95 % | 28 % |

    The probability of the first suspect is too high where many answers are wrong: 0.96 on average
    in the last case. Time is about 15 ms a contradiction at 7,200 answers with 2 % errors, 40 ms
    with 10 %.

    Args:
        answers: The answers in force.
        closure: Their closure, if it is there already.
        weights: Log-odds that an answer is right, by event; the same for all when not given.
        prior: Log-odds of "same" for two images before any answer, limited to -5 to 5.
        limit: Suspects of each contradiction that are returned.

    Returns:
        The suspects of each of `closure.contradictions`, the likeliest first.

    Raises:
        ValueError: A limit below 1.
    """
    as_integer("limit", limit, 1)
    answers = list(answers)
    closure = Closure.replay(answers) if closure is None else closure
    graph = _Graph(answers, closure, weights or {}, prior)
    by_event = {answer.event: answer for answer in answers}
    of_pair = partial(_ranked, graph, limit=limit)
    return [
        of_pair(*_sides_of(contradiction, by_event)) for contradiction in closure.contradictions
    ]


def _sides_of(found: Contradiction, answers: Mapping[int, Answer]) -> tuple[_Pair, list[_Pair]]:
    """Return the pair that is "different", and the pairs that are "same", of a contradiction."""
    links = [answers[event] for event in (found.event, *found.against)]
    apart = next(a for a in links if a.verdict is Verdict.DIFFERENT)
    return _pair(apart), [_pair(a) for a in links if a.verdict is Verdict.SAME]


class _Graph:
    """The answers that count, by pair of images.

    Args:
        answers: The answers in force.
        closure: Their closure.
        weights: Log-odds that an answer is right, by event.
        prior: Log-odds of "same" before any answer.
    """

    def __init__(
        self,
        answers: Iterable[Answer],
        closure: Closure,
        weights: Mapping[int, float],
        prior: Prior | None,
    ) -> None:
        #: Events of the answers by pair, and the sum of their weights.
        self.same_events: dict[_Pair, list[int]] = defaultdict(list)
        self.different_events: dict[_Pair, list[int]] = defaultdict(list)
        self.same: dict[_Pair, float] = defaultdict(float)
        self.different: dict[_Pair, float] = defaultdict(float)
        self.neighbours: dict[int, set[int]] = defaultdict(set)
        #: By the lower image of a pair that is "different", the higher ones.
        self._apart_from: dict[int, set[int]] = defaultdict(set)
        usual = answer_weight(UNKNOWN_RATE)
        for answer in filter(decides, answers):
            pair = _pair(answer)
            weight = weights.get(answer.event, usual)
            if answer.verdict is Verdict.DIFFERENT:
                self.different_events[pair].append(answer.event)
                self.different[pair] += weight
                self._apart_from[pair[0]].add(pair[1])
            elif closure.counted(answer.event):
                self.same_events[pair].append(answer.event)
                self.same[pair] += weight
                self.neighbours[pair[0]].add(pair[1])
                self.neighbours[pair[1]].add(pair[0])
        for sums, sign in ((self.same, 1.0), (self.different, -1.0)):
            for pair in sums:
                of_features = 0.0 if prior is None else sign * limited(prior(*pair))
                sums[pair] = _bounded(sums[pair] + of_features)

    def different_of(self, images: Iterable[int]) -> list[_Pair]:
        """Return the pairs that are "different" whose first image is one of these, ascending."""
        return sorted((image, other) for image in images for other in self._apart_from[image])

    def component(self, image: int) -> list[int]:
        """Return the images that "same" answers connect with an image, ascending."""
        seen = {image}
        waiting = [image]
        while waiting:
            fresh = self.neighbours[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        return sorted(seen)


class _Core:
    """The part of a component through which paths between two images may lead.

    Images with one neighbour, other than the two, are taken off until there is none: no smallest
    cut separates them from their neighbour.

    Args:
        graph: The answers.
        apart: The two images.
    """

    def __init__(self, graph: _Graph, apart: _Pair) -> None:
        component = graph.component(apart[0])
        neighbours = {image: set(graph.neighbours[image]) for image in component}
        waiting = [image for image in component if len(neighbours[image]) == 1]
        #: Images that were taken off, in this order, with their only neighbour.
        self.leaves: list[_Pair] = []
        while waiting:
            leaf = waiting.pop()
            if leaf in apart or len(neighbours[leaf]) != 1:
                continue
            (stem,) = neighbours.pop(leaf)
            self.leaves.append((leaf, stem))
            neighbours[stem].discard(leaf)
            if len(neighbours[stem]) == 1:
                waiting.append(stem)
        self.apart = apart
        self.images = sorted(neighbours)
        self.pairs = sorted(
            (image, other)
            for image, others in neighbours.items()
            for other in others
            if image < other
        )
        self._graph = graph
        number = {image: index for index, image in enumerate(self.images)}
        self._ends = np.array([[number[i], number[j]] for i, j in self.pairs])  # (pairs, 2)
        self._capacity = np.array([round(_SCALE * graph.same[pair]) for pair in self.pairs])
        self._apart = number[apart[0]], number[apart[1]]
        for leaf, stem in reversed(self.leaves):
            number[leaf] = number[stem]  # It is on the side of its neighbour.
        apart_pairs = [
            p for p in graph.different_of(component) if p[0] in number and p[1] in number
        ]
        ends = [[number[i], number[j]] for i, j in apart_pairs]
        self._different_ends = np.array(ends)  # (pairs that are "different", 2)
        self._different_weights = np.array([graph.different[pair] for pair in apart_pairs])

    def smallest_cut(self, through: int | None = None) -> tuple[frozenset[int], float] | None:
        """Return the smallest cut between the two images, and what is for it.

        Args:
            through: Index of a pair that the cut must contain.

        Returns:
            Indices of the pairs of the cut, and the weight of the "different" answers that it
            explains less that of the "same" answers that it contradicts. None if no cut contains
            the pair.
        """
        first, second = self._apart
        options: list[tuple[tuple[int, ...], tuple[int, ...]]]
        if through is None:
            options = [((first,), (second,))]
        else:
            x, y = self._ends[through].tolist()
            options = [((first, i), (second, j)) for i, j in ((x, y), (y, x))]
            options = [(s, t) for s, t in options if not set(s) & set(t)]
        cuts = [self._cut(s, t) for s, t in options]
        if not cuts:
            return None
        _, side = min(cuts, key=lambda cut: cut[0])
        crossing = np.nonzero(side[self._ends[:, 0]] != side[self._ends[:, 1]])[0].tolist()
        contradicted = math.fsum(self._graph.same[self.pairs[index]] for index in crossing)
        return frozenset(crossing), self._explained(side) - contradicted

    def _cut(self, sources: tuple[int, ...], sinks: tuple[int, ...]) -> tuple[int, np.ndarray]:
        """Return the capacity of the smallest cut, and on which side of it each image is."""
        # One node stands for all sources, and one for all sinks.
        node = np.arange(len(self.images), dtype=np.int32)
        node[list(sources)] = sources[0]
        node[list(sinks)] = sinks[0]
        i, j = node[self._ends].T
        inner = i != j
        rows = np.concatenate([i[inner], j[inner]])
        columns = np.concatenate([j[inner], i[inner]])
        capacity = np.concatenate([self._capacity[inner]] * 2).astype(np.int32)
        size = len(self.images)
        graph = sparse.csr_array((capacity, (rows, columns)), shape=(size, size), dtype=np.int32)
        found = maximum_flow(graph, sources[0], sinks[0])
        left = (graph - found.flow).tocsr()
        left.eliminate_zeros()
        reached = breadth_first_order(left, sources[0], return_predecessors=False)
        side = np.zeros(size, dtype=bool)
        side[reached] = True
        return int(found.flow_value), side[node]

    def _explained(self, side: np.ndarray) -> float:
        """Return the weight of the "different" answers between the two sides."""
        crossing = side[self._different_ends[:, 0]] != side[self._different_ends[:, 1]]
        return math.fsum(self._different_weights[crossing].tolist())


def _ranked(
    graph: _Graph, apart: _Pair, together: Sequence[_Pair], limit: int
) -> tuple[Suspect, ...]:
    """Return the suspects of a contradiction between a "different" and "same" answers.

    Args:
        graph: The answers.
        apart: The pair that is "different".
        together: Pairs of the chain of "same" answers between its images.
        limit: Suspects that are returned.
    """
    core = _Core(graph, apart)
    tried: Iterable[int] = range(len(core.pairs))
    smallest = core.smallest_cut()
    assert smallest is not None
    if len(core.pairs) > _MOST_TRIED:
        of_chain = set(together)
        in_chain = {index for index, pair in enumerate(core.pairs) if pair in of_chain}
        tried = sorted(in_chain | smallest[0])
    #: Log of how likely each cut is, compared with a wrong "different".
    repairs = dict([smallest])
    for index in tried:
        found = core.smallest_cut(through=index)
        if found is not None:
            repairs[found[0]] = max(found[1], repairs.get(found[0], -math.inf))
    most = max(0.0, *repairs.values())
    total = math.exp(-most) + math.fsum(math.exp(value - most) for value in repairs.values())
    wrong: dict[int, float] = defaultdict(float)
    for event in graph.different_events[apart]:
        wrong[event] = math.exp(-most) / total
    for cut, value in repairs.items():
        for event in chain.from_iterable(graph.same_events[core.pairs[i]] for i in cut):
            wrong[event] += math.exp(value - most) / total
    # Of answers that are equally likely wrong, the "different" first: a wrong "same" is mostly one
    # between two groups with several "different" answers, and then it is no tie. Then the oldest.
    # Rounded, so that sums in another order do not change the order of the suspects.
    apart_events = set(graph.different_events[apart])
    ranked = sorted(wrong, key=lambda e: (-round(wrong[e], 9), e not in apart_events, e))
    return tuple(Suspect(event, min(1.0, wrong[event])) for event in ranked[:limit])


def _question_of(event: Event) -> tuple[object, ...]:
    """Return what the votes of several people have in common: the question, and the pair."""
    if event.question is None:
        return (event.id,)
    return (event.question, *sorted((str(event.left), str(event.right))))


def _votes_by_answer(events: Iterable[Event]) -> dict[tuple[object, ...], list[Event]]:
    """Return the answers in force by the question, and the pair, that they are about."""
    found: dict[tuple[object, ...], list[Event]] = defaultdict(list)
    for event in events:
        if event.kind == "answer" and event.undone_by is None:
            found[_question_of(event)].append(event)
    return found


def _weight_of_votes(answer: Answer, votes: Iterable[Event], rates: Mapping[str, float]) -> float:
    """Return the log-odds that an answer is right, of the votes of all people."""
    total = 0.0
    for vote in votes:
        weight = answer_weight(rates.get(vote.annotator, UNKNOWN_RATE))
        if vote.verdict == answer.verdict.value:
            total += weight
        elif vote.verdict in (Verdict.SAME.value, Verdict.DIFFERENT.value):
            total -= weight
    return _bounded(total)


def _with_prior(answer: Answer, weight: float, prior: Callable[[int, int], float] | None) -> float:
    if prior is None:
        return weight
    of_features = limited(prior(*_pair(answer)))
    return _bounded(weight + (of_features if answer.verdict is Verdict.SAME else -of_features))


def _bounded(weight: float) -> float:
    return min(max(weight, _LEAST_WEIGHT), _MOST_WEIGHT)


def _pair(answer: Answer) -> _Pair:
    return min(answer.left, answer.right), max(answer.left, answer.right)
