"""The ledger keeps every answer that it acknowledged."""

from __future__ import annotations

import contextlib
import os
import random
import select
import sqlite3
import time
from pathlib import Path

import pytest

from fastreid_al.answers.closure import Closure
from fastreid_al.answers.ledger import ImageKeys, Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.errors import LedgerError
from fastreid_al.ledger import main
from tests.support.children import forked, kill
from tests.support.ledgers import keys, put, without_triggers

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


@pytest.mark.parametrize("place", ["memory", "file", "url"])
def test_an_answer_comes_back_as_it_was_given(place: str, file: str) -> None:
    url = {"memory": "sqlite://", "file": file, "url": f"sqlite:///{file}"}[place]
    with Ledger.open(url, keys()) as ledger:
        first = put(
            ledger, 3, 7, score=0.25, similarity=0.5, need=2, shown=(["a.jpg", "b.jpg"], ["c.jpg"])
        )
        second = put(ledger, 7, 1, DIFFERENT, confirms=first, reason="confirm", epoch=None)
        assert (first, second, ledger.last_answer(), ledger.last_event()) == (1, 2, 2, 2)
        assert ledger.answers() == [
            (1, 3, 7, SAME, 2, None, 1.5, "", None, None, False),
            (2, 7, 1, DIFFERENT, 1, 1, 1.5, "", None, None, False),
        ]
        one, two = ledger.events()
        assert (one.left, one.right, one.right_digest) == (
            "train/3.jpg",
            "train/7.jpg",
            f"{7:032x}",
        )
        assert (one.score, one.similarity, one.shown) == (
            0.25,
            0.5,
            (["a.jpg", "b.jpg"], ["c.jpg"]),
        )
        assert (two.kind, two.verdict, two.confirms, two.epoch, two.shown) == (
            "answer",
            "different",
            1,
            None,
            ([], []),
        )
        assert ledger.integrity() == []


def test_answers_survive_closing_and_rows_follow_the_images_and_not_their_order(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 2, 9)
    turned = ImageKeys("market1501", *(list(reversed(column)) for column in keys()[1:]))
    with Ledger.open(file, turned) as ledger:
        put(ledger, 7, 0, DIFFERENT)
        assert [(a.left, a.right) for a in ledger.answers()] == [(7, 0), (7, 0)]
        assert ledger.images() == {0: "train/2.jpg", 1: "train/9.jpg"}


def test_without_keys_answers_are_about_the_numbers_given() -> None:
    with Ledger.open("sqlite://") as ledger:
        put(ledger, 900, 0)
        put(ledger, 5, 900)
        assert [(a.left, a.right) for a in ledger.answers()] == [(900, 0), (5, 900)]
        assert ledger.integrity() == []


def test_without_keys_a_ledger_of_an_image_set_takes_its_own_images_only(filled: str) -> None:
    with Ledger.open(filled) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [(0, 1), (1, 2), (2, 3), (4, 5)]
        put(ledger, 0, 3)
        with pytest.raises(
            LedgerError, match="has no image 99; open it with the images of market1501"
        ):
            put(ledger, 0, 99)


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_does_not_exist_is_refused_and_leaves_nothing_behind(row: int) -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        with pytest.raises(IndexError):
            put(ledger, 0, row)
        assert (ledger.last_event(), ledger.images()) == (0, {})
        put(ledger, 0, 1)
        assert len(ledger.answers()) == 1


def test_an_answer_that_confirms_nothing_is_refused_and_its_images_are_not_remembered() -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        with pytest.raises(LedgerError):
            put(ledger, 0, 1, confirms=77)
        put(ledger, 0, 1)
        assert ledger.integrity() == []


def test_an_empty_ledger_says_so(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        assert (ledger.answers(), ledger.last_event(), ledger.last_answer(), ledger.seconds()) == (
            [],
            0,
            None,
            0.0,
        )
        assert (list(ledger.events()), ledger.unusable(), ledger.integrity()) == ([], 0, [])


def test_an_undone_answer_counts_no_more_and_stays_in_the_ledger() -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        first, second = put(ledger, 0, 1), put(ledger, 1, 2)
        by = ledger.undo(second, "bert", at=200.0)
        assert [a.event for a in ledger.answers()] == [first]
        assert (ledger.last_answer(), ledger.last_event(), ledger.seconds()) == (first, by, 1.5)
        _, undone, undo = ledger.events()
        assert (undone.undone_by, undo.kind, undo.undoes, undo.annotator, undo.answered_at) == (
            (by, "undo", second, "bert", 200.0)
        )


@pytest.mark.parametrize(
    ("event", "message"),
    [(9, "has no event 9; its last is 3"), (3, "not an answer"), (1, "already undone, by event 3")],
)
def test_what_cannot_be_undone_is_refused(event: int, message: str) -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        put(ledger, 0, 1)
        put(ledger, 1, 2)
        ledger.undo(1, "anna")
        with pytest.raises(LedgerError, match=message):
            ledger.undo(event, "anna")
        assert ledger.last_event() == 3


def test_as_of_gives_the_answers_of_then() -> None:
    with Ledger.open("sqlite://", keys()) as ledger:
        put(ledger, 0, 1)
        put(ledger, 1, 2)
        ledger.undo(1, "anna")
        put(ledger, 2, 3)
        got = {n: [a.event for a in ledger.answers(as_of=n)] for n in (0, 1, 2, 3, 4)}
        assert got == {0: [], 1: [1], 2: [1, 2], 3: [2], 4: [2, 4]}
        assert ledger.seconds() == 3.0


def test_answers_say_which_run_gave_them(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1, run="a")
        put(ledger, 1, 2, run="b")
        put(ledger, 2, 3)
        assert [a.run for a in ledger.answers()] == ["a", "b", ""]
        assert (ledger.last_answer(), ledger.last_answer("a"), ledger.last_answer("c")) == (
            3,
            1,
            None,
        )
        ledger.undo(1, "anna")
        assert ledger.last_answer("a") is None


def test_a_renamed_image_is_found_by_its_content_and_stays_the_same_image(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1)
    renamed = keys()._replace(names=["new/0.jpg", *keys().names[1:]])
    with Ledger.open(file, renamed) as ledger:
        put(ledger, 0, 2, DIFFERENT)
        assert [(a.left, a.right) for a in ledger.answers()] == [(0, 1), (0, 2)]
        assert ledger.unusable() == 0
        assert len(ledger.images()) == 3


def test_a_removed_image_makes_its_answers_unusable_and_they_are_kept(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 9)
        put(ledger, 1, 2)
    with Ledger.open(file, keys(9)) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [(0, -1), (1, 2)]
        assert ledger.unusable() == 1
    with Ledger.open(file, keys()) as ledger:
        assert ledger.unusable() == 0


def test_an_image_whose_content_changed_is_another_image(file: str) -> None:
    with Ledger.open(file, keys()) as ledger:
        put(ledger, 0, 1)
    changed = keys()._replace(digests=["f" * 32, *keys().digests[1:]])
    with Ledger.open(file, changed) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [(-1, 1)]
        put(ledger, 0, 1, DIFFERENT)
        assert [(a.left, a.right) for a in ledger.answers()] == [(-1, 1), (0, 1)]


@pytest.mark.parametrize("known", ["ledger", "set", "neither"])
def test_where_a_digest_is_unknown_the_path_decides(file: str, known: str) -> None:
    bare = keys()._replace(digests=())
    with Ledger.open(file, keys() if known == "ledger" else bare) as ledger:
        put(ledger, 4, 5)
    with Ledger.open(file, keys() if known == "set" else bare) as ledger:
        assert [(a.left, a.right) for a in ledger.answers()] == [(4, 5)]


def test_two_images_of_the_same_content_are_told_apart_by_their_paths(file: str) -> None:
    twins = ImageKeys("m", ["a.jpg", "b.jpg", "c.jpg"], ["1", "1", "2"])
    with Ledger.open(file, twins) as ledger:
        put(ledger, 1, 2)
        put(ledger, 0, 2, DIFFERENT)
        assert [(a.left, a.right) for a in ledger.answers()] == [(1, 2), (0, 2)]


def append_until_killed(url: str, acknowledge: int, seed: int) -> None:
    draw = random.Random(seed)
    with Ledger.open(url, keys(1000)) as ledger:
        while True:
            event = put(ledger, *draw.sample(range(1000), 2), shown=(["a.jpg"], ["b.jpg"]))
            os.write(acknowledge, f"{event}\n".encode())
            if draw.random() < 0.2:
                os.write(acknowledge, f"{ledger.undo(event, 'anna')}\n".encode())


@pytest.mark.slow
def test_every_acknowledged_answer_survives_kills(file: str) -> None:
    draw, acknowledged = random.Random(0), 0
    for seed in range(50):
        read, write = os.pipe()
        child = forked(lambda w=write, s=seed: append_until_killed(file, w, s))  # type: ignore
        os.close(write)
        with os.fdopen(read) as pipe:
            for _ in range(draw.randrange(15)):
                assert select.select([pipe], [], [], 20)[0]
                acknowledged = int(pipe.readline())
            time.sleep(draw.random() * 0.01)
            kill(child)
            acknowledged = max([acknowledged, *(int(line) for line in pipe if line.endswith("\n"))])
        if not Path(file).exists():
            continue
        with Ledger.open(file, keys(1000)) as ledger:
            events = [e.id for e in ledger.events()]
            # An answer that was written and not yet acknowledged may be there as well.
            assert events == list(range(1, len(events) + 1))
            assert acknowledged <= len(events) <= acknowledged + 1
            acknowledged = len(events)
            assert ledger.integrity() == []
    assert acknowledged > 200


def test_65_000_answers_are_read_and_replayed(tmp_path: Path) -> None:
    draw, names = random.Random(1), [f"{i}.jpg" for i in range(20_000)]
    file = str(tmp_path / "answers.sqlite")
    images = ImageKeys("m", names, ())
    Ledger.open(file, images).close()
    pairs = [sorted(draw.sample(range(20_000), 2)) for _ in range(65_000)]
    with contextlib.closing(sqlite3.connect(file)) as raw, raw:
        raw.executemany("INSERT INTO images (id, path, digest) VALUES (?, ?, '')", enumerate(names))
        raw.executemany(
            "INSERT INTO events "
            "(kind, left_id, right_id, verdict, annotator, asked_at, answered_at) "
            "VALUES ('answer', ?, ?, 'different', 'a', 0, 1)",
            pairs,
        )
    with Ledger.open(file, images) as ledger:
        answers = ledger.answers()
        assert len(answers) == 65_000
        assert ledger.seconds() == 65_000
        closure = Closure.replay(answers)
    distinct = {tuple(p) for p in pairs}
    assert sum(len(closure.cannot_links(root)) for root in closure.components()) == 2 * len(
        distinct
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "UPDATE events SET verdict = 'perhaps' WHERE id = 2",
            "event 2 has an unknown verdict",
        ),
        (
            "UPDATE events SET verdict = NULL WHERE id = 2",
            "event 2 has an unknown verdict",
        ),
        (
            "UPDATE events SET left_id = 99 WHERE id = 3",
            "event 3 is about an image that is not in the ledger",
        ),
        (
            "UPDATE events SET confirms = 99 WHERE id = 1",
            "event 1 confirms an answer that is not in the ledger",
        ),
        (
            "UPDATE events SET confirms = 6 WHERE id = 1",
            "event 1 confirms an answer that is not in the ledger",
        ),
        (
            "UPDATE events SET undoes = 99 WHERE id = 6",
            "event 6 undoes an answer that is not in the ledger",
        ),
        ("UPDATE events SET kind = 'x' WHERE id = 4", "event 4 is neither an answer nor an undo"),
    ],
)
def test_integrity_names_the_event_that_is_wrong(
    filled: str, damage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_triggers(filled) as other:
        other.execute(damage)
    with Ledger.open(filled, write=False) as ledger:
        assert ledger.integrity() == [message]
    with pytest.raises(SystemExit) as exit_:
        main(["check", filled])
    assert exit_.value.code == 1
    assert capsys.readouterr().out == message + "\n"


def test_answers_that_cannot_be_understood_are_refused(filled: str) -> None:
    with without_triggers(filled) as other:
        other.execute("UPDATE events SET verdict = 'perhaps' WHERE id = 2")
    with (
        Ledger.open(filled, write=False) as ledger,
        pytest.raises(LedgerError, match=r"unknown image or verdict \('perhaps'\)"),
    ):
        ledger.answers()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(words)
    return capsys.readouterr().out
