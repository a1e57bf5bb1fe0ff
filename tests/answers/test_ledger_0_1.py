"""A ledger that was written by version 0.1 opens with every answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastreid_al.annotators import Oracle, Replay
from fastreid_al.answers import Asker, Closure, ImageKeys, Ledger, Verdict, report

SAME, DIFFERENT = Verdict.SAME, Verdict.DIFFERENT
UNSURE, NOT_COMPARABLE = Verdict.UNSURE, Verdict.NOT_COMPARABLE
WRITTEN = Path(__file__).parent / "data" / "ledger_0_1.sqlite"
KEYS = ImageKeys(
    "market1501",
    [f"bounding_box_train/{i:04}_c{1 + i % 3}.jpg" for i in range(12)],
    [f"{i:032x}" for i in range(12)],
)
#: Event, images, verdict, answers that must agree, event that it confirms, run.
ANSWERS = [
    (1, 0, 1, SAME, 1, None, "first"),
    (2, 1, 2, DIFFERENT, 1, None, "first"),
    (3, 2, 3, UNSURE, 1, None, "first"),
    (4, 3, 4, NOT_COMPARABLE, 1, None, "first"),
    (5, 4, 5, SAME, 3, None, "first"),
    (6, 6, 7, SAME, 3, 5, "first"),
    (7, 8, 9, SAME, 3, 5, "first"),
    (8, 5, 10, SAME, 2, None, "first"),
    (11, 0, 11, DIFFERENT, 1, None, "second"),
    (12, 0, 2, SAME, 1, None, "second"),
]


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(shutil.copy(WRITTEN, tmp_path / "answers.sqlite"))


@pytest.mark.parametrize("write", [True, False])
def test_every_answer_is_read(file: str, write: bool) -> None:
    with Ledger.open(file, KEYS, write=write) as ledger:
        answers = ledger.answers()
        assert [
            (a.event, a.left, a.right, a.verdict, a.need, a.confirms, a.run) for a in answers
        ] == ANSWERS
        assert ledger.seconds() == 15.0
        assert ledger.last_event() == 12
        assert ledger.last_answer("first") == 8
        assert ledger.integrity() == []
        events = list(ledger.events())
    assert [(e.id, e.undone_by) for e in events if e.undone_by] == [(9, 10)]
    assert events[9].kind == "undo" and events[9].undoes == 9
    shown = ([KEYS.names[0]], [KEYS.names[11], KEYS.names[10]])
    assert events[10].shown == shown
    assert (events[10].score, events[10].similarity, events[10].epoch) == (2.5, 0.75, 18)


def test_the_closure_is_the_same(file: str) -> None:
    with Ledger.open(file, KEYS, write=False) as ledger:
        closure = Closure.replay(ledger.answers())
    components = sorted(sorted(images) for images in closure.components().values())
    assert components == [[0, 1], [2], [4, 5], [6, 7], [8, 9], [11]]
    assert [tuple(c) for c in closure.contradictions] == [(12, (1, 2), (12,))]
    assert closure.verdict(0, 2) is DIFFERENT
    assert closure.verdict(1, 11) is DIFFERENT
    assert closure.verdict(5, 10) is None


def test_it_is_shown_and_exported(file: str, tmp_path: Path) -> None:
    assert any("10 answered, last event 12" in line for line in report.show(file))
    out = tmp_path / "answers.jsonl"
    report.export(file, "answers", "jsonl", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows if not row["undone"] and row["kind"] == "answer"] == [
        event for event, *_ in ANSWERS
    ]


def test_answers_are_added_to_it(file: str) -> None:
    with Ledger.open(file, KEYS) as ledger:
        asker = Asker(Oracle(torch.arange(12), KEYS.names), ledger, run="third")
        asker.begin(0)
        asker.features = torch.eye(12)
        asker.labels = torch.full((12,), -1)
        assert asker.ask_pair(0, 2) is DIFFERENT  # known
        assert asker.ask_pair(3, 5) is DIFFERENT  # asked
        assert asker.end().questions == 1
        ledger.undo(12, "terminal")
    with Ledger.open(file, KEYS, write=False) as ledger:
        assert [a.event for a in ledger.answers()] == [*range(1, 9), 11, 13]
        replay = Replay(Closure.replay(ledger.answers()))
    assert replay.name == "replay"


def test_its_last_run_is_resumed(file: str) -> None:
    with Ledger.open(file, KEYS) as ledger:
        asker = Asker(Oracle(torch.arange(12), KEYS.names), ledger, run="second")
        asker.load_state_dict({"position": 8, "asked": 0, "seconds": 0.0})
        asker.begin(18)
        asker.features = torch.eye(12)
        asker.labels = torch.full((12,), -1)
        asker.ask_pair(0, 11)
        assert asker.end().questions == 2
        assert ledger.last_event() == 12
