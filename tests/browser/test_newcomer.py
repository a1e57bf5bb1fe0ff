"""The path of somebody with unlabelled crops, by the commands of the documentation.

Crops without names or identities -> training with questions -> a table of identities -> search for
a new crop -> a report in a browser.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe

from fastreid_al.answers import Question, Verdict
from fastreid_al.data import load
from tests.support.browser import RULES, chromium

pytestmark = pytest.mark.slow

CROPS = 2_000
#: A run of a minute; a person would leave these settings out.
SETTINGS = (
    *("--recipe", "small", "--epochs", "3", "--batch.iterations", "20"),
    *("--image.height", "64", "--image.width", "32"),
    *("--questions.start", "1", "--questions.per-epoch", "60"),
)
#: What an annotator knows by looking: the person on each crop, in the order of the file names.
PEOPLE = "people.txt"
#: A training whose annotator is an object in place of a person at the terminal.
TRAINING = """
import sys
from pathlib import Path
from fastreid_al.cli import parse_training
from fastreid_al.runs import run_training
from tests.browser.test_newcomer import Looker
config, _ = parse_training(sys.argv[2:])
run_training(config, annotator=Looker(Path(sys.argv[1])))
"""


class Looker:
    """Answers as a person would who looks at both crops."""

    name = "looker"

    def __init__(self, people: Path) -> None:
        self._people = people.read_text().split()

    def answer(self, question: Question) -> Verdict:
        left, right = (self._people[image] for image in question.images)
        return Verdict.SAME if left == right else Verdict.DIFFERENT


class Work(NamedTuple):
    """What the newcomer has.

    Args:
        crops: A folder of crops with meaningless names.
        new: A crop that is not in it, of a person who is.
        person: That person.
        people: The person on each crop.
    """

    crops: Path
    new: Path
    person: str
    people: dict[str, str]


def command(*words: str | Path, code: str | None = None) -> str:
    """Run `fastreid-al WORDS`, or code with these words, and return what it printed."""
    start = ["-m", "fastreid_al"] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *start, *map(str, words)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    rendered = folder / "rendered"
    counts = ("--train-images", CROPS + 1, "--query-images", 64, "--gallery-images", 128)
    command("synthesize", "--out", rendered, "--height", "64", *map(str, counts))
    records = list(load("msmt17", rendered, verbose=False).train)
    random.Random(0).shuffle(records)
    crops = folder / "crops"
    crops.mkdir()
    people = {}
    for number, record in enumerate(records[1:]):
        name = f"{number:06d}{record.path.suffix}"
        shutil.copy(record.path, crops / name)
        people[name] = str(record.identity)
    new = folder / f"new{records[0].path.suffix}"
    shutil.copy(records[0].path, new)
    (folder / PEOPLE).write_text("\n".join(people.values()))
    return Work(crops, new, str(records[0].identity), people)


@pytest.fixture(scope="module")
def run(work: Work) -> Path:
    folder = work.crops.parent / "run"
    training = ("--dataset", "folder", "--data-root", work.crops, "--run-dir", folder)
    asking = ("--ask", "gain", "--annotator", "terminal", *SETTINGS)
    people = work.crops.parent / PEOPLE
    printed = command(people, *training, *asking, code=TRAINING)
    assert "120 questions" in printed
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_two_exports_of_the_identities_are_equal_and_better_than_chance(
    work: Work, run: Path, tmp_path: Path
) -> None:
    tables = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for table in tables:
        command("export", run, "--what", "labels", "--out", table)
    assert tables[0].read_bytes() == tables[1].read_bytes()
    found = rows(tables[0])
    assert [row["path"] for row in found] == sorted(work.people)
    assert "answered" in {row["source"] for row in found}
    by_identity: dict[str, list[str]] = {}
    for row in found:
        if row["identity"] != "-1":
            by_identity.setdefault(row["identity"], []).append(work.people[row["path"]])
    right = sum(max(map(people.count, people)) for people in by_identity.values())
    # 64 people: a cluster of random crops would have few of one person.
    assert right / sum(map(len, by_identity.values())) > 0.5


def test_a_new_crop_finds_crops_of_its_person(work: Work, run: Path, tmp_path: Path) -> None:
    search = ("search", run, "--query", work.new, "--gallery", work.crops, "--top", "10")
    printed = command(*search, "--out", tmp_path / "hits.csv")
    assert "index" in printed or "gallery" in printed
    hits = rows(tmp_path / "hits.csv")
    assert list(hits[0]) == ["query", "rank", "gallery", "similarity", "probability"]
    assert [hit["rank"] for hit in hits] == [str(rank) for rank in range(1, 11)]
    names = [os.path.basename(hit["gallery"]) for hit in hits]
    # A tenth of the crops would be 0.16 of ten.
    assert sum(work.people[name] == work.person for name in names) >= 2
    # The second search has the index.
    command(*search, "--out", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "hits.csv").read_bytes()


def test_the_report_opens_in_a_browser_without_errors(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    command("report", run, "--out", page, "--clusters", "20", "--questions", "20")
    assert page.stat().st_size < 20e6
    with chromium() as browser:
        shown = browser.new_page()
        said: list[str] = []
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.goto(page.as_uri())
        shown.screenshot(path=tmp_path / "report.png", full_page=True)
        assert (tmp_path / "report.png").stat().st_size > 10_000
        assert said == []
        found = Axe().run(shown, options={"runOnly": list(RULES)}).response["violations"]
        grave = [v["id"] for v in found if v["impact"] in ("serious", "critical")]
        assert grave == []
