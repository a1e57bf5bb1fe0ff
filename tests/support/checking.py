"""People who answer questions and err at planted rates, checked as the annotation service does."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from fastreid_al.answers.agreement import ErrorEstimate, Gold, estimate_errors
from fastreid_al.answers.agreement import Vote as Said
from fastreid_al.answers.checks import Checks, errs_often
from fastreid_al.answers.votes import Vote, standing

#: As in `answers.quality`: events between two estimates, and answers that must have been compared.
_FRESH = 20
_ENOUGH = 10


class Found(NamedTuple):
    """What came of a simulation.

    Args:
        pointed_out: Answers of each person who was pointed out until they were, by name.
        extra: Answers beyond the first to each question, and to questions whose answer is known,
            over the questions that were settled.
        estimates: The last estimates.
    """

    pointed_out: dict[str, int]
    extra: float
    estimates: dict[str, ErrorEstimate]


class _Simulation:
    def __init__(self, seed: int, checks: Checks, rates: Mapping[str, float]) -> None:
        self.draw = random.Random(seed)
        # Draws of the checks depend on the number of a question, which is another one by seed.
        self.first = self.last = 100_000 * seed
        self.checks = checks
        self.rates = rates
        self.names = list(rates)
        self.truth: dict[int, bool] = {}
        self.votes: dict[int, list[Vote]] = defaultdict(list)
        self.waiting: list[int] = []
        self.agreed: dict[int, bool] = {}
        self.seen: dict[str, set[int]] = defaultdict(set)
        self.said: list[Said] = []
        self.gold: list[Gold] = []
        self.given: Counter[str] = Counter()
        self.estimates: dict[str, ErrorEstimate] = {}
        self.pointed_out: dict[str, int] = {}

    def step(self) -> None:
        """Let one person give one answer."""
        name = self.draw.choice(self.names)
        self.given[name] += 1
        known = [q for q in self.agreed if q not in self.seen[name]]
        is_due = self.draw.random() < self.checks.share_known(self.estimates.get(name))
        if is_due and known:
            question = self.draw.choice(known)
            said = self._says(name, question)
            self.gold.append((name, question, said, self.agreed[question]))
        else:
            question = self._next(name)
            said = self._says(name, question)
            self.said.append((name, question, said))
            person = self.names.index(name) + 1
            verdict = "same" if said else "different"
            self.votes[question].append(Vote(person, verdict, sum(self.given.values())))
            self._settle(question)
        if sum(self.given.values()) % _FRESH == 0:
            self._estimate()

    def _says(self, name: str, question: int) -> bool:
        self.seen[name].add(question)
        return self.truth[question] != (self.draw.random() < self.rates[name])

    def _next(self, name: str) -> int:
        """The oldest question that waits for a further person, or a new one."""
        for question in self.waiting:
            if question not in self.seen[name]:
                return question
        self.last += 1
        self.truth[self.last] = self.draw.random() < 0.4
        self.waiting.append(self.last)
        return self.last

    def _settle(self, question: int) -> None:
        votes = self.votes[question]
        voters = {vote.person for vote in votes}
        checked = {p for p in voters if len(voters) > 1 or self._again(p, question)}
        here = range(1, len(self.names) + 1)
        if standing(votes, 1, here, checked=checked).status != "open":
            self.waiting.remove(question)
            if len(votes) > 1 and len({vote.verdict for vote in votes}) == 1:
                self.agreed[question] = votes[0].verdict == "same"

    def _again(self, person: int, question: int) -> bool:
        estimate = self.estimates.get(self.names[person - 1])
        return self.checks.asks_again(person, question, estimate)

    def _estimate(self) -> None:
        found = estimate_errors(self.said, self.gold)
        self.estimates = {n: e for n, e in found.items() if e.compared >= _ENOUGH}
        for name, estimate in self.estimates.items():
            if errs_often(estimate):
                self.pointed_out.setdefault(name, self.given[name])
        for question in list(self.waiting):
            if self.votes[question]:
                self._settle(question)


def people_checked(
    seed: int, checks: Checks, rates: Mapping[str, float], answers: int = 100
) -> Found:
    """Simulate until the last person of `rates` gave so many answers.

    At first no answer is known: an answer is taken for known once two people gave it.
    """
    simulation = _Simulation(seed, checks, rates)
    while simulation.given[simulation.names[-1]] < answers:
        simulation.step()
    settled = simulation.last - simulation.first - len(simulation.waiting)
    extra = sum(simulation.given.values()) / max(settled, 1) - 1
    return Found(simulation.pointed_out, extra, simulation.estimates)
