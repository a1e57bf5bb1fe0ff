"""What a run leaves behind and what it says: its folder, metrics, figure, lines and progress bars."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..config import RunConfig
from ..data.pixels import BadImage
from ..distributed.world import World
from ..errors import CheckpointError, UserError
from ..files import write_atomically, write_json
from ..metrics import Ranking

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

T = TypeVar("T")
_PACKAGES = (
    "fastreid_al",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "faiss-cpu",
)
_BAD_SHOWN = 10
_QUIET_SECONDS = 60


class Reporter:
    """Plain lines, with progress bars where a person looks at a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        #: Called at every sign of progress of a long phase; what it raises ends the phase.
        self.between: Callable[[], None] | None = None
        #: Whether it is called in a phase that shows its progress.
        self.breaks = True
        self.console = console or Console(highlight=False, soft_wrap=True, emoji=False)

    def line(self, text: str) -> None:
        """Print one line at once."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.line(f"warning: {text}")

    def bad_images(self, split: str, bad: list[BadImage]) -> None:
        """Name and count the images that were left out."""
        if bad:
            self.warn(f"{len(bad)} {split} image(s) could not be read and are left out:")
            for image in bad[:_BAD_SHOWN]:
                self.line(f"  {image.path}: {image.reason}")
            if len(bad) > _BAD_SHOWN:
                self.line(f"  ... and {len(bad) - _BAD_SHOWN} more")

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """Show a long phase; gives a function of (done, in all)."""
        with self._bar(what, total) as update:

            def update_and_check(done: int, total: int) -> None:
                update(done, total)
                if self.between is not None and self.breaks:
                    self.between()

            yield update_and_check

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """A bar on a terminal, elsewhere a line a minute."""
        if not self.console.is_terminal:
            yield self._line_a_minute(what)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done, all_: bar.update(task, completed=done, total=all_)

    def _line_a_minute(self, what: str) -> Callable[[int, int], None]:
        said = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said >= _QUIET_SECONDS:
                said = time.monotonic()
                self.line(f"  {what}: {done:,} of {total:,}")

        return update

    def track(self, what: str, items: Iterable[T], total: int, done: int = 0) -> Iterator[T]:
        """Iterate with a bar; what is iterated is not broken off."""
        with self._bar(what, total) as update:
            for number, item in enumerate(items, done):
                update(number, total)
                yield item

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table, figures to the right."""
        table = Table(title=Text(title), title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


class RunFolder:
    """The folder of a run: config.json, versions.json, metrics.jsonl, last.pt, best.pt, curves.png.

    Args:
        path: The folder.
        writes: Whether this process writes into it, as one of a run's ranks does.
        tensorboard: Also write the metrics for TensorBoard.
    """

    def __init__(self, path: Path, writes: bool = True, tensorboard: bool = False) -> None:
        self.path, self.writes, self._tensorboard = path, writes, tensorboard
        self._board: Any = None
        self.config, self.versions = path / "config.json", path / "versions.json"
        self.metrics, self.figure = path / "metrics.jsonl", path / "curves.png"
        self.last, self.best = path / "last.pt", path / "best.pt"

    def prepare(self) -> None:
        """Make the folder, and see that it can be written, before anything slow is done.

        Raises:
            CheckpointError: It cannot.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise CheckpointError(
                f"cannot write into {self.path} ({error.strerror}); name another folder with --run-dir"
            ) from error

    def describe(self, config: RunConfig) -> None:
        """Write the resolved configuration and the versions of what runs."""
        if not self.writes:
            return
        write_json(self.config, dataclasses.asdict(config))
        write_json(self.versions, versions())

    def rewrite_metrics(self, history: list[dict[str, Any]]) -> None:
        """Start metrics.jsonl with what a checkpoint remembers: a killed run may have left half a line."""
        if not self.writes:
            return
        if self._tensorboard:
            self._board = open_board(self.path / "tensorboard", len(history))
        lines = "".join(json.dumps(record) + "\n" for record in history)
        write_atomically(self.metrics, lambda file: file.write(lines.encode()))

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder."""
        if self.writes:
            write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line."""
        if not self.writes:
            return
        if self._board is not None:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["epoch"])
            self._board.flush()
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"could not write {self.metrics} ({error.strerror}); the last checkpoint is intact. Make room, then --resume"
            ) from error


def open_board(path: Path, epoch: int) -> Any:
    """A writer for TensorBoard that goes on at an epoch.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs TensorBoard: pip install 'fastreid_al[tensorboard]'"
        ) from error
    return SummaryWriter(str(path), purge_step=epoch)


def _scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, groups by `group/name`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "epoch":
            yield prefix + key, float(value)


def memory_in_use(device: torch.device, world: World) -> dict[str, float]:
    """The most memory that a rank has held so far, in GB of 1e9 bytes: of its GPU, or of its process."""
    if device.type == "cuda":
        return {
            "device_memory_gb": round(
                max(world.all_gather_objects(torch.cuda.max_memory_allocated(device))) / 1e9, 3
            )
        }
    if resource is None:
        return {}
    # macOS counts bytes, Linux kilobytes.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    return {"memory_gb": round(max(world.all_gather_objects(most)) / 1e9, 3)}


def versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages that decide results."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def ranking_metrics(ranking: Ranking) -> dict[str, float]:
    """The scores that a run records."""
    return {
        "mAP": ranking.mAP,
        "mINP": ranking.mINP,
        **{f"rank{k}": ranking.rank(k) for k in (1, 5, 10)},
        "skipped_queries": ranking.skipped,
    }


def percent(value: float | None) -> str:
    """A share as per cent with one decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw mAP, clusters or labels, their precision and recall, and the questions asked over epochs; what there is of them."""
    from matplotlib.figure import Figure

    groups: list[tuple[str, list[str]]] = [
        ("mAP and rank-1 (%)", ["mAP", "rank1"]),
        ("clusters", ["clusters"]),
        (
            "pairs (%)",
            ["pair_precision", "pair_recall", "drafted_pair_precision", "drafted_pair_recall"],
        ),
        ("labels an image", ["labels_per_image"]),
        ("labels (%)", ["label_precision", "label_recall"]),
        ("questions in all", ["questions_total"]),
    ]
    there = {key for record in history for key, value in record.items() if value is not None}
    groups = [(title, keys) for title, keys in groups if there & set(keys)] or groups[:1]
    figure = Figure(figsize=(3.7 * len(groups), 3.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, keys) in zip(panels, groups, strict=True):
        scale = 100 if "%" in title else 1
        for key in keys:
            points = [(r["epoch"], scale * r[key]) for r in history if r.get(key) is not None]
            if points:
                name = key.replace("drafted_pair", "before questions:").replace("_", " ")
                style = ":" if key.startswith("drafted") else "-"
                axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=name)
                axes.legend(frameon=True, framealpha=0.6, edgecolor="none", fontsize="small")
        axes.set_title(title)
        axes.set_xlabel("epochs")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
