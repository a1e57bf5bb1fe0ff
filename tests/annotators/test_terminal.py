"""The terminal annotator reads lines or keys, and restores the terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pytest

from fastreid_al.annotators import Terminal
from fastreid_al.annotators.terminal import login_name
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import (
    Annotator,
    QuitAsking,
    UndoLast,
    Verdict,
)
from fastreid_al.answers.service import AnswerService
from fastreid_al.data.records import Record
from tests.support.asking import question
from tests.support.ledgers import keys
from tests.support.queues import decision, publish

S, D, U, X = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE, Verdict.NOT_COMPARABLE
ROOT = Path(__file__).parents[2]
PAIRS = list(combinations(range(150), 2))


def answers(
    annotator: Annotator, pairs: Sequence[tuple[int, int]] = PAIRS
) -> dict[tuple[int, int], Verdict]:
    return {pair: annotator.answer(question(*pair)) for pair in pairs}


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
    assert text.count("Leave it open") == 1 and text.count(f"(shown in {sheet})") == 2
    assert "Question 1: two clusters: should they be merged? (" in text
    # How similar the images are would sway the answer.
    assert "0.71" not in text
    assert "A: image 0 (camera 0, 3 images)\n  B: image 7 (camera 1, 1 image)\n" in text
    assert "Question 2: one cluster: should it be split?" in text


def test_terminal_does_not_tell_identities(records: list[Record]) -> None:
    told = []
    for changed in (records, [r._replace(identity=900 + i) for i, r in enumerate(records)]):
        terminal, out = piped(changed, "s\n")
        terminal.answer(question(0, 7, [0, 1, 2], [7]))
        told.append(out.getvalue())
    assert told[0] == told[1]


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
    person, terminal, slave = at_terminal
    person.press(b"s\nsss")
    # The system brings the keys to the terminal in its own time.
    assert select.select([slave], [], [], 20)[0]
    assert press(person, terminal, b"d") is D


def test_a_terminal_that_is_gone_leaves(at_terminal: tuple[Pty, Terminal, int]) -> None:
    person, terminal, _ = at_terminal
    thread, said = in_thread(terminal)
    person.wait("[q]uit > ")
    os.close(person.master)
    thread.join(20)
    assert isinstance(said[0], QuitAsking) and str(said[0]) == "standard input was closed"


def test_ctrl_c_leaves_where_its_signal_is_caught_by_a_run(records: list[Record]) -> None:
    """The training loop notes the first Ctrl-C and lets the second kill: the terminal must not wait
    for either.
    """
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


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://", keys(12)) as opened:
        yield opened


def queue_terminal(records: list[Record], text: str) -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    sheet = records[0].path.parent / "sheet.png"
    return Terminal(records, sheet, name="anna", stdin=io.StringIO(text), stdout=out), out


def titles(out: io.StringIO) -> list[str]:
    lines = out.getvalue().splitlines()
    return [line.split(":")[0] for line in lines if line.startswith("Question")]


def test_a_queue_is_answered_one_question_after_the_other(
    records: list[Record], ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (2, 3)], groups=([4, 5], []))
    terminal, out = queue_terminal(records, "s\nd\n")
    terminal.serve(ledger)
    terminal.serve(AnswerService(ledger))
    assert [(a.left, a.right, a.verdict) for a in ledger.answers()] == [(0, 1, S), (2, 3, D)]
    first, second = ledger.events()
    assert (first.annotator, first.source, first.shown[0]) == (
        "anna",
        "terminal",
        ["train/0.jpg", "train/4.jpg", "train/5.jpg"],
    )
    assert second.question == 2
    assert titles(out) == ["Question 1 of 2", "Question 2"]
    assert "[space] skip" in out.getvalue()


def test_the_terminal_and_the_page_answer_one_queue(records: list[Record], tmp_path: Path) -> None:
    file = str(tmp_path / "answers.sqlite")
    with Ledger.open(file, keys(12)) as trainer, AnswerService.open(file, gold_share=0) as page:
        publish(trainer, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)])
        ben = page.person_named("ben")
        terminal, _ = queue_terminal(records, "s\nd\nz\nu\n")
        for _ in range(2):
            # One of the page is open while the terminal asks.
            task = page.next_task(ben)
            assert task is not None
            terminal.serve(trainer)
            assert page.submit(ben, decision(task, D)).status == "recorded"
        # The terminal takes its own answer back, not the later one of the page.
        terminal.serve(trainer)
        # The person at the terminal has the reopened question, and the one that was shown.
        assert page.next_task(ben) is None
        terminal.serve(trainer)
        given = [(e.question, e.annotator, e.source, e.verdict) for e in trainer.events()]
    assert given == [
        (2, "anna", "terminal", "same"),
        (1, "ben", "web", "different"),
        (4, "anna", "terminal", "different"),
        (3, "ben", "web", "different"),
        (4, "anna", None, None),
        (4, "anna", "terminal", "unsure"),
    ]


def test_undo_of_a_queue_brings_the_question_back_also_after_a_restart(
    records: list[Record], ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (2, 3)])
    queue_terminal(records, "s\n")[0].serve(ledger)
    terminal, out = queue_terminal(records, "undo\nd\nd\n")
    for _ in range(3):
        terminal.serve(ledger)
    assert [(a.left, a.verdict) for a in ledger.answers()] == [(0, D), (2, D)]
    assert titles(out) == ["Question 2", "Question 1 of 2", "Question 2"]


def test_undo_of_a_queue_without_answers_asks_again(records: list[Record], ledger: Ledger) -> None:
    publish(ledger, [(0, 1)])
    terminal, out = queue_terminal(records, "z\ns\n")
    terminal.serve(ledger)
    assert "There is no answer of this run to take back." in out.getvalue()
    assert len(ledger.answers()) == 1


def test_a_skipped_question_comes_back_after_the_others(
    records: list[Record], ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (2, 3)])
    terminal, _ = queue_terminal(records, "skip\nd\ns\n")
    for _ in range(3):
        terminal.serve(ledger)
    assert [(e.left, e.verdict) for e in ledger.events()] == [
        ("train/2.jpg", "different"),
        ("train/0.jpg", "same"),
    ]


def test_who_skips_the_only_question_is_told_so(records: list[Record], ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (2, 3)])
    terminal, out = queue_terminal(records, "skip\nd\nskip\ns\n")
    told = []
    for _ in range(4):
        terminal.serve(ledger)
        told.append(out.getvalue().count("No other question is open"))
    assert told == [0, 0, 1, 2]


def test_a_question_that_was_taken_back_is_not_called_the_only_one(
    records: list[Record], ledger: Ledger
) -> None:
    publish(ledger, [(0, 1)])
    terminal, out = queue_terminal(records, "skip\nd\nz\ns\n")
    terminal.serve(ledger)
    terminal.serve(ledger)
    publish(ledger, [(2, 3)])
    terminal.serve(ledger)
    terminal.serve(ledger)
    assert out.getvalue().count("No other question is open") == 1


def test_the_pairs_of_a_sheet_are_one_decision(records: list[Record], ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (0, 2), (0, 3)], sheet=True)
    terminal, out = queue_terminal(records, "s\ns\nz\nd\nu\nz\n")
    terminal.serve(ledger)
    assert [a.verdict for a in ledger.answers()] == [S, D, U]
    assert len({event.gesture for event in ledger.events()}) == 1
    assert titles(out)[:2] == ["Question 1, pair 1 of 3", "Question 1, pair 2 of 3"]


def test_leaving_a_queue_gives_the_question_back(records: list[Record], ledger: Ledger) -> None:
    publish(ledger, [(0, 1)])
    with pytest.raises(QuitAsking):
        queue_terminal(records, "q\n")[0].serve(ledger)
    service = AnswerService(ledger)
    assert service.next_task(service.person_named("bert")) is not None


def test_a_question_about_an_image_that_is_gone_is_left_to_others(
    records: list[Record], ledger: Ledger
) -> None:
    publish(ledger, [(0, 50), (2, 3)])
    terminal, _ = queue_terminal(records, "s\n")
    terminal.serve(ledger)
    terminal.serve(ledger)
    assert [(answer.left, answer.right) for answer in ledger.answers()] == [(2, 3)]


def test_contradictions_and_what_an_answer_joins_are_said(
    records: list[Record], ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (1, 2), (0, 2)])
    terminal, out = queue_terminal(records, "s\ns\nd\n")
    for _ in range(3):
        terminal.serve(ledger)
    assert "This joins 2 and 1 images: 2 pairs." in out.getvalue()
    assert "contradicts earlier ones (events 1, 2 of the ledger)" in out.getvalue()


def test_keys_answer_a_queue_and_space_skips(
    at_terminal: tuple[Pty, Terminal, int], ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (2, 3)])
    person, terminal, _ = at_terminal
    thread = threading.Thread(
        target=lambda: [terminal.serve(ledger) for _ in range(2)], daemon=True
    )
    thread.start()
    person.wait("[q]uit > ")
    person.press(b" ")
    person.wait("skip\r\n")
    person.wait("[q]uit > ")
    person.press(b"d")
    thread.join(20)
    assert [(e.left, e.verdict) for e in ledger.events()] == [("train/2.jpg", "different")]


def test_who_has_no_login_name_is_called_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "anna")
    assert login_name() == "anna"

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 7")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert login_name() == "terminal"
