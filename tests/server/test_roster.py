"""People and known answers that a page is started with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from fastreid_al.answers.database import IMAGES, QUESTIONS
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService
from fastreid_al.errors import UserError
from fastreid_al.server.roster import add_known_answers
from tests.support.ledgers import keys
from tests.support.queues import answer_next, publish


def test_nothing_that_is_shown_tells_a_question_with_a_known_answer(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    known = tmp_path / "gold.csv"
    known.write_text("left,right,verdict\ntrain/4.jpg,train/5.jpg,same\n")
    with Ledger.open(str(file), keys()) as ledger:
        publish(ledger, [(4, 6), (5, 7)], reason="merge")
        assert add_known_answers(str(file), known) == 1
        with AnswerService(ledger, gold_share=1) as service:
            anna = service.person_named("anna")
            task = answer_next(service, anna)
            assert (task.id, task.reason, task.number) == (3, "merge", 1)
        assert ledger.answers() == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_known_answers_may_come_from_an_office_program(tmp_path: Path, delimiter: str) -> None:
    file, known = str(tmp_path / "answers.sqlite"), tmp_path / "gold.csv"
    text = "left,right,verdict\r\ntrain/4.jpg,train/5.jpg,same\r\n"
    known.write_bytes(b"\xef\xbb\xbf" + text.replace(",", delimiter).encode())
    with Ledger.open(file, keys()) as ledger:
        publish(ledger, [(4, 6), (5, 7)])
        assert add_known_answers(file, known) == 1


SHEETS = """left,right,verdict,sheet
train/0.jpg,train/1.jpg,same,a
train/0.jpg,train/2.jpg,different,a
train/4.jpg,train/5.jpg,same,
"""


def test_lines_with_the_name_of_a_sheet_are_one_task(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.sqlite")
    known = tmp_path / "gold.csv"
    known.write_text(SHEETS)
    with Ledger.open(file, keys()) as ledger:
        publish(ledger, [(i, i + 1) for i in range(6)], status="withdrawn")
        publish(ledger, [(0, 7), (0, 8)], sheet=True)
        assert add_known_answers(file, known) == 3
        assert add_known_answers(file, known) == 0
        with AnswerService(ledger, gold_share=1) as service:
            anna = service.person_named("anna")
            task = answer_next(service, anna)
            assert task.sheet and [item.right for item in task.items] == [1, 2]
            figures = service.people()[0]
            assert (figures.gold_right, figures.gold_asked) == (1, 2)
        assert ledger.integrity() == []


def test_a_file_that_is_read_again_with_further_lines_makes_no_sheet_of_one(
    tmp_path: Path,
) -> None:
    file = str(tmp_path / "answers.sqlite")
    known = tmp_path / "gold.csv"
    known.write_text(SHEETS)
    with Ledger.open(file, keys()) as ledger:
        publish(ledger, [(i, i + 1) for i in range(6)], status="withdrawn")
        assert add_known_answers(file, known) == 3
        # One line more on a sheet; another sheet that shares a pair with it.
        more = "train/0.jpg,train/3.jpg,same,a\n"
        more += "train/0.jpg,train/1.jpg,same,b\ntrain/0.jpg,train/4.jpg,different,b\n"
        known.write_text(SHEETS + more)
        assert add_known_answers(file, known) == 2
        assert add_known_answers(file, known) == 0
        wanted = sa.select(QUESTIONS.c.sheet, QUESTIONS.c.right_id)
        wanted = wanted.where(QUESTIONS.c.sheet.is_not(None)).order_by(QUESTIONS.c.id)
        with ledger.store.reading() as connection:
            rows = connection.execute(wanted).all()
            paths = dict(connection.execute(sa.select(IMAGES.c.id, IMAGES.c.path)).all())
        sheets: dict[int, list[str]] = {}
        for row in rows:
            sheets.setdefault(row.sheet, []).append(paths[row.right_id].removeprefix("train/"))
        found = list(sheets.values())
        assert found == [["1.jpg", "2.jpg"], ["1.jpg", "3.jpg"], ["1.jpg", "4.jpg"]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0,1,same,a\n", "line 2: expected two different right images or more of sheet a"),
        ("0,1,same,a\n0,1,same,a\n", "line 2: expected two different right images or more"),
        (
            "0,1,same,a\n2,3,same,a\n",
            "line 3: got left image 2 in sheet a, expected 0 as in line 2",
        ),
    ],
)
def test_a_sheet_that_cannot_be_shown_is_one_line(tmp_path: Path, lines: str, message: str) -> None:
    file = str(tmp_path / "answers.sqlite")
    known = tmp_path / "gold.csv"
    known.write_text("left,right,verdict,sheet\n" + lines)
    with Ledger.open(file) as ledger:
        publish(ledger, [(0, 1), (2, 3)])
        with pytest.raises(UserError) as caught:
            add_known_answers(file, known)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def in_train(lines: str) -> str:
    """Lines with the paths of the images in place of their numbers."""
    return re.sub(r"(\d)", r"train/\1.jpg", lines)


@pytest.mark.parametrize(
    ("earlier", "later", "line"),
    [
        ("0,1,same,\n", "0,1,different,\n", 2),
        ("0,1,same,\n", "1,0,different,\n", 2),
        ("", "0,1,same,\n1,0,different,\n", 3),
        ("0,1,same,\n", "0,1,different,a\n0,2,same,a\n", 2),
    ],
)
def test_a_known_answer_that_contradicts_another_is_refused(
    tmp_path: Path, earlier: str, later: str, line: int
) -> None:
    file = str(tmp_path / "answers.sqlite")
    known = tmp_path / "gold.csv"
    with Ledger.open(file, keys()) as ledger:
        publish(ledger, [(0, 1), (2, 3)])
        known.write_text("left,right,verdict,sheet\n" + in_train(earlier))
        count = add_known_answers(file, known)
        known.write_text("left,right,verdict,sheet\n" + in_train(later))
        with pytest.raises(UserError) as caught:
            add_known_answers(file, known)
        assert f"line {line}: got different" in str(caught.value)
        assert "is same" in str(caught.value) and "\n" not in str(caught.value)
        known.write_text("left,right,verdict,sheet\n" + in_train(earlier))
        assert count == bool(earlier) and add_known_answers(file, known) == 0
