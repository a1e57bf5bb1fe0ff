"""Measure what a window of open questions costs, and what judged thumbnails bring, on features.

    python bench/questions/window.py --features NAME=FILE.npz ... --json OUT.json --table OUT.md

A file holds features, identities and cameras, as an evaluation with `save_features` writes it. An
oracle answers. Each strategy refines the same clusters with each window, without and with
thumbnails, without errors and with errors. The same share of the answers about thumbnails is wrong.
`--scale tiny` needs no file: it shows that the script works, and its figures mean nothing.

Seconds are counted, not measured: SECONDS for a decision, and SECONDS_MORE for each thumbnail that
is judged with it. How long a person looks at a thumbnail is not known. The table therefore says at
how many seconds for a thumbnail judging is worth as much as asking about further pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

import markdown_rows
import surroundings

from fastreid_al.config import OracleConfig, QuestionConfig, SimulationConfig, recipe
from fastreid_al.files import write_file
from fastreid_al.methods.cluster_images import cluster_images
from fastreid_al.runs.features_file import read_features
from fastreid_al.runs.simulate import Point, simulate
from fastreid_al.synthetic import planted_partition

#: Seconds that a person is taken to need for a decision, and for each judged thumbnail.
SECONDS = 4.0
SECONDS_MORE = 0.7
STRATEGIES = ("gain", "ucal")
WINDOWS = (1, 4, 16)
ERRORS = (0.0, 0.05)


class Setting(NamedTuple):
    """What one curve was made with.

    Args:
        features: Name of the features.
        strategy: Name of the strategy.
        window: Questions that are open at a time.
        thumbnails: Whether thumbnails are judged.
        error: Share of wrong answers.
        expected_error: Share that the run expects.
        seed: Seed of the wrong answers; -1 for the mean over seeds.
    """

    features: str
    strategy: str
    window: int
    thumbnails: bool
    error: float
    expected_error: float
    seed: int = 0


class Place(NamedTuple):
    """The state of a curve after a number of questions.

    Args:
        questions: Questions so far.
        gestures: Decisions so far.
        members: Judged thumbnails so far.
        seconds: Seconds of the decisions, as they are counted.
        f1: Pair F1.
        bcubed_f1: B-cubed F1.
    """

    questions: int
    gestures: float
    members: float
    seconds: float
    f1: float
    bcubed_f1: float


class Curve(NamedTuple):
    """A setting and its places, by questions."""

    setting: Setting
    places: list[Place]


def main() -> None:
    """Measure, and write the figures and the tables."""
    options = _parser().parse_args()
    windows = [int(word) for word in options.windows.split(",")]
    errors = [float(word) for word in options.errors.split(",")]
    curves: list[Curve] = []
    sets = []
    for name, features, identities, cameras in _features(options):
        labels, features = _cluster(features, cameras)
        sets.append(
            {
                "features": name,
                "images": len(features),
                "identities": len(identities.unique()),
                "clusters": int(labels.max()) + 1,
                "unclustered": int((labels < 0).sum()),
            }
        )
        for error in errors:
            for strategy in options.strategies.split(","):
                for thumbnails in (False, True):
                    for window in windows:
                        # Without errors every seed gives the same answers.
                        for seed in range(options.seeds if error else 1):
                            setting = Setting(
                                *(name, strategy, window, thumbnails, error),
                                *(options.expected_error if error else 0.0, seed),
                            )
                            curve = measure(setting, features, labels, identities, cameras, options)
                            curves.append(curve)
                            print(setting, curve.places[-1], flush=True)
        _write(options, sets, curves)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", action="append", default=[], metavar="NAME=FILE.npz")
    parser.add_argument("--scale", choices=("usual", "tiny"), default="usual")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)))
    parser.add_argument("--errors", default=",".join(map(str, ERRORS)))
    parser.add_argument("--expected-error", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the wrong answers")
    parser.add_argument("--budget", type=int, default=600, help="questions of each curve")
    parser.add_argument("--every", type=int, default=50, help="questions between two places")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT.json")
    parser.add_argument("--table", type=Path, required=True, metavar="OUT.md")
    return parser


def _features(
    options: argparse.Namespace,
) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """Name, features (n, D), identities (n,) and cameras (n,) of each set."""
    if options.scale == "tiny":
        planted = planted_partition(200, 16, sizes=(4, 20))
        yield "planted", planted.features, planted.identities, planted.cameras
        return
    if not options.features:
        sys.exit("name features with --features NAME=FILE.npz, or use --scale tiny")
    for word in options.features:
        name, _, file = word.partition("=")
        yield (name, *read_features(Path(file)))


def _cluster(features: Tensor, cameras: Tensor | None) -> tuple[Tensor, Tensor]:
    """Clusters (n,) of the recipe for small networks, and the features (n, D) to ask about."""
    if cameras is None:
        cameras = torch.full((len(features),), -1)
    clustered = cluster_images(features, cameras, recipe("synthetic").cluster)
    return clustered.labels, clustered.features


def measure(
    setting: Setting,
    features: Tensor,
    labels: Tensor,
    identities: Tensor,
    cameras: Tensor | None,
    options: argparse.Namespace,
) -> Curve:
    """Ask an oracle with one setting.

    Args:
        setting: Strategy, window, thumbnails and errors.
        features: (n, D) float32, unit-norm.
        labels: (n,) int64 clusters to begin from.
        identities: (n,) int64 true identities.
        cameras: (n,) int64 cameras; None where unknown.
        options: The budget, and the questions between two places.
    """
    config = SimulationConfig(
        features="",
        budget=options.budget,
        every=options.every,
        questions=QuestionConfig(
            window=setting.window,
            thumbnails=setting.thumbnails,
            k_max_rule="root",
            expected_error=setting.expected_error,
        ),
        oracle=OracleConfig(
            error=setting.error,
            seed=setting.seed,
            seconds=SECONDS,
            seconds_more=SECONDS_MORE,
        ),
    )
    points = simulate(features, labels, identities, setting.strategy, config, cameras)
    return Curve(setting, [_place(point) for point in points])


def _place(point: Point) -> Place:
    return Place(
        point.questions,
        point.gestures,
        point.members,
        point.seconds,
        point.f1,
        point.bcubed_f1 or 0.0,
    )


def _write(options: argparse.Namespace, sets: Sequence[Any], curves: Sequence[Curve]) -> None:
    content = {
        "surroundings": surroundings.describe(),
        "seconds": SECONDS,
        "seconds_more": SECONDS_MORE,
        "sets": sets,
        "places": Place._fields,
        "curves": [
            {
                **curve.setting._asdict(),
                "places": [[round(value, 4) for value in place] for place in curve.places],
            }
            for curve in curves
        ],
    }
    write_file(options.json, json.dumps(content), private=False)
    write_file(options.table, tables(curves), private=False)


def tables(curves: Sequence[Curve]) -> str:
    """What a window costs, and what thumbnails bring, as two Markdown tables."""
    curves = over_seeds(curves)
    return f"{window_table(curves)}\n{thumbnail_table(curves)}"


def over_seeds(curves: Sequence[Curve]) -> list[Curve]:
    """Return the mean of the curves that differ in their seed alone, as far as all of them go."""
    groups: dict[Setting, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.setting._replace(seed=-1), []).append(curve)
    means = []
    for setting, group in groups.items():
        end = min(curve.places[-1].questions for curve in group)
        places = [place.questions for place in group[0].places if place.questions < end]
        means.append(Curve(setting, [_mean_place(group, at) for at in [*places, end]]))
    return means


def _mean_place(curves: Sequence[Curve], at: float) -> Place:
    """The mean of curves at a number of questions."""
    means = [sum(value_at(c, at, name) for c in curves) / len(curves) for name in Place._fields]
    return Place(round(means[0]), *means[1:])


def window_table(curves: Sequence[Curve]) -> str:
    """Scores of each window at a quarter, half and all of the questions of its shortest curve.

    A cell holds pair F1 / B-cubed F1, and the change of pair F1 against the first window in per
    cent.
    """
    windows = sorted({curve.setting.window for curve in curves})
    titles = ["features", "strategy", "thumbnails", "errors", "questions"]
    lines = markdown_rows.head([*titles, *(f"W = {window}" for window in windows)])
    for group in _grouped(curves):
        end = min(curve.places[-1].questions for curve in group)
        of_window = {curve.setting.window: curve for curve in group}
        for at in (end // 4, end // 2, end):
            setting = group[0].setting
            cells = [
                setting.features,
                setting.strategy,
                "judged" if setting.thumbnails else "no",
                f"{100 * setting.error:g} %",
                str(at),
            ]
            first = None
            for window in windows:
                if window not in of_window:
                    cells.append("-")
                    continue
                f1 = value_at(of_window[window], at, "f1")
                bcubed = value_at(of_window[window], at, "bcubed_f1")
                change = "" if first is None else f" ({100 * (f1 / first - 1):+.1f} %)"
                first = f1 if first is None else first
                cells.append(f"{f1:.3f} / {bcubed:.3f}{change}")
            lines.append(markdown_rows.row(cells))
    return "\n".join(lines) + "\n"


def thumbnail_table(curves: Sequence[Curve]) -> str:
    """What a decision with judged thumbnails is worth, in pair questions without them.

    It is the number of pair questions that reach the same score, over the number of decisions.
    Thumbnails are worth the time if each takes less than the break-even seconds. Only the first
    window is shown.
    """
    first = min(curve.setting.window for curve in curves)
    titles = ["features", "strategy", "errors", "score", "decisions", "thumbnails in each"]
    titles += ["score, pairs alone", "score, judged", "worth in pairs", "break-even s/thumbnail"]
    lines = markdown_rows.head([*titles, "same counted seconds: pairs alone", "judged"])
    by_setting = {curve.setting: curve for curve in curves}
    for setting, judged in by_setting.items():
        plain = by_setting.get(setting._replace(thumbnails=False))
        if not setting.thumbnails or plain is None or setting.window != first:
            continue
        for score in ("f1", "bcubed_f1"):
            for part in (4, 2):
                at = judged.places[-1].questions // part
                lines.append(markdown_rows.row(_worth_cells(setting, plain, judged, score, at)))
    return "\n".join(lines) + "\n"


def _worth_cells(setting: Setting, plain: Curve, judged: Curve, score: str, at: int) -> list[str]:
    reached = value_at(judged, at, score)
    members = value_at(judged, at, "members")
    needed = questions_until(plain, score, reached)
    worth = (plain.places[-1].questions if needed is None else needed) / at
    more = "" if needed is not None else "> "
    even = SECONDS * (worth - 1) * at / members if members else 0.0
    seconds = min(value_at(judged, at, "seconds"), plain.places[-1].seconds)
    return [
        setting.features,
        setting.strategy,
        f"{100 * setting.error:g} %",
        {"f1": "pair F1", "bcubed_f1": "B-cubed F1"}[score],
        str(at),
        f"{members / at:.1f}",
        f"{value_at(plain, at, score):.3f}",
        f"{reached:.3f}",
        f"{more}{worth:.1f}",
        f"{more}{even:.2f}" if even > 0 else "none",
        f"{value_at(plain, seconds, score, 'seconds'):.3f}",
        f"{value_at(judged, seconds, score, 'seconds'):.3f}",
    ]


def value_at(curve: Curve, at: float, value: str, of: str = "questions") -> float:
    """Return a value of a curve at a number of questions or seconds, between two places linearly.

    Args:
        curve: The curve.
        at: Where.
        value: Which field of its places.
        of: The field that `at` is of.
    """
    known = [getattr(place, of) for place in curve.places]
    return float(np.interp(at, known, [getattr(place, value) for place in curve.places]))


def questions_until(curve: Curve, score: str, reached: float) -> float | None:
    """Return the questions after which a curve reaches a score first; None if it does not."""
    before = curve.places[0]
    for place in curve.places:
        low, high = getattr(before, score), getattr(place, score)
        if high >= reached:
            share = (reached - low) / (high - low) if high > low else 0.0
            return before.questions + max(share, 0.0) * (place.questions - before.questions)
        before = place
    return None


def _grouped(curves: Sequence[Curve]) -> list[list[Curve]]:
    """The curves that differ in their window alone."""
    groups: dict[Setting, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.setting._replace(window=0), []).append(curve)
    return list(groups.values())


if __name__ == "__main__":
    main()
