"""The closure of the answers against one that searches every edge again for every query."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al.answers.closure import Closure, Effect
from fastreid_al.answers.question import Answer, Verdict
from tests.support.references_active import BruteAnswer, BruteClosure

IMAGES = 8
SAME, DIFFERENT, UNSURE, NOT_COMPARABLE = (
    Verdict.SAME,
    Verdict.DIFFERENT,
    Verdict.UNSURE,
    Verdict.NOT_COMPARABLE,
)
MIXED = [SAME] * 5 + [DIFFERENT] * 3 + [UNSURE, NOT_COMPARABLE]
WITHOUT_NEED = [1]
WITH_NEED = [1, 1, 1, 2, 2, 3]


@st.composite
def answer_lists(
    draw: st.DrawFn, needs: list[int] = WITH_NEED, images: int | None = None, longest: int = 25
) -> list[Answer]:
    """Answers in the order of their events; some of them confirm an earlier one, whose need they
    share.
    """
    among = draw(st.sampled_from([3, 5, IMAGES, IMAGES])) if images is None else images
    answers: list[Answer] = []
    event = 0
    for _ in range(draw(st.integers(0, longest))):
        event += draw(st.integers(1, 3))
        left = draw(st.integers(0, among - 1))
        right = (left + draw(st.integers(1, among - 1))) % among
        verdict = draw(st.sampled_from(MIXED))
        firsts = [x for x in answers if x.need > 1 and x.confirms is None]
        first = draw(st.sampled_from(firsts)) if firsts and draw(st.booleans()) else None
        if first is None:
            answers.append(Answer(event, left, right, verdict, draw(st.sampled_from(needs))))
        else:
            answers.append(Answer(event, left, right, verdict, first.need, first.event))
    return answers


def brute(answers: list[Answer]) -> BruteClosure:
    return BruteClosure(
        BruteAnswer(x.event, x.left, x.right, x.verdict.value, x.need, x.confirms) for x in answers
    )


def told(*facts: tuple[int, int, Verdict]) -> Closure:
    """The closure of plain answers, with events 0, 1, ..."""
    return Closure.replay(Answer(event, *fact) for event, fact in enumerate(facts))


def verdicts(closure: Closure) -> dict[tuple[int, int], Verdict | None]:
    return {(a, b): closure.verdict(a, b) for a, b in combinations(range(IMAGES), 2)}


def assert_equal(closure: Closure, reference: BruteClosure) -> None:
    for a, b in combinations(range(IMAGES), 2):
        expected = reference.verdict(a, b)
        for got in (closure.verdict(a, b), closure.verdict(b, a)):
            assert (None if got is None else got.value) == expected, (a, b)
    assert [x.event for x in closure.contradictions] == reference.contradictions
    assert [set(x.set_aside) for x in closure.contradictions] == reference.set_aside


def assert_proof(
    closure: Closure, answers: dict[int, Answer], in_force: dict[int, str], a: int, b: int
) -> None:
    verdict, events = closure.verdict(a, b), closure.chain(a, b)
    if verdict is None:
        assert events == []
        return
    here = a
    for event in events:
        answer = answers[event]
        assert in_force.get(event) == answer.verdict.value
        assert here in (answer.left, answer.right), f"{events} is no path from {a} to {b}"
        here = answer.right if here == answer.left else answer.left
    assert here == b
    assert sum(answers[event].verdict is DIFFERENT for event in events) == (verdict is DIFFERENT)
    assert all(answers[event].verdict in (SAME, DIFFERENT) for event in events)


@settings(max_examples=400, deadline=None)
@given(answers=answer_lists())
def test_every_pair_is_as_a_search_over_all_edges_finds_it(answers: list[Answer]) -> None:
    assert_equal(Closure.replay(answers), brute(answers))


@settings(max_examples=200, deadline=None)
@given(answers=answer_lists(needs=WITHOUT_NEED, images=5))
def test_few_images_with_many_contradictions(answers: list[Answer]) -> None:
    """Compared after every answer, not only after the last."""
    closure = Closure()
    for i, answer in enumerate(answers):
        closure.add(answer)
        assert_equal(closure, brute(answers[: i + 1]))


@settings(max_examples=300, deadline=None)
@given(answers=answer_lists())
def test_chains_are_proofs(answers: list[Answer]) -> None:
    closure, in_force = Closure.replay(answers), brute(answers).in_force()
    by_event = {x.event: x for x in answers}
    for a in range(IMAGES):
        for b in range(IMAGES):
            if a != b:
                assert_proof(closure, by_event, in_force, a, b)


@settings(max_examples=200, deadline=None)
@given(answers=answer_lists())
def test_a_contradiction_names_the_answers_that_it_contradicts(answers: list[Answer]) -> None:
    """`against` is a path of answers in force between the two images that implies the opposite."""
    by_event = {x.event: x for x in answers}
    closure = Closure()
    for answer in answers:
        found = len(closure.contradictions)
        closure.add(answer)
        for contradiction in closure.contradictions[found:]:
            one = by_event[contradiction.event]
            here = one.left
            for event in contradiction.against:
                link = by_event[event]
                assert here in (link.left, link.right)
                here = link.right if here == link.left else link.left
            assert here == one.right
            against = [by_event[event].verdict for event in contradiction.against]
            assert against.count(DIFFERENT) == (one.verdict is SAME)
            assert all(v in (SAME, DIFFERENT) for v in against)


@settings(max_examples=300, deadline=None)
@given(answers=answer_lists(), data=st.data())
def test_undo_leaves_no_trace(answers: list[Answer], data: st.DataObject) -> None:
    """A replay of the answers that are left is a closure that never saw the others."""
    kept = [x for x in answers if data.draw(st.integers(0, 3))]
    replayed = Closure.replay(kept)
    assert_equal(replayed, brute(kept))
    fresh = Closure()
    for answer in kept:
        fresh.add(answer)
    assert verdicts(replayed) == verdicts(fresh)
    assert replayed.contradictions == fresh.contradictions
    in_force, by_event = brute(kept).in_force(), {x.event: x for x in kept}
    for a, b in combinations(range(IMAGES), 2):
        assert_proof(replayed, by_event, in_force, a, b)


@settings(max_examples=200, deadline=None)
@given(answers=answer_lists())
def test_components_and_enemies_are_those_of_the_verdicts(answers: list[Answer]) -> None:
    """No image is in two components, and no name of a component that is gone is left among the
    enemies.
    """
    closure = Closure.replay(answers)
    components = closure.components()
    images = [image for members in components.values() for image in members]
    assert len(images) == len(set(images))
    for root, members in components.items():
        assert root in members
        assert all(closure.root(image) == root for image in members)
        assert root not in closure.cannot_links(root)
        assert closure.cannot_links(root) <= set(components)
        assert all(root in closure.cannot_links(enemy) for enemy in closure.cannot_links(root))
    reference = brute(answers)
    for a, b in combinations(images, 2):
        ra, rb = closure.root(a), closure.root(b)
        expected = "same" if ra == rb else "different" if rb in closure.cannot_links(ra) else None
        assert reference.verdict(a, b) == expected
    for image in set(range(IMAGES)) - set(images):
        assert closure.root(image) is None
        assert all(
            reference.verdict(image, other) is None for other in range(IMAGES) if other != image
        )


@settings(max_examples=200, deadline=None)
@given(answers=answer_lists(needs=WITHOUT_NEED))
def test_without_transitivity_only_answered_pairs_have_a_verdict(answers: list[Answer]) -> None:
    closure = Closure.replay(answers, transitive=False)
    assert closure.contradictions == []
    for a, b in combinations(range(IMAGES), 2):
        said = [x for x in answers if {x.left, x.right} == {a, b}]
        constraints = {x.verdict for x in said} & {SAME, DIFFERENT}
        got = closure.verdict(a, b)
        assert got is closure.verdict(b, a)
        if not constraints:
            assert got is None
            assert closure.chain(a, b) == []
        else:
            assert got in constraints
        assert closure.answered(a, b) is closure.answered(b, a) is bool(said)
        assert closure.answer(a, b) == (said[-1] if said else None)


@settings(max_examples=150, deadline=None)
@given(answers=answer_lists())
def test_a_chain_without_transitivity_is_an_answer_about_the_pair_that_says_so(
    answers: list[Answer],
) -> None:
    closure = Closure.replay(answers, transitive=False)
    by_event = {x.event: x for x in answers}
    for a, b in combinations(range(IMAGES), 2):
        verdict = closure.verdict(a, b)
        events = closure.chain(a, b)
        if verdict is None:
            assert events == []
        else:
            assert len(events) == 1
            assert {by_event[events[0]].left, by_event[events[0]].right} == {a, b}
            assert by_event[events[0]].verdict is verdict


def test_same_and_same_is_same() -> None:
    closure = told((0, 1, SAME), (1, 2, SAME))
    assert closure.verdict(0, 2) is SAME
    assert closure.chain(0, 2) == [0, 1]
    assert closure.chain(2, 0) == [1, 0]


def test_same_and_different_is_different() -> None:
    closure = told((0, 1, SAME), (2, 3, SAME), (1, 2, DIFFERENT))
    assert closure.verdict(0, 3) is DIFFERENT
    assert closure.chain(0, 3) == [0, 2, 1]


def test_an_enemy_of_an_enemy_is_not_a_friend() -> None:
    assert told((0, 1, DIFFERENT), (1, 2, DIFFERENT)).verdict(0, 2) is None


@pytest.mark.parametrize("verdict", [UNSURE, NOT_COMPARABLE])
def test_an_answer_that_leaves_it_open_adds_nothing(verdict: Verdict) -> None:
    closure = Closure()
    assert closure.add(Answer(0, 0, 1, verdict)) is Effect.OPEN
    assert closure.verdict(0, 1) is None
    assert closure.answered(1, 0)
    closure.add(Answer(1, 1, 2, SAME))
    assert closure.verdict(0, 2) is None


def test_a_same_between_enemies_is_set_aside() -> None:
    closure = told((0, 1, SAME), (1, 2, DIFFERENT), (0, 2, SAME))
    assert closure.verdict(0, 2) is DIFFERENT
    (contradiction,) = closure.contradictions
    assert contradiction.event == 2
    assert contradiction.set_aside == (2,)
    assert sorted(contradiction.against) == [0, 1]


def test_a_different_inside_a_component_keeps_its_oldest_answers() -> None:
    closure = told((0, 1, SAME), (1, 2, SAME), (2, 3, SAME), (0, 3, DIFFERENT))
    assert closure.verdict(0, 2) is SAME
    assert closure.verdict(2, 3) is DIFFERENT
    (contradiction,) = closure.contradictions
    assert (contradiction.event, contradiction.set_aside) == (3, (2,))


def test_an_answer_set_aside_does_not_come_back() -> None:
    """Apart wins until the "different" itself is undone, and then nothing was ever set aside."""
    answers = [Answer(0, 0, 1, SAME), Answer(1, 0, 1, DIFFERENT), Answer(2, 0, 1, SAME)]
    closure = Closure.replay(answers)
    assert closure.verdict(0, 1) is DIFFERENT
    assert [x.event for x in closure.contradictions] == [1, 2]
    assert Closure.replay([answers[0], answers[2]]).verdict(0, 1) is SAME


def test_a_second_path_survives_a_different_on_the_first() -> None:
    """The images between the two stay with the side that their oldest answers give them."""
    closure = told((0, 1, SAME), (2, 3, SAME), (1, 2, SAME), (0, 2, SAME), (0, 3, DIFFERENT))
    assert closure.verdict(0, 1) is SAME
    assert closure.verdict(2, 3) is SAME
    assert closure.verdict(1, 2) is DIFFERENT
    assert closure.contradictions[0].set_aside == (2, 3)


def test_other_enemies_stay_with_the_half_that_they_met() -> None:
    closure = told((0, 1, SAME), (1, 2, SAME), (2, 4, DIFFERENT), (0, 2, DIFFERENT))
    assert closure.verdict(2, 4) is DIFFERENT
    assert closure.verdict(0, 4) is None


def test_a_merge_that_needs_two_waits_for_the_second_pair() -> None:
    closure = Closure()
    assert closure.add(Answer(3, 0, 1, SAME, 2)) is Effect.PENDING
    assert closure.verdict(0, 1) is None
    assert not closure.counted(3)
    assert closure.add(Answer(4, 1, 0, SAME, 2, 3)) is Effect.PENDING, (
        "the same pair again is no confirmation"
    )
    assert closure.add(Answer(5, 2, 3, SAME, 2)) is Effect.PENDING, (
        "another merge is no confirmation"
    )
    assert closure.add(Answer(6, 4, 5, SAME, 2, 3)) is Effect.NEW
    assert closure.verdict(0, 1) is SAME
    assert closure.verdict(4, 5) is SAME
    assert closure.verdict(2, 3) is None
    assert closure.verdict(0, 4) is None
    assert closure.counted(3) and closure.counted(6) and not closure.counted(5)


def test_a_different_counts_at_once_whatever_the_merge_needs() -> None:
    closure = Closure.replay([Answer(0, 0, 1, SAME, 2), Answer(1, 2, 3, DIFFERENT, 2, 0)])
    assert closure.verdict(2, 3) is DIFFERENT
    assert closure.verdict(0, 1) is None


def test_a_confirmed_answer_has_the_age_of_its_own_event() -> None:
    """Event 0 counts only after event 2, but it is older than event 1."""
    answers = [
        Answer(0, 0, 1, SAME, 2),
        Answer(1, 1, 2, SAME),
        Answer(2, 5, 6, SAME, 2, 0),
        Answer(3, 0, 2, DIFFERENT),
    ]
    closure = Closure.replay(answers)
    assert closure.verdict(0, 1) is SAME
    assert closure.verdict(1, 2) is DIFFERENT


def test_a_confirmation_can_contradict_what_came_while_it_waited() -> None:
    answers = [Answer(0, 0, 1, SAME, 2), Answer(1, 0, 1, DIFFERENT), Answer(2, 2, 3, SAME, 2, 0)]
    closure = Closure.replay(answers)
    assert [x.event for x in closure.contradictions] == [0]
    assert closure.verdict(0, 1) is DIFFERENT
    assert closure.verdict(2, 3) is SAME


def test_the_effect_of_an_answer_is_named() -> None:
    closure = Closure()
    assert closure.add(Answer(0, 0, 1, SAME)) is Effect.NEW
    assert closure.add(Answer(1, 1, 2, SAME)) is Effect.NEW
    assert closure.add(Answer(2, 0, 2, SAME)) is Effect.KNOWN
    assert closure.add(Answer(3, 2, 3, DIFFERENT)) is Effect.NEW
    assert closure.add(Answer(4, 0, 3, DIFFERENT)) is Effect.KNOWN
    assert closure.add(Answer(5, 1, 3, SAME)) is Effect.CONTRADICTION
    assert closure.add(Answer(6, 0, 2, DIFFERENT)) is Effect.CONTRADICTION


def test_an_image_that_is_not_in_the_set_is_left_out() -> None:
    closure = Closure()
    assert closure.add(Answer(0, 0, -1, SAME)) is Effect.UNUSABLE
    assert closure.add(Answer(1, -1, 1, SAME)) is Effect.UNUSABLE
    assert closure.verdict(0, 1) is None
    assert closure.components() == {}


def test_no_answer_says_nothing() -> None:
    closure = Closure.replay([])
    assert closure.verdict(0, 1) is None
    assert closure.chain(0, 1) == []
    assert not closure.answered(0, 1)
    assert closure.answer(0, 1) is None
    assert closure.root(0) is None


def test_without_transitivity_nothing_follows() -> None:
    closure = Closure.replay(
        [Answer(0, 0, 1, SAME), Answer(1, 1, 2, SAME), Answer(2, 2, 3, DIFFERENT)], transitive=False
    )
    assert closure.verdict(0, 1) is SAME
    assert closure.verdict(2, 3) is DIFFERENT
    assert closure.verdict(0, 2) is None
    assert closure.verdict(1, 3) is None
    assert closure.chain(0, 2) == []


@pytest.mark.parametrize("verdict", [SAME, DIFFERENT])
def test_without_transitivity_a_same_that_waits_takes_nothing_back(verdict: Verdict) -> None:
    closure = Closure.replay([Answer(0, 0, 1, verdict), Answer(1, 0, 1, SAME, 2)], transitive=False)
    assert closure.verdict(0, 1) is verdict
    assert closure.chain(0, 1) == [0]


def test_images_known_to_be_different_are_listed_with_what_follows() -> None:
    same = [(0, 1), (2, 3)]
    answers = [Answer(event, *pair, Verdict.SAME) for event, pair in enumerate(same, 1)]
    answers += [Answer(3, 1, 2, Verdict.DIFFERENT), Answer(4, 9, 0, Verdict.DIFFERENT)]
    closure = Closure.replay(answers)
    assert closure.cannot_linked_images() == [(0, 2), (0, 3), (0, 9), (1, 2), (1, 3), (1, 9)]
    assert Closure().cannot_linked_images() == []


def test_a_link_yields_to_answers_and_is_event_zero_in_a_chain() -> None:
    closure = Closure.replay([Answer(1, 0, 2, DIFFERENT)])
    assert closure.link(0, 1) is Effect.NEW
    assert closure.link(1, 0) is Effect.KNOWN
    assert closure.link(1, 2) is Effect.CONTRADICTION
    assert closure.verdict(1, 2) is DIFFERENT
    assert closure.chain(1, 2) == [0, 1]
    assert not closure.contradictions and not closure.answered(0, 1)
    assert closure.add(Answer(2, 0, 1, DIFFERENT)) is Effect.CONTRADICTION
    assert closure.verdict(0, 1) is DIFFERENT


def test_a_closure_of_answered_pairs_takes_no_link() -> None:
    closure = Closure(transitive=False)
    assert closure.link(0, 1) is Effect.OPEN
    assert closure.verdict(0, 1) is None
    with pytest.raises(ValueError, match="link: got image 3 twice"):
        closure.link(3, 3)


@pytest.mark.parametrize("is_first", [True, False])
def test_an_answer_that_lets_others_count_returns_the_whole_effect(is_first: bool) -> None:
    closure = Closure.replay([Answer(1, 0, 4, SAME), Answer(2, 4, 1, DIFFERENT)])
    # The pair (0, 1) contradicts the answers before, and (2, 3) is new.
    first, second = ((0, 1), (2, 3)) if is_first else ((2, 3), (0, 1))
    assert closure.add(Answer(3, *first, SAME, 2)) is Effect.PENDING
    assert closure.add(Answer(4, *second, SAME, 2, confirms=3)) is Effect.CONTRADICTION
    assert closure.verdict(2, 3) is SAME and len(closure.contradictions) == 1


def test_a_confirmation_that_was_known_itself_returns_what_its_merge_joins() -> None:
    closure = Closure.replay([Answer(1, 2, 3, SAME)])
    closure.add(Answer(2, 0, 1, SAME, 2))
    assert closure.add(Answer(3, 2, 3, SAME, 2, confirms=2)) is Effect.NEW
