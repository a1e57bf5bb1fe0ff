"""What an answer changes is what a closure of all answers before and after it says."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al.answers.closure import Closure, Effect
from fastreid_al.answers.impacts import Impacts
from fastreid_al.answers.ledger import Ledger, Origin
from fastreid_al.answers.question import Verdict
from tests.support.ledgers import put
from tests.support.queues import publish

IMAGES = 6
PAIRS = list(combinations(range(IMAGES), 2))


def known(ledger: Ledger) -> dict[tuple[int, int], Verdict]:
    """What all answers imply, with a closure that is made anew."""
    # In the order of the events: the questions of `publish` are known from the beginning.
    by_event = sorted(ledger.answers(), key=lambda answer: answer.event)
    closure = Closure.replay([answer._replace(order=None) for answer in by_event])
    found = {pair: closure.verdict(*pair) for pair in PAIRS}
    return {pair: verdict for pair, verdict in found.items() if verdict is not None}


def verdicts(impacts: Impacts) -> dict[tuple[int, int], Verdict]:
    """What the closure says that is kept up to date."""
    found = {pair: impacts.closure.verdict(*pair) for pair in PAIRS}
    return {pair: verdict for pair, verdict in found.items() if verdict is not None}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(PAIRS),
            st.sampled_from([Verdict.SAME, Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE]),
            st.sampled_from(["answer", "answer", "answer", "vote", "undo"]),
        ),
        max_size=25,
    )
)
def test_impacts_are_the_difference_of_two_closures(
    steps: list[tuple[tuple[int, int], Verdict, str]],
) -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, PAIRS)
        ledger.answers()
        impacts = Impacts()
        answered: dict[int, list[int]] = defaultdict(list)
        for person, (pair, verdict, kind) in enumerate(steps):
            question = PAIRS.index(pair) + 1
            if kind == "undo":
                for event in answered.pop(question, [])[-1:]:
                    ledger.undo(event, "anna")
                continue
            if (kind == "vote") != (question in answered):
                continue
            before = known(ledger)
            event = put(ledger, *pair, verdict, origin=Origin(question=question, person=person))
            is_first = question not in answered
            answered[question].append(event)
            after = known(ledger)
            with ledger.store.reading() as connection:
                impact = impacts.catch_up(connection, [event])[event]
            assert verdicts(impacts) == after
            if not is_first:
                continue
            new = {p for p in after if p not in before}
            if impact.effect is Effect.NEW and verdict is Verdict.SAME:
                assert sum(after[p] is Verdict.SAME for p in new) == impact.pairs
                assert impact.joined[0] * impact.joined[1] == impact.pairs
            elif impact.effect is Effect.NEW:
                assert len(new) == impact.apart
            elif impact.effect is Effect.CONTRADICTION:
                assert before[pair] is not verdict and impact.against
            else:
                assert before == after
