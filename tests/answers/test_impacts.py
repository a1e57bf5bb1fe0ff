"""What an answer changes is what a closure of all answers before and after it says."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al.answers.closure import Closure, Effect
from fastreid_al.answers.impacts import AnswerGraph
from fastreid_al.answers.ledger import Ledger, Origin
from fastreid_al.answers.question import Verdict
from fastreid_al.answers.tasks import Impact
from tests.support.ledgers import put
from tests.support.queues import publish

IMAGES = 6
PAIRS = list(combinations(range(IMAGES), 2))
#: What is known of pairs of images.
Known = dict[tuple[int, int], Verdict]


def known(ledger: Ledger) -> dict[tuple[int, int], Verdict]:
    """What all answers imply, with a closure that is made anew."""
    # In the order of the events: the questions of `publish` are known from the beginning.
    by_event = sorted(ledger.answers(), key=lambda answer: answer.event)
    closure = Closure.replay([answer._replace(order=None) for answer in by_event])
    found = {pair: closure.verdict(*pair) for pair in PAIRS}
    return {pair: verdict for pair, verdict in found.items() if verdict is not None}


def verdicts(graph: AnswerGraph) -> dict[tuple[int, int], Verdict]:
    """What the answers around each pair imply."""
    found = {pair: graph.closure_of(*pair).verdict(*pair) for pair in PAIRS}
    return {pair: verdict for pair, verdict in found.items() if verdict is not None}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(PAIRS),
        st.sampled_from([Verdict.SAME, Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE]),
        st.sampled_from(["answer", "answer", "merge", "confirm", "vote", "undo"]),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_impacts_are_the_difference_of_two_closures(
    steps: list[tuple[tuple[int, int], Verdict, str]],
) -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, PAIRS)
        ledger.answers()
        graph = AnswerGraph()
        answered: dict[int, list[int]] = defaultdict(list)
        merge = None
        for person, (pair, verdict, kind) in enumerate(steps):
            question = PAIRS.index(pair) + 1
            if kind == "undo":
                for event in answered.pop(question, [])[-1:]:
                    ledger.undo(event, "anna")
                continue
            is_first = question not in answered
            if (kind != "vote") != is_first:
                continue
            before = known(ledger)
            event = put(
                ledger,
                *pair,
                verdict,
                need=2 if kind == "merge" else 1,
                confirms=merge if kind == "confirm" else None,
                origin=Origin(question=question, person=person),
            )
            merge = event if kind == "merge" else merge
            answered[question].append(event)
            after = known(ledger)
            with ledger.store.reading() as connection:
                impact = graph.catch_up(connection, [event])[event]
            assert verdicts(graph) == after
            assert graph.impact(event) == impact
            if kind == "vote":
                check_vote(impact, before, after, pair)
            # With a confirmation, the first answer of its merge begins to count as well, so that
            # more may change than the answer itself does.
            if not is_first or kind == "confirm":
                continue
            new = {p for p in after if p not in before}
            if impact.effect is Effect.NEW and verdict is Verdict.SAME:
                assert sum(after[p] is Verdict.SAME for p in new) == impact.pairs
                assert impact.pairs == impact.joined[0] * impact.joined[1]
            elif impact.effect is Effect.NEW:
                assert len(new) == impact.apart
            elif impact.effect is Effect.CONTRADICTION:
                assert before[pair] is not verdict and impact.against
            else:
                assert before == after


def check_vote(impact: Impact, before: Known, after: Known, pair: tuple[int, int]) -> None:
    """Check the impact of a further vote against what all answers imply before and after it."""

    def reached(found: Known) -> set[int]:
        return {i for p, v in found.items() if v is Verdict.SAME and {*p} & {*pair} for i in p}

    # Pairs of other images may change too, and are not counted.
    near = reached(before) | reached(after) | {*pair}
    changes = Counter(
        after.get(p) for p in PAIRS if {*p} <= near and before.get(p) is not after.get(p)
    )
    got = impact.pairs, impact.apart, impact.lost
    assert got == (changes[Verdict.SAME], changes[Verdict.DIFFERENT], changes[None])


def vote(ledger: Ledger, person: int, verdict: Verdict, question: int = 1) -> int:
    left, right = PAIRS[question - 1]
    return put(ledger, left, right, verdict, origin=Origin(question=question, person=person))


def test_a_vote_that_changes_the_majority_says_what_it_joins_and_what_is_open_again() -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, PAIRS, votes=2)
        ledger.answers()
        # 0 = 1 and 2 = 3; about 1 and 2 three people disagree.
        for question in (1, 1 + PAIRS.index((2, 3))):
            vote(ledger, 1, Verdict.SAME, question)
        middle = 1 + PAIRS.index((1, 2))
        events = [
            vote(ledger, person, verdict, middle)
            for person, verdict in enumerate((Verdict.SAME, Verdict.DIFFERENT, Verdict.DIFFERENT))
        ]
        graph = AnswerGraph()
        with ledger.store.reading() as connection:
            found = graph.catch_up(connection, events)
        first, second, third = (found[event] for event in events)
        assert (first.effect, first.joined, first.pairs) == (Effect.NEW, (2, 2), 4)
        assert (second.effect, second.lost, second.pairs) == (Effect.OPEN, 4, 0)
        assert (third.effect, third.apart, third.lost) == (Effect.NEW, 4, 0)
        assert graph.voters(events[0]) == (Verdict.DIFFERENT, events[1:])


def test_a_vote_that_changes_the_majority_says_what_it_contradicts() -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, PAIRS, votes=2)
        ledger.answers()
        first = vote(ledger, 1, Verdict.UNSURE, 1 + PAIRS.index((0, 2)))
        chain = [vote(ledger, 1, Verdict.SAME, 1 + PAIRS.index(p)) for p in ((0, 1), (1, 2))]
        events = [
            vote(ledger, person, Verdict.DIFFERENT, 1 + PAIRS.index((0, 2))) for person in (2, 3)
        ]
        graph = AnswerGraph()
        with ledger.store.reading() as connection:
            found = graph.catch_up(connection, [first, *events])
        # One of two votes is no majority.
        assert found[events[0]].effect is Effect.KNOWN
        assert found[events[1]].effect is Effect.CONTRADICTION
        assert set(found[events[1]].against) == set(chain)


def test_a_pair_is_undecided_without_the_youngest_answers_that_imply_it() -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, PAIRS)
        ledger.answers()
        for pair in ((0, 1), (1, 2), (0, 2), (2, 3)):
            vote(ledger, 1, Verdict.SAME, 1 + PAIRS.index(pair))
        graph = AnswerGraph()
        with ledger.store.reading() as connection:
            graph.catch_up(connection)
        closure = graph.undecided(0, 2, 1 + PAIRS.index((0, 2)))
        assert closure.verdict(0, 2) is None
        # The elder link of the other chain stays.
        assert closure.verdict(0, 1) is Verdict.SAME
        assert closure.verdict(2, 3) is Verdict.SAME
        assert graph.without(0, 2, 1 + PAIRS.index((0, 2))).verdict(0, 2) is Verdict.SAME


def test_a_merge_that_further_answers_confirm_counts_when_they_are_there() -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, [(0, 1), (2, 3)])
        ledger.answers()
        first = put(ledger, 0, 1, need=2, origin=Origin(question=1))
        second = put(ledger, 2, 3, confirms=first, origin=Origin(question=2))
        graph = AnswerGraph()
        with ledger.store.reading() as connection:
            found = graph.catch_up(connection, [first, second])
        assert [found[event].effect for event in (first, second)] == [Effect.PENDING, Effect.NEW]
        assert graph.closure_of(0).verdict(0, 1) is Verdict.SAME


def test_what_confirmed_a_merge_goes_on_to_do_so_when_its_first_answer_is_given_again() -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, [(0, 1), (2, 3)])
        ledger.answers()
        first = put(ledger, 0, 1, need=2, origin=Origin(question=1))
        put(ledger, 2, 3, need=2, confirms=first, origin=Origin(question=2))
        ledger.undo(first, "anna")
        graph = AnswerGraph()
        with ledger.store.reading() as connection:
            graph.catch_up(connection)
        assert graph.closure_of(2).verdict(2, 3) is None
        again = put(ledger, 0, 1, need=2, origin=Origin(question=1))
        with ledger.store.reading() as connection:
            impact = graph.catch_up(connection, [again])[again]
        assert (impact.effect, impact.joined, impact.pairs) == (Effect.NEW, (1, 1), 2)
        assert verdicts(graph) == known(ledger)
        assert known(ledger) == {(0, 1): Verdict.SAME, (2, 3): Verdict.SAME}


def test_a_merge_of_which_one_answer_contradicts_others_tells_both() -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, [(0, 1), (2, 3)])
        ledger.answers()
        same, different = put(ledger, 0, 4), put(ledger, 4, 1, Verdict.DIFFERENT)
        first = put(ledger, 0, 1, need=2, origin=Origin(question=1))
        last = put(ledger, 2, 3, need=2, confirms=first, origin=Origin(question=2))
        graph = AnswerGraph()
        with ledger.store.reading() as connection:
            impact = graph.catch_up(connection, [last])[last]
        assert impact.effect is Effect.CONTRADICTION
        assert (impact.joined, impact.pairs, impact.cuts) == ((1, 1), 1, 0)
        assert impact.against == (same, different)
