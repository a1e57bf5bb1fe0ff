"""Annotators answer what they should, always alike, and lose no terminal; the sheet shows a question and no identity."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import random
import select
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_al.annotators import Oracle, Replay, Terminal
from fastreid_al.annotators.sheet import MEMBERS, draw_sheet
from fastreid_al.answers.closure import Closure
from fastreid_al.answers.question import (
    Annotator,
    Answer,
    NoAnswer,
    Question,
    QuitAsking,
    UndoLast,
    Verdict,
)
from fastreid_al.data.records import Record
from fastreid_al.errors import UserError

S, D, U, X = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE, Verdict.NOT_COMPARABLE
IDENTITIES = torch.arange(150) % 30
ROOT = Path(__file__).parents[2]
PAIRS = list(combinations(range(150), 2))


def question(
    a: int,
    b: int,
    first: Sequence[int] | None = None,
    second: Sequence[int] | None = None,
    reason: str = "merge",
) -> Question:
    groups = torch.tensor(first or [a]), torch.tensor(second or [b])
    return Question((a, b), groups, reason, 0.71, 1.0)


def answers(
    annotator: Annotator, pairs: Sequence[tuple[int, int]] = PAIRS
) -> dict[tuple[int, int], Verdict]:
    return {pair: annotator.answer(question(*pair)) for pair in pairs}


def truth(pair: tuple[int, int]) -> Verdict:
    return S if IDENTITIES[pair[0]] == IDENTITIES[pair[1]] else D


# The oracle and the answers of another run.


def test_oracle_without_errors_tells_the_truth() -> None:
    oracle = Oracle(IDENTITIES)
    assert oracle.name == "oracle"
    assert answers(oracle) == {pair: truth(pair) for pair in PAIRS}


def test_oracle_answers_alike_in_any_order_of_questions_and_of_images() -> None:
    rates: dict[str, Any] = {"error": 0.2, "unsure": 0.2, "not_comparable": 0.2, "seed": 5}
    expected = answers(Oracle(IDENTITIES, **rates))
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    assert answers(Oracle(IDENTITIES, **rates), shuffled) == expected
    turned = Oracle(IDENTITIES, **rates)
    assert {(a, b): turned.answer(question(b, a)) for a, b in PAIRS} == expected


def test_oracle_answers_alike_in_another_process() -> None:
    code = (
        "import torch; from fastreid_al.annotators import Oracle; from fastreid_al.answers.question import Question\n"
        "oracle = Oracle(torch.arange(150) % 30, error=0.3, unsure=0.2, seed=1)\n"
        "for b in range(1, 150):\n"
        "    rows = torch.tensor([0]), torch.tensor([b])\n"
        "    print(oracle.answer(Question((0, b), rows, 'merge', 0.0, 0.0)).value)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    here = answers(
        Oracle(IDENTITIES, error=0.3, unsure=0.2, seed=1), [(0, b) for b in range(1, 150)]
    )
    assert said[:-1] == [verdict.value for verdict in here.values()]


def test_oracle_answers_by_name_not_by_row() -> None:
    names = [f"cam/{row:03}.jpg" for row in range(150)]
    moved = torch.randperm(150).tolist()
    oracle = Oracle(IDENTITIES, names, error=0.5, seed=2)
    other = Oracle(
        IDENTITIES[torch.tensor(moved)], [names[row] for row in moved], error=0.5, seed=2
    )
    place = {row: at for at, row in enumerate(moved)}
    assert all(
        oracle.answer(question(a, b)) is other.answer(question(place[a], place[b]))
        for a, b in PAIRS
    )


def test_oracle_keeps_names_apart() -> None:
    """The pairs ("a", "b,c") and ("a,b", "c") are not one pair, for any separator."""
    names = ['a"', ' "b', "a", '", "b', "a\0b", "c", "a", "b\0c"]
    oracle = Oracle(torch.arange(8), names)
    assert oracle._uniform(0, 1) != oracle._uniform(2, 3)
    assert oracle._uniform(4, 5) != oracle._uniform(6, 7)


def test_oracle_seeds_differ() -> None:
    assert answers(Oracle(IDENTITIES, error=0.5, seed=0)) != answers(
        Oracle(IDENTITIES, error=0.5, seed=1)
    )


@pytest.mark.parametrize(
    "rates", [(0.1, 0.05, 0.2), (0.0, 0.3, 0.0), (0.4, 0.0, 0.0), (0.7, 0.2, 0.1), (0.2, 0.7, 0.1)]
)
def test_oracle_rates_come_out_near(rates: tuple[float, float, float]) -> None:
    error, unsure, not_comparable = rates
    said = answers(Oracle(IDENTITIES, error=error, unsure=unsure, not_comparable=not_comparable))
    found = Counter(v if v in (U, X) else v is truth(pair) for pair, v in said.items())
    expected: dict[Any, float] = {
        U: unsure,
        X: not_comparable,
        False: error,
        True: 1 - error - unsure - not_comparable,
    }
    for outcome, rate in expected.items():
        assert found[outcome] / len(PAIRS) == pytest.approx(rate, abs=0.015)
    wrong = {truth(pair) for pair, v in said.items() if v in (S, D) and v is not truth(pair)}
    assert wrong == ({S, D} if error else set())


def test_oracle_rates_of_one_leave_nothing_to_chance() -> None:
    assert set(answers(Oracle(IDENTITIES, unsure=1)).values()) == {U}
    assert set(answers(Oracle(IDENTITIES, not_comparable=1)).values()) == {X}
    wrong = {S: D, D: S}
    assert answers(Oracle(IDENTITIES, error=1)) == {pair: wrong[truth(pair)] for pair in PAIRS}


@pytest.mark.parametrize(
    "rates",
    [
        {"error": -0.1},
        {"unsure": 1.1},
        {"not_comparable": float("nan")},
        {"error": 0.6, "unsure": 0.5},
    ],
)
def test_oracle_refuses_rates_that_are_no_shares(rates: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1|a sum of 1\.1"):
        Oracle(IDENTITIES, **rates)


def test_oracle_needs_true_identities_and_a_name_each() -> None:
    with pytest.raises(ValueError, match=r"needs true identities: 1 of 3"):
        Oracle(torch.tensor([0, -1, 2]))
    with pytest.raises(ValueError, match="names: got 2, expected one for each of 3"):
        Oracle(torch.tensor([0, 1, 2]), ["a", "b"])


def test_replay_gives_the_answers_of_either_order_and_what_follows_from_them() -> None:
    replay = Replay(Closure.replay([Answer(1, 1, 4, S), Answer(2, 0, 2, X), Answer(3, 4, 9, D)]))
    assert replay.name == "replay"
    assert replay.answer(question(4, 1)) is S
    assert replay.answer(question(1, 4)) is S
    assert replay.answer(question(2, 0)) is X
    assert replay.answer(question(9, 1)) is D


def test_replay_passes_where_the_other_run_has_no_answer() -> None:
    with pytest.raises(NoAnswer, match="images 7 and 3"):
        Replay(Closure.replay([Answer(1, 0, 1, S)])).answer(question(7, 3))


# The sheet.


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Twelve images of 3 cameras, told apart by their colours."""
    found = []
    for i in range(12):
        path = tmp_path / f"{i:02}.png"
        Image.new("RGB", (20, 40), (20 * i, 255 - 20 * i, 90)).save(path)
        found.append(Record(path, i // 6, i % 3))
    return found


def draw(asked: Question, records: Sequence[Record], path: Path) -> Image.Image:
    draw_sheet(asked, records, path, 1)
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.convert("RGB")


def colours(image: Image.Image) -> dict[tuple[int, ...], int]:
    return {colour: count for count, colour in image.getcolors(image.width * image.height)}  # type: ignore[misc, union-attr]


def extent(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a colour."""
    ys, xs = np.nonzero((np.asarray(image) == colour).all(axis=-1))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_sheet_shows_the_two_images_large_and_their_groups(
    records: list[Record], tmp_path: Path
) -> None:
    path = tmp_path / "new folder" / "sheet.png"
    shown = draw_sheet(question(2, 7, [2, 3, 4], [7, 8]), records, path, 3)
    assert shown == (
        [records[i].path.as_posix() for i in (2, 3, 4)],
        [records[i].path.as_posix() for i in (7, 8)],
    )
    assert os.listdir(path.parent) == ["sheet.png"]
    with Image.open(path) as image:
        found = colours(image)
        middle = image.width // 2
        sizes = {}
        for i in (2, 3, 4, 7, 8):
            left, top, right, bottom = extent(image, (20 * i, 255 - 20 * i, 90))
            assert found[20 * i, 255 - 20 * i, 90] == (right - left) * (bottom - top)
            assert right < middle if i < 5 else left > middle
            sizes[i] = (right - left, bottom - top)
    assert sizes[2] == sizes[7] == (160, 320)
    assert sizes[3] == sizes[4] == sizes[8] == (60, 120)


def test_sheet_does_not_know_identities(records: list[Record], tmp_path: Path) -> None:
    asked = question(0, 6, list(range(6)), list(range(6, 12)))
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw_sheet(asked, records, first, 1)
    draw_sheet(asked, [r._replace(identity=900 - i) for i, r in enumerate(records)], second, 1)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda asked, records: (question(0, 1, reason="split"), records, 1),
        lambda asked, records: (asked, records, 2),
        lambda asked, records: (asked, records, None),
        lambda asked, records: (asked, [records[0]._replace(camera=-1), *records[1:]], 1),
        lambda asked, records: (question(0, 1, None, [1, 2]), records, 1),
    ],
)
def test_sheet_tells_reason_number_camera_and_count(
    change: Callable[..., Any], records: list[Record], tmp_path: Path
) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw_sheet(question(0, 1), records, first, 1)
    asked, changed, number = change(question(0, 1), records)
    draw_sheet(asked, changed, second, number)
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"not an image", "half"])
def test_sheet_shows_a_grey_box_for_an_unreadable_image(
    content: bytes | str | None, records: list[Record], tmp_path: Path
) -> None:
    whole = records[1].path.read_bytes()
    records[1].path.unlink()
    if content is not None:
        records[1].path.write_bytes(
            whole[: len(whole) // 2] if isinstance(content, str) else content
        )
    found = colours(draw(question(0, 1, [0, 1], [1, 2]), records, tmp_path / "sheet.png"))
    assert found[0xBB, 0xBB, 0xBB] > 200 * 300


def test_sheet_of_groups_of_one_image_and_unknown_cameras(
    records: list[Record], tmp_path: Path
) -> None:
    unknown = [r._replace(camera=-1) for r in records]
    shown = draw_sheet(question(0, 1), unknown, tmp_path / "sheet.png")
    assert shown == ([records[0].path.as_posix()], [records[1].path.as_posix()])


def test_sheet_keeps_the_aspect_of_very_wide_and_very_tall_images(tmp_path: Path) -> None:
    sizes, inks = (
        [(3000, 30), (8, 3000), (1, 3000), (3000, 1)],
        [(250, 0, 0), (0, 0, 250), (0, 200, 0), (200, 0, 200)],
    )
    records = [Record(tmp_path / f"{i}.png", 0, 0) for i in range(4)]
    for record, size, ink in zip(records, sizes, inks, strict=True):
        Image.new("RGB", size, ink).save(record.path)
    image = draw(question(0, 1, [0, 2], [1, 3]), records, tmp_path / "sheet.png")
    boxes = [extent(image, ink) for ink in inks]
    shown = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    assert shown == [(540, 5), (1, 320), (1, 120), (96, 1)]


def test_sheet_of_a_large_group_is_spread_over_cameras_and_over_the_group(tmp_path: Path) -> None:
    # Camera 7 has 4 images of 200, cameras 1 to 4 the others.
    records = [Record(Path(f"{i}.jpg"), 0, 7 if i % 50 == 20 else 1 + i % 4) for i in range(201)]
    shown, _ = draw_sheet(question(0, 200, list(range(200))), records, tmp_path / "sheet.png")
    rows = [int(Path(name).stem) for name in shown]
    assert len(rows) == 1 + MEMBERS and len(set(rows)) == len(rows)
    assert rows[:2] == [0, 1] and rows == sorted(rows) and rows[-1] > 150
    assert max(b - a for a, b in pairwise(rows)) < 50
    cameras = Counter(records[row].camera for row in rows)
    assert set(cameras) == {1, 2, 3, 4, 7} and max(cameras.values()) <= 4


def test_sheet_shows_images_that_are_not_the_medoids(records: list[Record], tmp_path: Path) -> None:
    """Merges are confirmed with other images of the two groups."""
    asked = question(4, 8, [3, 4, 5], [7, 8])
    shown = draw_sheet(asked, records, tmp_path / "sheet.png")
    assert shown == (
        [records[i].path.as_posix() for i in (4, 3, 5)],
        [records[i].path.as_posix() for i in (8, 7)],
    )


def test_sheet_that_cannot_be_written_says_so(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match="could not write the contact sheet"):
        draw_sheet(question(0, 1), records, tmp_path / "folder.png")
    with pytest.raises(UserError, match="could not write the contact sheet"):
        draw_sheet(question(0, 1), records, records[0].path / "sheet.png")
    assert sorted(os.listdir(tmp_path)) == before


# The terminal, piped.


def piped(records: list[Record], text: str) -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    return Terminal(
        records, records[0].path.parent / "sheet.png", stdin=io.StringIO(text), stdout=out
    ), out


def test_piped_letters_and_words_are_answers(records: list[Record]) -> None:
    lines = "s\nD\nu\nx\nsame\nDifferent\nunsure\n  not   comparable \ns"
    terminal, _ = piped(records, lines)
    assert terminal.name == "terminal"
    assert [terminal.answer(question(0, 1)) for _ in range(9)] == [S, D, U, X, S, D, U, X, S]


@pytest.mark.parametrize("line", ["", "k", "don't know", "skip", "not same", "\x1b[D", "sd"])
def test_what_is_not_an_answer_is_asked_again(line: str, records: list[Record]) -> None:
    terminal, out = piped(records, f"{line}\ns\nd\n")
    assert terminal.answer(question(0, 1)) is S
    assert out.getvalue().count("[s]ame") == 2
    assert out.getvalue().count("\ns same, d different") == 1
    assert terminal.answer(question(0, 1)) is D


@pytest.mark.parametrize("line", ["z", "undo", "Z"])
def test_undo_takes_the_last_answer_back(line: str, records: list[Record]) -> None:
    terminal, out = piped(records, f"s\n{line}\nd\n")
    terminal.answer(question(0, 1))
    with pytest.raises(UndoLast):
        terminal.answer(question(2, 3))
    assert terminal.answer(question(0, 1)) is D
    assert [
        text.split(":")[0] for text in out.getvalue().splitlines() if text.startswith("Question")
    ] == [
        "Question 1",
        "Question 2",
        "Question 1",
    ]


def test_undo_before_any_answer_is_passed_on(records: list[Record]) -> None:
    terminal, out = piped(records, "z\ns\n")
    with pytest.raises(UndoLast):
        terminal.answer(question(0, 1))
    terminal.answer(question(0, 1))
    assert "Question 0" not in out.getvalue()


@pytest.mark.parametrize("line", ["q", "quit", "\x03", "\x04"])
def test_quit_leaves(line: str, records: list[Record]) -> None:
    with pytest.raises(QuitAsking):
        piped(records, f"{line}\ns\n")[0].answer(question(0, 1))


class Broken(io.StringIO):
    """Standard input that fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        raise self.error


def test_end_of_input_or_no_input_leaves(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = records[0].path.parent / "sheet.png"
    closed = io.StringIO("s\n")
    closed.close()
    gone = [closed, io.StringIO(""), Broken(EOFError()), Broken(OSError(5, "Input/output error"))]
    for stdin in gone:
        with pytest.raises(QuitAsking, match=r"^standard input was closed$"):
            Terminal(records, sheet, stdin=stdin, stdout=io.StringIO()).answer(question(0, 1))
    monkeypatch.setattr(sys, "stdin", None)  # as Python does when a process starts without one
    with pytest.raises(QuitAsking, match=r"^standard input was closed$"):
        Terminal(records, sheet, stdout=io.StringIO()).answer(question(0, 1))


def test_interrupt_and_other_failures_while_reading(records: list[Record]) -> None:
    sheet = records[0].path.parent / "sheet.png"
    with pytest.raises(QuitAsking, match="left"):
        Terminal(records, sheet, stdin=Broken(KeyboardInterrupt()), stdout=io.StringIO()).answer(
            question(0, 1)
        )
    with pytest.raises(OSError, match="no memory"):
        Terminal(
            records, sheet, stdin=Broken(OSError(12, "no memory")), stdout=io.StringIO()
        ).answer(question(0, 1))
    text = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")
    with pytest.raises(QuitAsking, match="not text"):
        Terminal(records, sheet, stdin=text, stdout=io.StringIO()).answer(question(0, 1))


def test_question_is_told_in_words_and_the_sheet_once(records: list[Record]) -> None:
    terminal, out = piped(records, "s\nd\n")
    assert terminal.shown == ([], [])
    terminal.answer(question(0, 7, [0, 1, 2], [7]))
    assert terminal.shown == (
        [records[i].path.as_posix() for i in (0, 1, 2)],
        [records[7].path.as_posix()],
    )
    terminal.answer(question(3, 4, reason="split"))
    assert terminal.shown == ([records[3].path.as_posix()], [records[4].path.as_posix()])
    text = out.getvalue()
    sheet = records[0].path.parent / "sheet.png"
    assert text.count("Leave it open") == 1 and text.count(f", shown in {sheet})") == 2
    assert "Question 1: two clusters: should they be merged? (similarity 0.71" in text
    assert "A: image 0 (camera 0, 3 images)\n  B: image 7 (camera 1, 1 image)\n" in text
    assert "Question 2: one cluster: should it be split?" in text


def test_terminal_does_not_tell_identities(records: list[Record]) -> None:
    told = []
    for changed in (records, [r._replace(identity=900 + i) for i, r in enumerate(records)]):
        terminal, out = piped(changed, "s\n")
        terminal.answer(question(0, 7, [0, 1, 2], [7]))
        told.append(out.getvalue())
    assert told[0] == told[1]


# The terminal, on a pseudo-terminal.


class Pty:
    """Somebody at a terminal: waits for a prompt, then presses keys."""

    def __init__(self, master: int) -> None:
        self.master, self.seen, self.heard = master, "", 0

    def wait(self, text: str) -> None:
        """Until a text comes that was not there at the last call."""
        end = time.monotonic() + 20
        while text not in self.seen[self.heard :]:
            assert time.monotonic() < end, f"{text!r} did not come; {self.seen!r} did"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode()
        self.heard = self.seen.index(text, self.heard) + len(text)

    def press(self, keys: bytes) -> None:
        """Press keys at once."""
        os.write(self.master, keys)


@pytest.fixture
def at_terminal(records: list[Record]) -> Iterator[tuple[Pty, Terminal, int]]:
    master, slave = pty.openpty()
    # Closing flushes what a terminal that is gone did not take.
    with (
        contextlib.suppress(OSError),
        open(slave, closefd=False) as stdin,
        open(slave, "w", closefd=False) as stdout,
    ):
        yield (
            Pty(master),
            Terminal(records, records[0].path.parent / "s.png", stdin=stdin, stdout=stdout),
            slave,
        )
    for fd in (slave, master):
        with contextlib.suppress(OSError):
            os.close(fd)


def in_thread(terminal: Terminal) -> tuple[threading.Thread, list[object]]:
    said: list[object] = []

    def ask() -> None:
        try:
            said.append(terminal.answer(question(0, 1)))
        except Exception as error:
            said.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, said


def press(person: Pty, terminal: Terminal, *keys: bytes) -> object:
    """Press keys, each at a prompt; gives the answer."""
    thread, said = in_thread(terminal)
    for pressed in keys:
        person.wait("[q]uit > ")
        person.press(pressed)
    thread.join(20)
    assert not thread.is_alive()
    return said[0]


@pytest.mark.parametrize(("key", "verdict"), [(b"s", S), (b"D", D), (b"u", U), (b"x", X)])
def test_one_key_answers_without_enter(
    key: bytes, verdict: Verdict, at_terminal: tuple[Pty, Terminal, int]
) -> None:
    person, terminal, slave = at_terminal
    before = termios.tcgetattr(slave)
    assert press(person, terminal, key) is verdict
    person.wait(f"{verdict.value}\r\n")
    assert termios.tcgetattr(slave) == before


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (b"z", UndoLast, ""),
        (b"q", QuitAsking, "left"),
        (b"\x03", QuitAsking, "left"),
        (b"\x04", QuitAsking, "standard input was closed"),
    ],
)
def test_undo_quit_ctrl_c_and_ctrl_d_restore_the_terminal(
    key: bytes, error: type[Exception], message: str, at_terminal: tuple[Pty, Terminal, int]
) -> None:
    person, terminal, slave = at_terminal
    before = termios.tcgetattr(slave)
    left = press(person, terminal, key)
    assert isinstance(left, error) and message in str(left)
    assert termios.tcgetattr(slave) == before


def test_unknown_keys_and_arrows_are_asked_again(at_terminal: tuple[Pty, Terminal, int]) -> None:
    """The left arrow ends in D, which is no answer."""
    person, terminal, _ = at_terminal
    assert press(person, terminal, b"k", b"\x1b[D", "é".encode(), b"\r", b"s") is S
    assert person.seen.count("\ns same, d different") == 4


def test_keys_pressed_before_the_question_are_dropped(
    at_terminal: tuple[Pty, Terminal, int],
) -> None:
    person, terminal, _ = at_terminal
    person.press(b"s\nsss")
    assert press(person, terminal, b"d") is D


def test_a_terminal_that_is_gone_leaves(at_terminal: tuple[Pty, Terminal, int]) -> None:
    person, terminal, _ = at_terminal
    thread, said = in_thread(terminal)
    person.wait("[q]uit > ")
    os.close(person.master)
    thread.join(20)
    assert isinstance(said[0], QuitAsking) and str(said[0]) == "standard input was closed"


def test_ctrl_c_leaves_where_its_signal_is_caught_by_a_run(records: list[Record]) -> None:
    """The training loop notes the first Ctrl-C and lets the second kill: the terminal must not wait for either."""
    code = (
        "import fcntl, pathlib, signal, termios, torch\n"
        "from fastreid_al.annotators import Terminal\n"
        "from fastreid_al.answers.question import Question, QuitAsking\n"
        "from fastreid_al.data.records import Record\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "signal.signal(signal.SIGINT, lambda *_: print('noted', flush=True))\n"
        f"folder = pathlib.Path({str(records[0].path.parent)!r})\n"
        "records = [Record(folder / '00.png', 0, 0), Record(folder / '01.png', 0, 1)]\n"
        "asked = Question((0, 1), (torch.tensor([0]), torch.tensor([1])), 'merge', 0.5, 0.5)\n"
        "try:\n    Terminal(records, folder / 's.png').answer(asked)\n"
        "except QuitAsking as error:\n    print('quit:', error, flush=True)\n"
    )
    master, slave = pty.openpty()
    person = Pty(master)
    command = [sys.executable, "-c", code]
    run = subprocess.Popen(
        command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    try:
        person.wait("[q]uit > ")
        person.press(b"\x03")
        person.wait("quit: the annotator left")
        assert "noted" not in person.seen
    finally:
        run.kill()
        run.wait()
        os.close(slave)
        os.close(master)


def test_without_termios_the_terminal_is_read_by_lines(
    at_terminal: tuple[Pty, Terminal, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    person, terminal, _ = at_terminal
    monkeypatch.setattr("fastreid_al.annotators.terminal._HAS_TERMIOS", False)
    assert press(person, terminal, b"different\n") is D
