"""Strategies against an oracle on fixed features: pair precision, recall and F1 over questions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..active import refine
from ..active.strategies import load_strategy
from ..annotators import Oracle
from ..answers import Asker
from ..clustering import check_backend, ivf_neighbours, jaccard_graph, self_paced_labels
from ..config import ClusterConfig, SimulationConfig
from ..engine.console import Reporter, percent
from ..errors import DataError, SettingError, UserError
from ..files import write_atomically
from ..metrics import PairScores, pair_scores
from ..settings import validate

#: A strategy that goes on asking for so many rounds is stopped; each asks one question at least.
_ROUNDS = 10_000


class Point(NamedTuple):
    """Cluster quality after a number of questions."""

    strategy: str
    questions: int
    share: float
    precision: float
    recall: float
    f1: float


def run_simulation(config: SimulationConfig, reporter: Reporter | None = None) -> list[Point]:
    """Ask an oracle with each strategy in turn, and write curves.csv and curves.png.

    Raises:
        UserError: The file or a setting cannot be used, in one line.
    """
    reporter = reporter or Reporter()
    strategies = _strategies(config)
    features, identities = read_features(Path(config.features))
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write into {out} ({error.strerror}); name another folder with --out"
        ) from error
    labels = _first_labels(features, config.cluster, reporter)
    reporter.line(
        f"{len(features)} images of {len(identities.unique())} identities, {int(labels.max()) + 1} clusters, "
        f"{int((labels < 0).sum())} images alone: {_scores(pair_scores(labels, identities))}"
    )
    points: list[Point] = []
    for strategy in strategies:
        curve = simulate(features, labels, identities, strategy, config)
        points += curve
        last = curve[-1]
        reporter.line(
            f"{strategy:>6}: {last.questions} questions, {100 * last.share:.4f} % of all pairs: "
            f"{_scores(PairScores(last.precision, last.recall, last.f1))}"
        )
    write_csv(points, out / "curves.csv")
    draw(points, out / "curves.png")
    reporter.line(f"wrote {out / 'curves.csv'} and {out / 'curves.png'}")
    return points


def _first_labels(features: Tensor, c: ClusterConfig, reporter: Reporter) -> Tensor:
    neighbours: Tensor | Literal["exact"] = "exact"
    try:
        check_backend(c.dbscan, len(features), "--cluster.dbscan")
        if c.neighbours == "ivf":
            neighbours, recall = ivf_neighbours(features, c.k1)
            reporter.line(
                f"approximate neighbours: {percent(recall)} % of the true ones, on a sample"
            )
    except ValueError as error:
        raise UserError(str(error)) from error
    graph = jaccard_graph(features, c.k1, c.k2, c.eps + c.eps_gap, neighbours=neighbours)
    return self_paced_labels(graph, c.eps, c.eps_gap, c.min_samples, backend=c.dbscan)[0].cpu()


def simulate(
    features: Tensor,
    labels: Tensor,
    identities: Tensor,
    strategy: str,
    config: SimulationConfig,
) -> list[Point]:
    """One strategy: round after round on its own labels, until the budget is spent or a round has nothing to ask.

    Args:
        features: (n, D) unit rows.
        labels: (n,) int64 clusters to begin from, -1 outside every cluster.
        identities: (n,) int64 true identities: for the oracle and the scores.
        strategy: Its name.
        config: Budget, oracle, and constants.

    Returns:
        Cluster quality before the first question, after every `config.every` questions, and at the end.
    """
    o, q = config.oracle, config.questions
    oracle = Oracle(
        identities, error=o.error, unsure=o.unsure, not_comparable=o.not_comparable, seed=o.seed
    )
    asker = Asker(oracle, closure=q.closure, confirm_merges=q.confirm_merges, budget=config.budget)
    pairs = len(labels) * (len(labels) - 1) / 2
    curve: dict[int, Point] = {}

    def note(questions: int, current: Callable[[], Tensor]) -> None:
        if questions % config.every == 0:
            curve[questions] = Point(
                strategy, questions, questions / pairs, *pair_scores(current(), identities)
            )

    note(0, labels.clone)
    asker.after_answer = note
    for round_ in range(_ROUNDS):
        before = asker.asked
        labels, _ = refine(features, labels, asker, strategy, q, round_)
        if asker.asked == before or asker.asked >= config.budget:
            break
    curve[asker.asked] = Point(
        strategy, asker.asked, asker.asked / pairs, *pair_scores(labels, identities)
    )
    asker.ledger.close()
    return list(curve.values())


def read_features(path: Path) -> tuple[Tensor, Tensor]:
    """Unit features (n, D) float32 and identities (n,) int64 from an .npz file.

    Raises:
        DataError: It cannot be read, or does not hold what is needed.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("features", "identities") if name not in file]
            if missing:
                raise DataError(
                    f"{path} has no array {' and no '.join(missing)}; it holds {', '.join(file.files) or 'nothing'}"
                )
            features, identities = file["features"], file["identities"]
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as .npz ({str(error).splitlines()[0]}); "
            "write one with python -m fastreid_al.evaluate --save-features"
        ) from error
    if features.ndim != 2 or identities.shape != features.shape[:1] or len(features) < 2:
        raise DataError(
            f"{path}: features {features.shape} and identities {identities.shape}; expected (n, D) and (n,) with n >= 2"
        )
    rows = torch.from_numpy(features.astype(np.float32))
    if not torch.isfinite(rows).all() or not rows.any(1).all():
        raise DataError(f"{path}: features must be finite and not zero")
    try:
        return nn.functional.normalize(rows, dim=1), torch.from_numpy(identities.astype(np.int64))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: identities must be whole numbers") from error


def write_csv(points: list[Point], path: Path) -> None:
    """One line a point."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Point._fields)
    writer.writerows(points)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def draw(points: list[Point], path: Path) -> None:
    """Pair F1, precision and recall over questions, a line a strategy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, name in zip(panels, ("f1", "precision", "recall"), strict=True):
        for strategy in dict.fromkeys(p.strategy for p in points):
            curve = [
                (p.questions, 100 * getattr(p, name)) for p in points if p.strategy == strategy
            ]
            axes.plot(*zip(*curve, strict=True), marker="o", markersize=2, label=strategy)
        axes.set_title(f"pair {name.replace('f1', 'F1')} (%)")
        axes.set_xlabel("questions")
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


def _strategies(config: SimulationConfig) -> list[str]:
    names = [name.strip() for name in config.ask.split(",") if name.strip()]
    if not names:
        raise SettingError("ask", config.ask, "names of strategies, with commas between")
    for name in names:
        load_strategy(name)
    validate(config)
    if any(getattr(config.questions, name) is not None for name in ("budget", "ledger", "replay")):
        raise UserError(
            "a simulation has one --budget, and neither a ledger nor a replay; leave these --questions out"
        )
    return list(dict.fromkeys(names))


def _scores(scores: PairScores) -> str:
    return f"pair precision {percent(scores.precision)} %, recall {percent(scores.recall)} %, F1 {percent(scores.f1)} %"
