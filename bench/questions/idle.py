"""Measure who waits for whom while a run trains and three people answer its questions.

    python bench/questions/idle.py --out FOLDER --json OUT.json --table OUT.md

One run on the synthetic set for each mode of `questions.wait`. The people are threads of a process
of its own that use `AnswerService`. Each answers after 2 to 8 seconds, always rightly. After one
task in a hundred a person leaves for 1 to 5 minutes with the next task on the screen, and answers
it after the return.

Time is scaled: `--speed 20` lets an hour of people pass in 3 minutes. Their pace, their breaks, the
leases and the seconds of `questions.wait` are divided by it. The training is not: an epoch of 15
seconds counts as 5 minutes. An hour begins with the first question. The run then stops, and the mAP
is that of the last epoch that ended within the hour.

`--scale tiny` shows that the script works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import surroundings

from fastreid_al.answers import QuitAsking
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.answers.service import AnswerService, Person, Submission, Task
from fastreid_al.config import RunConfig, recipe
from fastreid_al.data.load import load
from fastreid_al.engine.stop_signal import Interrupted
from fastreid_al.files import make_folder, write_file
from fastreid_al.runs.train import run_training
from fastreid_al.settings import with_values

PEOPLE = 3
#: Seconds of an answer, of a break, and the share of tasks before which a person leaves.
ANSWER = (2.0, 8.0)
BREAK = (60.0, 300.0)
BREAK_SHARE = 0.01
#: Seconds that a task stays with a person who left.
LEASE = 90.0
HOUR = 3600.0
#: Real seconds between two looks of a person who waits, and of a run that waits.
_PAUSE = 0.02
_START = 120.0

_COMMON: dict[str, Any] = {
    "epochs": 1000,
    "evaluate_every": 1,
    "ask": "gain",
    "image.height": 64,
    "image.width": 32,
    "batch.iterations": 20,
    # One rate for all epochs: the modes train for different numbers of them.
    "optimizer.step": 1000,
    "synthetic.test_identities": 32,
    "synthetic.query_images": 96,
    "synthetic.gallery_images": 384,
    "questions.start": 1,
}
_TINY: dict[str, Any] = {
    "image.height": 48,
    "image.width": 24,
    "batch.iterations": 2,
    "batch.size": 16,
    "cluster.k1": 8,
    "cluster.k2": 2,
    "synthetic.train_identities": 8,
    "synthetic.train_images": 64,
    "synthetic.test_identities": 6,
    "synthetic.query_images": 12,
    "synthetic.gallery_images": 36,
    "synthetic.height": 64,
}

#: Settings of each mode: what the run waits for, and how many questions an epoch may ask. A wait of
#: seconds is divided by the speed.
MODES: dict[str, dict[str, Any]] = {
    "all": {"questions.wait": "all", "questions.per_epoch": 90},
    "30 s": {"questions.wait": 30.0, "questions.per_epoch": 90},
    "none": {"questions.wait": "none", "questions.per_epoch": 90},
    "none, window 300": {
        "questions.wait": "none",
        "questions.per_epoch": 300,
        "questions.window": 300,
    },
}


class Work(NamedTuple):
    """What a person did in the hour; in seconds of people.

    Args:
        answers: Answers.
        late: Answers that came too late to settle a question.
        waiting: Seconds without a question while present.
        away: Seconds of breaks.
    """

    answers: int
    late: int
    waiting: float
    away: float


class People:
    """An annotator that lets a process of three people answer for an hour of theirs.

    Args:
        folder: Where the process finds what it needs.
        speed: Seconds of people in a second.
        hour: Seconds of people until they leave.
    """

    name = "people"
    people = PEOPLE

    def __init__(self, folder: Path, speed: float, hour: float) -> None:
        self._folder = folder
        self._length = hour / speed
        self._ends_at: float | None = None
        #: Seconds in which the run waited, and when each round began.
        self.waited = 0.0
        self.rounds: list[float] = []
        #: When `serve` returned last, and the last event of the ledger then.
        self._served = 0.0
        self._event = -1
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--clients", str(folder)], stdin=subprocess.DEVNULL
        )

    def start(self, ledger: Ledger) -> None:
        """Begin the hour with the first round, and end the run after it."""
        now = time.time()
        if self._ends_at is None:
            limit = now + _START
            while not (self._folder / "ready").exists():
                if self._process.poll() is not None or time.time() > limit:
                    raise QuitAsking("the people did not come")
                time.sleep(_PAUSE)
            now = time.time()
            self._ends_at = now + self._length
            write_file(self._folder / "ends_at", str(self._ends_at))
        self.rounds.append(now)
        self._event = -1
        self._leave_after_the_hour()

    def serve(self, ledger: Ledger) -> None:
        """Wait for a moment."""
        self._leave_after_the_hour()
        # Between two calls the run looks for answers. If there is a new one, it also worked.
        now = time.monotonic()
        event = ledger.last_event()
        began = self._served if event == self._event else now
        time.sleep(_PAUSE)
        self._served, self._event = time.monotonic(), event
        self.waited += self._served - began

    def finish(self) -> list[Work]:
        """Wait until the people have left, and return what each did."""
        if self._process.wait(timeout=_START) != 0:
            raise RuntimeError("the process of the people failed")
        return [Work(*row) for row in json.loads((self._folder / "work").read_text())]

    def epochs_within(self, start: int) -> int:
        """Epochs that ended within the hour.

        Args:
            start: Epochs before the first round.
        """
        assert self._ends_at is not None
        return start + sum(began <= self._ends_at for began in self.rounds) - 1

    def stop(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _leave_after_the_hour(self) -> None:
        assert self._ends_at is not None
        if time.time() >= self._ends_at:
            raise QuitAsking("the hour is over")


def main() -> None:
    """Train each mode, and write the figures and the table."""
    options = _parser().parse_args()
    if options.clients is not None:
        answer_for_an_hour(options.clients)
        return
    speed, hour = (20.0, HOUR) if options.scale == "usual" else (100.0, 300.0)
    speed = options.speed or speed
    found: list[dict[str, Any]] = []
    for mode in options.modes.split(";"):
        for seed in range(options.seeds):
            found.append(measure(options, mode, seed, speed, hour))
            print(json.dumps(found[-1]), flush=True)
            content = {"surroundings": surroundings.describe(), "speed": speed, "runs": found}
            write_file(options.json, json.dumps(content, indent=1), private=False)
            write_file(options.table, table(found), private=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--scale", choices=("usual", "tiny"), default="usual")
    parser.add_argument("--modes", default=";".join(MODES), help="names, separated by ;")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--speed", type=float, help="seconds of people in a second")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    parser.add_argument("--table", type=Path, metavar="OUT.md")
    parser.add_argument("--clients", type=Path, help=argparse.SUPPRESS)
    return parser


def measure(
    options: argparse.Namespace, mode: str, seed: int, speed: float, hour: float
) -> dict[str, Any]:
    """Train one run while people answer, and return its figures.

    Args:
        options: The folder of the runs, and their size.
        mode: Name of the mode.
        seed: Seed of the run and of the people.
        speed: Seconds of people in a second.
        hour: Seconds of people until the run stops.
    """
    folder = options.out / f"{list(MODES).index(mode)}-{seed}"
    if folder.exists():
        # The files of an earlier run would begin the hour of this one.
        raise FileExistsError(f"{folder} exists; name another folder with --out")
    make_folder(folder, private=False)
    config = configuration(options.scale, mode, seed, speed, folder / "run")
    truth = {}
    images = load(config.dataset, config.data_root, synthetic=config.synthetic, verbose=False)
    for record in images.train:
        truth[record.path.relative_to(images.root).as_posix()] = record.identity
    write_file(
        folder / "people.json",
        json.dumps({"ledger": config.questions.ledger, "speed": speed, "seed": seed}),
    )
    write_file(folder / "truth.json", json.dumps(truth))
    people = People(folder, speed, hour)
    try:
        with contextlib.suppress(Interrupted):
            run_training(config, annotator=people)
        work = people.finish()
    finally:
        people.stop()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return figures(mode, seed, people, work, [json.loads(line) for line in lines], speed, hour)


def configuration(scale: str, mode: str, seed: int, speed: float, folder: Path) -> RunConfig:
    """The configuration of a run of one mode."""
    settings = {**_COMMON, **MODES[mode], **(_TINY if scale == "tiny" else {})}
    if isinstance(settings["questions.wait"], float):
        settings["questions.wait"] /= speed
    ledger = str(folder.parent / "answers.sqlite")
    settings |= {"seed": seed, "run_dir": str(folder), "questions.ledger": ledger}
    return with_values(recipe("synthetic", "small"), settings)


def figures(
    mode: str,
    seed: int,
    people: People,
    work: Sequence[Work],
    history: Sequence[Mapping[str, Any]],
    speed: float,
    hour: float,
) -> dict[str, Any]:
    """What is reported of a run."""
    epochs = people.epochs_within(_COMMON["questions.start"])
    records = [r for r in history if 0 < r["epoch"] <= epochs and "mAP" in r]
    present = sum(hour - person.away for person in work)
    return {
        "mode": mode,
        "seed": seed,
        "epochs": epochs,
        "trainer_waits": people.waited * speed / hour,
        "people_wait": sum(person.waiting for person in work) / present,
        "people_away": sum(person.away for person in work) / (hour * len(work)),
        "answers": sum(person.answers for person in work),
        "late": sum(person.late for person in work),
        "used": records[-1].get("questions_total", 0) if records else 0,
        # Everything of an epoch but its questions, in minutes of people.
        "epoch_minutes": statistics.median(map(_training_seconds, records)) * speed / 60
        if records
        else 0.0,
        "mAP": {record["epoch"]: record["mAP"] for record in records},
        "pair_f1": {r["epoch"]: r["pair_f1"] for r in records if "pair_f1" in r},
    }


def _training_seconds(record: Mapping[str, Any]) -> float:
    """Seconds of an epoch without its questions."""
    seconds = record["seconds"]
    phases = sum(seconds.get(name, 0.0) for name in ("labels", "training", "evaluation"))
    return float(phases - seconds.get("questions", 0.0))


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a Markdown table; all runs reached the epoch of the last column."""
    common = min(run["epochs"] for run in found)
    titles = ["`questions.wait`", "run waits", "people wait", "answers", "late", "used by the run"]
    titles += ["minutes of an epoch", "epochs", "mAP at the end", f"mAP after {common} epochs"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for run in found:
        scores = {int(epoch): score for epoch, score in run["mAP"].items()}
        last = max(scores, default=0)
        cells = [
            run["mode"],
            f"{100 * run['trainer_waits']:.0f} %",
            f"{100 * run['people_wait']:.0f} %",
            str(run["answers"]),
            str(run["late"]),
            f"{run['used']:.0f}",
            f"{run['epoch_minutes']:.1f}",
            str(run["epochs"]),
            f"{100 * scores[last]:.1f}" if scores else "-",
            f"{100 * scores[common]:.1f}" if common in scores else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def answer_for_an_hour(folder: Path) -> None:
    """Let the people answer until the hour is over, and write what each did.

    Args:
        folder: Holds people.json and truth.json; the file `ends_at` begins the hour.
    """
    settings = json.loads((folder / "people.json").read_text())
    truth = json.loads((folder / "truth.json").read_text())
    write_file(folder / "ready", "")
    while not (folder / "ends_at").exists():
        time.sleep(_PAUSE)
    ends_at = float((folder / "ends_at").read_text())
    speed = settings["speed"]
    with AnswerService.open(
        settings["ledger"], lease_seconds=LEASE / speed, gold_share=0
    ) as service:
        work: list[Work | None] = [None] * PEOPLE

        def answer(number: int) -> None:
            draw = random.Random(f"{settings['seed']} {number}")  # noqa: S311
            person = service.person_named(f"person {number}")
            work[number] = _answer(service, person, truth, draw, speed, ends_at)

        threads = [threading.Thread(target=answer, args=(number,)) for number in range(PEOPLE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if None in work:
        sys.exit("a person failed")
    write_file(folder / "work", json.dumps(work))


def _answer(
    service: AnswerService,
    person: Person,
    truth: Mapping[str, int],
    draw: random.Random,
    speed: float,
    ends_at: float,
) -> Work:
    """Let one person answer until the hour is over."""
    answers = late = 0
    waiting = away = 0.0

    def spend(seconds: float) -> float:
        """Let seconds of people pass, to the end of the hour at most; return how many passed."""
        passed = max(0.0, min(seconds / speed, ends_at - time.time()))
        time.sleep(passed)
        return passed * speed

    while time.time() < ends_at:
        asked_at = time.time()
        task = service.next_task(person)
        while task is None and time.time() < ends_at:
            time.sleep(_PAUSE)
            task = service.next_task(person)
            # The time of a call that finds a question at once is the program's, not a lack of them.
            if task is not None or time.time() >= ends_at:
                waiting += (time.time() - asked_at) * speed
        if task is None:
            break
        if draw.random() < BREAK_SHARE:
            away += spend(draw.uniform(*BREAK))
        seconds = draw.uniform(*ANSWER)
        spend(seconds)
        if time.time() >= ends_at:
            break
        verdicts = _verdicts(service, task, truth)
        token = f"{person.id}-{answers}"
        sent = Submission(task.id, token, verdicts, active_seconds=seconds)
        late += service.submit(person, sent).status == "late"
        answers += 1
    return Work(answers, late, waiting, away)


def _verdicts(service: AnswerService, task: Task, truth: Mapping[str, int]) -> dict[int, Verdict]:
    """The right verdict of each question of a task."""
    left = truth[service.image(task.left).path]
    return {
        item.question: Verdict.SAME
        if truth[service.image(item.right).path] == left
        else Verdict.DIFFERENT
        for item in task.items
    }


if __name__ == "__main__":
    main()
