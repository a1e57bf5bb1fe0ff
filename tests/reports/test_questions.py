"""Questions of a page: who, when, what is unusual, and the chains that prove what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.reports.crops import Crops
from fastreid_al.reports.questions import QuestionPages, read_answers, utc
from tests.support.ledgers import DIFFERENT, SAME, UNSURE, keys, put


@pytest.fixture
def url(tmp_path: Path) -> str:
    """0 = 1 = 2, 2 != 3; then "0 and 2 are different" contradicts; 4 and 5 were taken back."""
    file = str(tmp_path / "answers.sqlite")
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1, SAME)
        put(ledger, 1, 2, SAME, annotator="Bob")
        put(ledger, 2, 3, DIFFERENT)
        put(ledger, 6, 7, UNSURE, epoch=None, similarity=0.25)
        undone = put(ledger, 4, 5, SAME)
        ledger.undo(undone, "anna")
        put(ledger, 0, 2, DIFFERENT, annotator="Bob", epoch=4)
        put(ledger, 8, 9, SAME, need=2)
    return file


def pages(url: str, anonymise: bool = False) -> QuestionPages:
    return QuestionPages(read_answers(url), lambda path: None, Crops(256, 128), anonymise)


def test_a_question_says_who_answered_when_and_in_which_epoch(url: str) -> None:
    made = pages(url)
    first, *_, unsure = [made.show(event) for event in made.chosen(9)][:4]
    assert (first.event, first.verdict, first.sign) == (1, "same", "=")
    assert (first.left.name, first.right.name) == ("train/0.jpg", "train/1.jpg")
    assert list(first.facts) == [
        "by anna",
        "1970-01-01 00:01:41 UTC",
        "epoch 3",
        "split",
        "1.5 s",
    ]
    assert "epoch" not in " ".join(unsure.facts) and "similarity 0.250" in unsure.facts


def test_unusual_answers_are_marked_and_shown_first(url: str) -> None:
    made = pages(url)
    marks = {event.id: list(made.show(event).marks) for event in made.chosen(99)}
    assert marks[7] == ["contradicts what follows from 1, 2"]
    assert marks[5] == ["taken back by event 6"]
    assert marks[2] == ["set aside because of 7", "doubted: other answers weigh more"]
    assert marks[1] == ["contradicted by 7"]
    assert marks[8] == ["waits for further answers that agree"]
    assert marks[3] == marks[4] == []
    assert [step.event for step in made.show(made.chosen(99)[5]).chain] == [1, 2]
    assert [event.id for event in made.chosen(5)] == [1, 2, 5, 7, 8]
    assert [event.id for event in made.chosen(6)] == [1, 2, 4, 5, 7, 8]


def test_doubted_answers_are_marked(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.sqlite")
    with Ledger.open(file, keys()) as ledger:
        for verdict in (SAME, SAME, SAME, DIFFERENT):
            put(ledger, 0, 1, verdict)
    answers = read_answers(file)
    assert answers.doubted == {4}
    made = QuestionPages(answers, lambda path: None, Crops(256, 128))
    assert any("doubted" in mark for mark in made.show(answers.events[3]).marks)


def test_implied_pairs_come_with_the_answers_that_prove_them(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.sqlite")
    with Ledger.open(file, keys()) as ledger:
        for a, b, verdict in ((0, 1, SAME), (1, 2, SAME), (2, 3, DIFFERENT), (3, 4, SAME)):
            put(ledger, a, b, verdict)
    made = pages(file)
    found = {(i.left.name[6], i.right.name[6], i.verdict): i for i in made.implied(20)}
    assert ("0", "2", "same") in found
    assert [step.event for step in found["0", "2", "same"].chain] == [1, 2]
    different = [key for key in found if key[2] == "different"]
    assert different and ("2", "3", "different") not in found
    for key in different:
        verdicts = [step.verdict for step in found[key].chain]
        assert verdicts.count("different") == 1 and len(verdicts) >= 2
    assert len(made.implied(2)) == 2
    assert made.implied(0) == []


def test_annotators_are_counted_and_numbered_where_names_are_left_out(url: str) -> None:
    rows = pages(url).people()
    assert [row[:2] for row in rows] == [["anna", "4"], ["Bob", "2"]]
    assert rows[0][2:] == ["2", "1", "1", "0", "6"]
    hidden = pages(url, anonymise=True)
    assert [row[0] for row in hidden.people()] == ["annotator 1", "annotator 2"]
    facts = " ".join(" ".join(hidden.show(event).facts) for event in hidden.chosen(9))
    assert "anna" not in facts and "Bob" not in facts


def test_a_damaged_time_is_a_word() -> None:
    assert utc(1.7e9) == "2023-11-14 22:13:20 UTC"
    assert utc(1e300) == utc(float("nan")) == "time unknown"


def test_verdicts_all_have_a_sign(url: str) -> None:
    made = pages(url)
    signs = {shown.verdict: shown.sign for shown in map(made.show, made.chosen(99))}
    assert signs == {"same": "=", "different": "\u2260", Verdict.UNSURE.value: "?"}


def test_answers_against_the_true_identities_are_marked(url: str) -> None:
    identities = {f"train/{i}.jpg": i // 2 for i in range(8)}
    answers = read_answers(url)
    made = QuestionPages(
        answers, lambda path: None, Crops(256, 128), identity=lambda path: identities.get(path)
    )
    wrong = "wrong by the true identities"
    # 0 = 1 is right, 1 = 2 wrong, 2 != 3 wrong; of 8 and 9 nothing is known.
    marked = [event.id for event in answers.events if wrong in made.show(event).marks]
    assert marked == [2, 3]
