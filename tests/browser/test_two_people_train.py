"""Two people answer the questions of a training run by keys, in a browser each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page

from fastreid_al.answers.ledger import Ledger
from fastreid_al.config import RunConfig
from fastreid_al.runs import run_training
from tests.annotators.test_web import config_with, identities
from tests.support.browser import chromium
from tests.support.tiny import same_weights, weights
from tests.support.web_people import end_server, free_port

pytest.importorskip("starlette")
pytestmark = pytest.mark.slow

NAMES = ("anna", "ben")
#: Answers in all, of two epochs.
ANSWERS = 200
#: For how long a question is looked at, in seconds. People take longer.
LOOK = 0.3
#: After this many seconds the run hangs.
PATIENCE = 300.0

#: Records each pair that is on the screen, and the milliseconds from a key to the frame after the
#: one with both large images of the next pair.
WATCH = """() => {
    const watched = window.watched = {pair: null, since: 0, shown: [], times: []};
    let pressed = null;
    const look = () => {
        const frames = [...document.querySelectorAll('#pair .frame img')];
        const there = document.body.dataset.kind === 'pair'
            && frames.every((img) => img.complete && img.naturalWidth > 0);
        const pair = there ? frames.map((img) => img.src.match(/image\\/(\\d+)/)[1]).join() : null;
        if (document.body.dataset.kind === 'none' && pressed) pressed.waited = true;
        if (pair && pair !== watched.pair) {
            watched.shown.push(pair);
            watched.since = performance.now();
            const measured = pressed;
            pressed = null;
            if (measured) requestAnimationFrame(() => watched.times.push(
                [performance.now() - measured.start, measured.waited]));
        }
        watched.pair = pair;
        requestAnimationFrame(look);
    };
    addEventListener('keydown', (event) => {
        const start = Math.min(event.timeStamp, performance.now());
        pressed = {start, waited: false};
    }, true);
    look();
}"""
STATE = "() => [watched.pair, performance.now() - watched.since]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def train(config: RunConfig, threads: int, log: Path) -> None:
    """Train in a process of its own, whose output and that of the page go to a file."""
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(threads)
    run_training(config)


@contextlib.contextmanager
def training(config: RunConfig, log: Path) -> Iterator[BaseProcess]:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=train, args=(config, torch.get_num_threads(), log))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        end_server(Path(str(config.run_dir)) / "answers.sqlite")


def wait_for_links(process: BaseProcess, log: Path) -> dict[str, str]:
    """Personal links by name, which the page prints when it is served."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.is_alive():
        found = re.findall(r"questions for (\w+): (http://\S+/link/\S+)", _text(log))
        if len(found) == len(NAMES):
            return dict(found)
        time.sleep(0.05)
    raise AssertionError(f"there are no links: {_text(log)}")


def _text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


class Sitting:
    """A person at a browser, who looks at each question for a moment and presses a key.

    Args:
        page: The page.
        ledger: The ledger, from which the paths of the images are read.
        truth: True identity by path.
    """

    def __init__(self, page: Page, ledger: Path, truth: dict[str, int]) -> None:
        self.given: dict[tuple[int, int], str] = {}
        self._page = page
        self._ledger = ledger
        self._truth = truth
        self._identity: dict[int, int] = {}

    def step(self) -> None:
        """Answer the question on the screen, if it was there for long enough."""
        pair, milliseconds = self._page.evaluate(STATE)
        if pair is None or milliseconds < 1000 * LOOK:
            return
        left, right = map(int, pair.split(","))
        if (left, right) in self.given:
            return
        is_same = self._identity_of(left) == self._identity_of(right)
        self.given[left, right] = "same" if is_same else "different"
        self._page.keyboard.press("s" if is_same else "d")

    def _identity_of(self, number: int) -> int:
        # Images are numbered when a question shows them first.
        if number not in self._identity:
            with Ledger.open(str(self._ledger), write=False) as opened:
                self._identity = {key: self._truth[path] for key, path in opened.images().items()}
        return self._identity[number]

    def watched(self) -> Any:
        return self._page.evaluate("watched")


def open_page(browser: Browser, link: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.goto(link)
    page.wait_for_function("document.body.classList.contains('annotate')")
    page.evaluate(WATCH)
    return page


def test_two_people_train_by_keys_what_an_oracle_trains(browser: Browser, tmp_path: Path) -> None:
    base = config_with(tmp_path / "oracle", "oracle", per_epoch=ANSWERS // 2)
    synthetic = replace(base.synthetic, train_identities=16, train_images=160)
    # As many questions are open as for two people by default.
    questions = replace(base.questions, window=3 * len(NAMES))
    oracle = replace(base, synthetic=synthetic, questions=questions)
    run_training(oracle)
    web = replace(oracle.web, port=free_port(), people=",".join(NAMES))
    config = replace(oracle, run_dir=str(tmp_path / "people"), annotator="web", web=web)
    ledger = tmp_path / "people" / "answers.sqlite"
    log = tmp_path / "log"
    truth = identities(config)
    with training(config, log) as process:
        links = wait_for_links(process, log)
        people = [Sitting(open_page(browser, links[name]), ledger, truth) for name in NAMES]
        until = time.monotonic() + PATIENCE
        while process.is_alive() and time.monotonic() < until:
            for person in people:
                person.step()
            process.join(0.01)
        assert process.exitcode == 0, _text(log)
        watched = [person.watched() for person in people]
    print_times(watched)

    shown = [set(one["shown"]) for one in watched]
    with Ledger.open(str(ledger), write=False) as opened:
        assert opened.integrity() == []
        events = [event for event in opened.events() if event.kind == "answer"]
        number = {path: key for key, path in opened.images().items()}
    assert len({event.question for event in events}) == ANSWERS
    # A second person checks some answers. Nobody saw another question of the other.
    people_of = defaultdict(list)
    for event in events:
        people_of[number[event.left], number[event.right]].append(event.annotator)
    assert all(len(set(names)) == len(names) for names in people_of.values())
    checked = {f"{a},{b}" for (a, b), names in people_of.items() if len(names) == len(NAMES)}
    assert shown[0] & shown[1] == checked
    for name, person, pairs in zip(NAMES, people, shown, strict=True):
        own = [event for event in events if event.annotator == name]
        assert len(own) > ANSWERS // 4
        # Each key is in the ledger, and nothing else is.
        written = {(number[e.left], number[e.right]): e.verdict for e in own}
        assert written == person.given
        assert {f"{left},{right}" for left, right in written} == pairs
    assert same_weights(weights(tmp_path / "oracle"), weights(tmp_path / "people"))


def print_times(watched: list[Any]) -> None:
    """Print how long after a key the next question is there."""
    times = [milliseconds for one in watched for milliseconds, _ in one["times"]]
    ready = [milliseconds for one in watched for milliseconds, waited in one["times"] if not waited]
    for what, some in (("all", times), ("next question loaded", ready)):
        median, high = statistics.median(some), np.percentile(some, 95)
        print(
            f"key to next, {what}: {len(some)} keys, median {median:.0f} ms, p95 {high:.0f} ms, "
            f"most {max(some):.0f} ms"
        )
    print(f"load {os.getloadavg()[0]:.1f}")
