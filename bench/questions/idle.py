"""Measure who waits for whom while a run trains and three people answer its questions.

    python bench/questions/idle.py --out FOLDER --json OUT.json --table OUT.md
    python bench/questions/idle.py --dataset market1501 --data-root DATA --weights OSNET.pth ...

One run for each mode of `questions.wait` and each duration of an epoch. Three people answer through
`AnswerService`, each after 2 to 8 seconds, always rightly. After one task in a hundred a person
leaves for 1 to 5 minutes with the next task on the screen, and answers it after the return.

The network is really trained, but nobody's time is measured: a clock is simulated. An epoch takes
the minutes that `--epoch-minutes` says, and the people's seconds are drawn. The figures therefore
do not depend on the machine or on its other work, and the rows can be compared. What the run does
between two questions takes no time. An hour begins with the first question. The run then stops, and
the mAP is that of the last epoch that ended within the hour.

Without `--dataset` the run is a small one on the synthetic set. `--scale tiny` shows that the
script works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

import surroundings

from fastreid_al.answers import QuitAsking
from fastreid_al.answers.asker import OutOfQuestions
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.answers.service import AnswerService, Submission, Task
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
#: Longest step of the clock while somebody has a task, in seconds. People who wait look for a task
#: after each: those of somebody who left are given to others.
_STEP = 10.0
#: Real seconds without an answer that no run reaches: the simulated clock ends its waiting.
_FOREVER = 1e9

_COMMON: dict[str, Any] = {
    "epochs": 1000,
    "evaluate_every": 1,
    "ask": "gain",
    "image.height": 64,
    "image.width": 32,
    "batch.iterations": 20,
    # One rate for all epochs: the modes train for different numbers of them.
    "optimizer.step": 1000,
    "questions.start": 1,
}
_SYNTHETIC: dict[str, Any] = {
    "synthetic.test_identities": 32,
    "synthetic.query_images": 96,
    "synthetic.gallery_images": 384,
}
#: The best start that is known on real images: see docs/results.md.
_REAL: dict[str, Any] = {
    "batch.iterations": 60,
    "image.pad": 5,
    "cluster.camera_norm": "standardise",
    "cluster.algorithm": "linkage",
    "cluster.join": 0.15,
    "cluster.source": "extract",
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

#: Settings of each mode: what the run waits for, and how many questions an epoch may ask.
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


class Clock:
    """A clock that stands still until it is advanced.

    Args:
        now: The time, in unix seconds.
    """

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Worker:
    """A person who takes tasks and answers them rightly.

    Args:
        service: Hands out the tasks.
        name: Name of the person.
        truth: Identity by path of the image.
        draw: Draws the seconds of answers and breaks.
    """

    def __init__(
        self, service: AnswerService, name: str, truth: Mapping[str, int], draw: random.Random
    ) -> None:
        self._service = service
        self._person = service.person_named(name)
        self._truth = truth
        self._draw = draw
        self._task: Task | None = None
        self._seconds = 0.0
        #: When the task is answered, and since when there is none; by the simulated clock.
        self.done_at = float("inf")
        self._idle_since: float | None = None
        self._back_at = 0.0
        self.answers = 0
        self.late = 0
        #: Seconds without a task, and seconds of breaks.
        self.waiting = 0.0
        self.away = 0.0

    def look(self, now: float, ends_at: float) -> None:
        """Take a task if the person has none and there is one."""
        if self._task is not None:
            return
        if self._idle_since is None:
            self._idle_since = now
        self._task = self._service.next_task(self._person)
        if self._task is None:
            return
        self.waiting += now - self._idle_since
        self._idle_since = None
        pause = self._draw.uniform(*BREAK) if self._draw.random() < BREAK_SHARE else 0.0
        self.away += max(0.0, min(pause, ends_at - now))
        self._seconds = self._draw.uniform(*ANSWER)
        self.done_at = now + pause + self._seconds

    def answer(self) -> None:
        """Answer the task."""
        assert self._task is not None
        token = f"{self._person.id}-{self.answers}"
        verdicts = self._verdicts(self._task)
        sent = Submission(self._task.id, token, verdicts, active_seconds=self._seconds)
        self.late += self._service.submit(self._person, sent).status == "late"
        self.answers += 1
        self._task = None
        self.done_at = float("inf")

    def leave(self, now: float) -> None:
        """Add the seconds without a task until the end of the hour."""
        if self._idle_since is not None:
            self.waiting += max(0.0, now - self._idle_since)
            self._idle_since = None

    def _verdicts(self, task: Task) -> dict[int, Verdict]:
        """The right verdict of each question of a task."""
        left = self._truth[self._service.image(task.left).path]
        return {
            item.question: Verdict.SAME
            if self._truth[self._service.image(item.right).path] == left
            else Verdict.DIFFERENT
            for item in task.items
        }


class People:
    """An annotator of people who answer by a simulated clock, for an hour.

    Args:
        clock: The clock.
        history: File to which the run adds a line after each epoch.
        truth: Identity by path of the image.
        seed: Seed of the people.
        epoch_seconds: Seconds that an epoch takes, without its questions.
        hour: Seconds until the people leave and the run stops.
        patience: Seconds without an answer after which a round ends; None waits for all answers.
    """

    name = "people"
    people = PEOPLE

    def __init__(
        self,
        clock: Clock,
        history: Path,
        truth: Mapping[str, int],
        *,
        seed: int,
        epoch_seconds: float,
        hour: float,
        patience: float | None,
    ) -> None:
        self._clock = clock
        self._history = history
        self._truth = truth
        self._seed = seed
        self._epoch_seconds = epoch_seconds
        self._hour = hour
        self._patience = patience
        self._service: AnswerService | None = None
        self._ends_at = 0.0
        self._answered_at = 0.0
        self.workers: list[Worker] = []
        #: Epochs that were trained, and those that ended within the hour.
        self._trained = 0
        self.epochs = 0
        #: Seconds in which the run waited.
        self.waited = 0.0

    def start(self, ledger: Ledger) -> None:
        """Begin the hour with the first round; later let people answer while an epoch trains."""
        trained = self._epochs_trained()
        if self._service is None:
            self._open(ledger)
            self._trained = self.epochs = trained
        # A round is begun several times in an epoch.
        while self._trained < trained:
            self._advance(self._clock.now + self._epoch_seconds)
            self._trained += 1
            self._leave_after_the_hour()
            self.epochs = self._trained
        self._answered_at = self._clock.now

    def serve(self, ledger: Ledger) -> None:
        """Wait for the next answer."""
        began = self._clock.now
        answers = self._answers()
        limit = self._ends_at
        if self._patience is not None:
            limit = min(limit, self._answered_at + self._patience)
        while self._clock.now < limit and self._answers() == answers:
            self._step(limit)
        self.waited += self._clock.now - began
        self._leave_after_the_hour()
        if self._answers() > answers:
            self._answered_at = self._clock.now
        else:
            raise OutOfQuestions

    @property
    def is_over(self) -> bool:
        """Whether the hour is over."""
        return self._service is not None and self._clock.now >= self._ends_at

    def close(self) -> None:
        """Close the service of the people."""
        if self._service is not None:
            self._service.close()

    def _open(self, ledger: Ledger) -> None:
        # The questions have this time too, so that no clock is set back.
        self._clock.now = time.time()
        self._ends_at = self._clock.now + self._hour
        self._service = AnswerService(ledger, lease_seconds=LEASE, gold_share=0, clock=self._clock)
        for number in range(PEOPLE):
            draw = random.Random(f"{self._seed} {number}")  # noqa: S311
            name = f"person {number}"
            self.workers.append(Worker(self._service, name, self._truth, draw))

    def _epochs_trained(self) -> int:
        if not self._history.exists():
            return 0
        lines = self._history.read_text().splitlines()
        return max((int(json.loads(line)["epoch"]) for line in lines), default=0)

    def _answers(self) -> int:
        return sum(worker.answers for worker in self.workers)

    def _advance(self, until: float) -> None:
        """Let people answer until a time, the end of the hour at most."""
        while self._clock.now < min(until, self._ends_at):
            self._step(min(until, self._ends_at))
        self._clock.now = min(until, self._ends_at)

    def _step(self, limit: float) -> None:
        """Go on to the next answer, or by a step; a limit is never passed."""
        for worker in self.workers:
            worker.look(self._clock.now, self._ends_at)
        first = min(self.workers, key=lambda worker: worker.done_at)
        # If nobody has a task, there is none before the run makes one.
        step = _STEP if first.done_at < float("inf") else limit
        self._clock.now = min(self._clock.now + step, first.done_at, limit)
        if first.done_at <= self._clock.now:
            first.answer()

    def _leave_after_the_hour(self) -> None:
        if self._clock.now >= self._ends_at:
            for worker in self.workers:
                worker.leave(self._clock.now)
            raise QuitAsking("the hour is over")


def main() -> None:
    """Train each mode, and write the figures and the table."""
    options = _parser().parse_args()
    hour = HOUR if options.scale == "usual" else 120.0
    found: list[dict[str, Any]] = []
    for minutes in map(float, options.epoch_minutes.split(",")):
        for mode in options.modes.split(";"):
            for seed in map(int, options.seeds.split(",")):
                found.append(measure(options, mode, seed, minutes, hour))
                print(json.dumps(found[-1]), flush=True)
                content = {"surroundings": surroundings.describe(), "runs": found}
                write_file(options.json, json.dumps(content, indent=1), private=False)
                write_file(options.table, table(found), private=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--scale", choices=("usual", "tiny"), default="usual")
    parser.add_argument("--modes", default=";".join(MODES), help="names, separated by ;")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epoch-minutes", default="10,2", help="minutes of an epoch")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--model", default="osnet_x0_25", help="backbone for real images")
    parser.add_argument("--weights", default="none", help="its weights")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT.json")
    parser.add_argument("--table", type=Path, required=True, metavar="OUT.md")
    return parser


def measure(
    options: argparse.Namespace, mode: str, seed: int, minutes: float, hour: float
) -> dict[str, Any]:
    """Train one run while people answer, and return its figures.

    Args:
        options: The folder of the runs, the images, and their size.
        mode: Name of the mode.
        seed: Seed of the run and of the people.
        minutes: Minutes of an epoch without its questions.
        hour: Seconds until the run stops.
    """
    folder = options.out / f"{list(MODES).index(mode)}-{minutes:g}-{seed}"
    if folder.exists():
        # The run would go on where it was left, and the people would begin their hour.
        raise FileExistsError(f"{folder} exists; name another folder with --out")
    make_folder(folder, private=False)
    config = configuration(options, mode, seed, folder / "run")
    images = load(config.dataset, config.data_root, synthetic=config.synthetic, verbose=False)
    truth = {}
    for record in images.train:
        truth[record.path.relative_to(images.root).as_posix()] = record.identity
    clock = Clock(time.time())
    patience = MODES[mode]["questions.wait"]
    people = People(
        clock,
        folder / "run" / "metrics.jsonl",
        truth,
        seed=seed,
        epoch_seconds=60 * minutes,
        hour=hour,
        patience=patience if isinstance(patience, float) else None,
    )
    # A round asks the clock which tasks somebody has before them when it withdraws the others.
    with (
        mock.patch("fastreid_al.answers.queue.time", SimpleNamespace(time=clock)),
        contextlib.suppress(Interrupted),
    ):
        run_training(config, annotator=people)
    if not people.is_over:
        sys.exit(f"{folder}: the run was stopped before the hour was over")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return figures(mode, seed, minutes, people, [json.loads(line) for line in lines], hour)


def configuration(options: argparse.Namespace, mode: str, seed: int, folder: Path) -> RunConfig:
    """The configuration of a run of one mode."""
    settings = {**_COMMON, **MODES[mode]}
    if options.dataset == "synthetic":
        base = recipe("synthetic", "small")
        settings |= _SYNTHETIC | (_TINY if options.scale == "tiny" else {})
    else:
        base = recipe(options.dataset, "paper")
        settings |= _REAL | {"data_root": options.data_root}
        settings |= {"model": options.model, "weights": options.weights}
    if isinstance(settings["questions.wait"], float):
        settings["questions.wait"] = _FOREVER
    settings |= {"seed": seed, "run_dir": str(folder)}
    for text in options.set:
        key, _, value = text.partition("=")
        settings[key] = json.loads(value)
    return with_values(base, settings)


def figures(
    mode: str,
    seed: int,
    minutes: float,
    people: People,
    history: Sequence[Mapping[str, Any]],
    hour: float,
) -> dict[str, Any]:
    """What is reported of a run."""
    records = [r for r in history if 0 < r["epoch"] <= people.epochs]
    away = sum(worker.away for worker in people.workers)
    present = hour * len(people.workers) - away
    return {
        "mode": mode,
        "seed": seed,
        "epoch_minutes": minutes,
        "epochs": people.epochs,
        "trainer_waits": people.waited / hour,
        "people_wait": sum(worker.waiting for worker in people.workers) / present,
        "people_away": away / (hour * len(people.workers)),
        "answers": sum(worker.answers for worker in people.workers),
        "late": sum(worker.late for worker in people.workers),
        "used": records[-1].get("questions_total", 0) if records else 0,
        "mAP": {r["epoch"]: r["mAP"] for r in records if "mAP" in r},
        "pair_f1": {r["epoch"]: r["pair_f1"] for r in records if "pair_f1" in r},
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a Markdown table, one line for each mode and seed.

    The last column is the mAP after as many epochs as all runs of this duration reached.
    """
    titles = ["`questions.wait`", "seed", "minutes of an epoch", "run waits", "people wait"]
    titles += ["answers", "late", "used by the run", "epochs", "mAP at the end", "mAP in common"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for run in found:
        alike = [other for other in found if other["epoch_minutes"] == run["epoch_minutes"]]
        common = min(other["epochs"] for other in alike)
        scores = {int(epoch): score for epoch, score in run["mAP"].items()}
        last = max(scores, default=0)
        after = f"{100 * scores[common]:.1f} after {common}" if common in scores else "-"
        cells = [
            run["mode"],
            str(run["seed"]),
            f"{run['epoch_minutes']:g}",
            f"{100 * run['trainer_waits']:.0f} %",
            f"{100 * run['people_wait']:.0f} %",
            str(run["answers"]),
            str(run["late"]),
            f"{run['used']:.0f}",
            str(run["epochs"]),
            f"{100 * scores[last]:.1f}" if scores else "-",
            after,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
