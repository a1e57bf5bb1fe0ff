"""Asks an oracle with several strategies on fixed features; cluster quality over questions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..active import refine
from ..active.partition import apply_answers
from ..active.refine import follow_of
from ..active.strategies import load_strategy
from ..annotators import Oracle
from ..answers import Asker
from ..answers.rounds import Outlook
from ..clustering import check_backend
from ..config import ClusterConfig, SimulationConfig
from ..engine.console import Reporter, percent
from ..errors import CheckpointError, SettingError, UserError, printable
from ..files import make_folder, write_figure, write_file
from ..methods.cluster_images import Clustered, cluster_images
from ..metrics import changed_pairs, cluster_scores, pair_scores
from ..settings import validate
from .features_file import read_features

#: Title of each panel of the figure, by score.
_PANELS = {
    "f1": "pair F1",
    "precision": "pair precision",
    "recall": "pair recall",
    "bcubed_f1": "B-cubed F1",
    "class_purity": "class purity",
    "class_completeness": "class completeness",
}
#: Rounds after which a strategy is stopped; each round asks at least one question.
_ROUNDS = 10_000


class Point(NamedTuple):
    """Quality of the clusters after a number of questions.

    Args:
        strategy: Name of the strategy.
        questions: Questions so far.
        share: Questions over all pairs of images.
        precision: Pair precision.
        recall: Pair recall.
        f1: Pair F1.
        bcubed_precision: This and all that follow are those of `metrics.ClusterScores`; None where
            undefined.
        bcubed_recall: B-cubed recall.
        bcubed_f1: B-cubed F1.
        class_purity: Mean over clusters of the share of the most frequent identity.
        class_completeness: Mean over clusters of the share of that identity's images.
        cross_camera_recall: Pair recall over images of different cameras.
        identities_covered: Share of the identities with a cluster of their own.
        seconds: Seconds of the answers, as the oracle counts them.
        changed: Pairs of images that were joined or set apart since the point before.
        next_changed: Pairs that the strategy expected the next questions to join or to set apart,
            when it last looked, up to ten questions or sheets before; None if it does not say, if
            it counts clusters, at the first point and at the last.
        next_questions: Number of these questions, 50 where there are so many.
        gestures: Decisions of a person: a sheet is one.
        members: Small images that were judged beside the two of a question.
    """

    strategy: str
    questions: int
    share: float
    precision: float
    recall: float
    f1: float
    bcubed_precision: float | None
    bcubed_recall: float | None
    bcubed_f1: float | None
    class_purity: float | None
    class_completeness: float | None
    cross_camera_recall: float | None
    identities_covered: float | None
    seconds: float
    changed: int
    next_changed: float | None
    next_questions: int | None
    gestures: int = 0
    members: int = 0


def run_simulation(config: SimulationConfig, reporter: Reporter | None = None) -> list[Point]:
    """Ask an oracle with each strategy in turn, and write curves.csv and curves.png.

    Args:
        config: Features, strategies, budget, clustering and oracle.
        reporter: Prints a line for each strategy.

    Returns:
        The points of all curves.

    Raises:
        UserError: The file or a setting cannot be used.
    """
    reporter = reporter or Reporter()
    strategies = _strategies(config)
    features, identities, cameras = read_features(Path(config.features))
    out = Path(config.out)
    try:
        make_folder(out, private=False)
    except OSError as error:
        raise UserError(
            f"cannot write into {out} ({error.strerror}); name another folder with `out`"
        ) from error
    clustered = _cluster(features, cameras, config.cluster, reporter)
    labels = clustered.labels
    start = _Curve("", identities, cameras)
    start.add(0, 0.0, labels)
    reporter.line(
        f"{len(features)} images of {len(identities.unique())} identities, "
        f"{int(labels.max()) + 1} clusters, {int((labels < 0).sum())} images unclustered: "
        f"{_describe(start.points[0])}"
    )
    points: list[Point] = []
    for strategy in strategies:
        curve = simulate(clustered.features, labels, identities, strategy, config, cameras)
        points += curve
        last = curve[-1]
        reporter.line(
            f"{strategy:>6}: {last.questions} questions, {100 * last.share:.4f} % of all pairs: "
            f"{_describe(last)}"
        )
    with _name_option():
        write_csv(points, out / "curves.csv")
    written = [out / "curves.csv"]
    if reporter.attempt("the figure", lambda: _draw(points, out / "curves.png")):
        written.append(out / "curves.png")
    reporter.line(f"wrote {' and '.join(map(printable, written))}")
    return points


@contextmanager
def _name_option() -> Iterator[None]:
    """Say where else to write, in place of how to resume a run."""
    try:
        yield
    except CheckpointError as error:
        reason = error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise UserError(
            f"could not write the curves ({reason.strerror}); name another folder with `out`"
        ) from error


def _draw(points: list[Point], path: Path) -> None:
    with _name_option():
        draw(points, path)


def _cluster(
    features: Tensor, cameras: Tensor | None, config: ClusterConfig, reporter: Reporter
) -> Clustered:
    """Cluster the features (n, D), as UCAL does at its first epoch."""
    if cameras is None:
        if config.camera_norm != "none":
            raise SettingError(
                "cluster.camera_norm",
                config.camera_norm,
                "none",
                "the file has no cameras; an evaluation with `save_features` writes them",
            )
        cameras = torch.full((len(features),), -1)
    try:
        check_backend(config.dbscan, len(features), "`cluster.dbscan`")
        clustered = cluster_images(features, cameras, config)
    except ValueError as error:
        raise UserError(str(error)) from error
    if clustered.recall is not None:
        reporter.line(
            f"approximate neighbours: {percent(clustered.recall)} % of the true ones, on a sample"
        )
    return clustered


def simulate(
    features: Tensor,
    labels: Tensor,
    identities: Tensor,
    strategy: str,
    config: SimulationConfig,
    cameras: Tensor | None = None,
) -> list[Point]:
    """Refine clusters with a strategy, round after round on its own labels.

    It ends when the budget is spent, or when a round asks nothing.

    Args:
        features: (n, D) float32, unit-norm.
        labels: (n,) int64 clusters to begin from, -1 outside every cluster.
        identities: (n,) int64 true identities, for the oracle and the scores.
        strategy: Name of the strategy.
        config: Budget, oracle, and constants of the strategies.
        cameras: (n,) int64, -1 where unknown, for the scores; None where no camera is known.

    Returns:
        Points before the first question, after every `config.every` questions, and at the end.
    """
    asker = _make_asker(identities, config, cameras)
    curve = _Curve(strategy, identities, cameras)
    curve.add(0, 0.0, labels)

    def after_answer(questions: int, current: Callable[[], Tensor]) -> None:
        if questions % config.every == 0:
            seconds = asker.seconds + asker.spent.seconds
            spent = gestures + asker.spent.gestures, members + asker.spent.members
            now = current()
            if config.questions.thumbnails:
                # A strategy follows the answers about the images that it asked about. Those about
                # thumbnails change the labels when its round ends, which may be much later.
                follow = follow_of(config.questions)
                now = apply_answers(features, now, asker.constraints(), follow=follow)
            curve.add(questions, seconds, now, asker.outlook, *spent)

    asker.after_answer = after_answer
    gestures = members = 0
    for number in range(_ROUNDS):
        before = asker.asked
        labels, spent = refine(features, labels, asker, strategy, config.questions, number)
        gestures += spent.gestures
        members += spent.members
        if asker.asked == before or asker.asked >= config.budget:
            break
    curve.add(asker.asked, asker.seconds, labels, None, gestures, members)
    asker.ledger.close()
    return list(curve.points.values())


class _Curve:
    """The points of a strategy.

    Args:
        strategy: Its name.
        identities: (n,) int64 true identities.
        cameras: (n,) int64, -1 where unknown; None where no camera is known.
    """

    def __init__(self, strategy: str, identities: Tensor, cameras: Tensor | None) -> None:
        #: The points, by number of questions.
        self.points: dict[int, Point] = {}
        self._strategy = strategy
        self._identities = identities
        self._cameras = cameras
        #: Labels of the newest point, and of the one before.
        self._newest: Tensor | None = None
        self._before: Tensor | None = None

    def add(
        self,
        questions: int,
        seconds: float,
        labels: Tensor,
        outlook: Outlook | None = None,
        gestures: int = 0,
        members: int = 0,
    ) -> None:
        """Add the point after a number of questions, or replace it if it is the newest.

        Args:
            questions: Questions so far.
            seconds: Seconds of their answers.
            labels: (n,) int64 labels now.
            outlook: What the strategy expects of further questions.
            gestures: Decisions so far.
            members: Small images judged so far.
        """
        if questions not in self.points:
            self._before = self._newest
        before = labels if self._before is None else self._before
        if outlook is not None and outlook.counts != "pairs":
            outlook = None
        pairs = len(labels) * (len(labels) - 1) / 2
        self.points[questions] = Point(
            self._strategy,
            questions,
            questions / pairs,
            *pair_scores(labels, self._identities),
            *cluster_scores(labels, self._identities, self._cameras),
            seconds=seconds,
            changed=changed_pairs(before, labels),
            next_changed=outlook.changed if outlook else None,
            next_questions=outlook.questions if outlook else None,
            gestures=gestures,
            members=members,
        )
        self._newest = labels.clone()


def _make_asker(
    identities: Tensor, config: SimulationConfig, cameras: Tensor | None = None
) -> Asker:
    """Return an asker that asks an oracle, and keeps the answers in memory."""
    oracle = Oracle(
        identities,
        error=config.oracle.error,
        unsure=config.oracle.unsure,
        not_comparable=config.oracle.not_comparable,
        seed=config.oracle.seed,
        seconds=config.oracle.seconds,
        seconds_more=config.oracle.seconds_more,
    )
    return Asker(
        oracle,
        closure=config.questions.closure,
        confirm_merges=config.questions.confirm_merges,
        expected_error=config.questions.expected_error,
        budget=config.budget,
        minutes=config.questions.minutes,
        cameras=cameras,
        window=config.questions.window,
        judge_members=config.questions.thumbnails,
    )


def write_csv(points: list[Point], path: Path) -> None:
    """Write points as CSV, one a line; the cell of an undefined score is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Point._fields)
    writer.writerows(points)
    write_file(path, text.getvalue(), private=False)


def draw(points: list[Point], path: Path) -> None:
    """Draw pair scores and cluster scores over questions, one line for each strategy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    strategies = dict.fromkeys(point.strategy for point in points)
    for axes, (score, title) in zip(panels, _PANELS.items(), strict=True):
        for strategy in strategies:
            of_strategy = [point for point in points if point.strategy == strategy]
            curve = [point for point in of_strategy if getattr(point, score) is not None]
            questions = [point.questions for point in curve]
            values = [100 * getattr(point, score) for point in curve]
            axes.plot(questions, values, marker="o", markersize=2, label=strategy)
        axes.set_title(f"{title} (%)")
        axes.set_xlabel("questions")
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    write_figure(path, figure, private=False)


def _strategies(config: SimulationConfig) -> list[str]:
    """Return the names of the strategies, each once.

    Raises:
        SettingError: A strategy is unknown, or a setting has no meaning in a simulation.
    """
    names = [name.strip() for name in config.ask.split(",") if name.strip()]
    if not names:
        raise SettingError("ask", config.ask, "names of strategies, with commas between")
    for name in names:
        load_strategy(name)
    validate(config)
    for name in ("budget", "ledger", "replay"):
        value = getattr(config.questions, name)
        if value is not None:
            raise SettingError(
                f"questions.{name}",
                value,
                "no value in a simulation",
                "a simulation has one `budget`, and neither a ledger nor a replay",
            )
    return list(dict.fromkeys(names))


def _describe(point: Point) -> str:
    return (
        f"pair precision {percent(point.precision)} %, recall {percent(point.recall)} %, "
        f"F1 {percent(point.f1)} %; B-cubed F1 {percent(point.bcubed_f1)} %; "
        f"class purity {percent(point.class_purity)} %, "
        f"completeness {percent(point.class_completeness)} %"
    )
