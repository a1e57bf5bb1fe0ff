"""Measure whether marking odd small images is worth a person's time, on features.

    python bench/questions/marks.py --features NAME=SEED0.npz,SEED1.npz --json OUT.json \
        --table OUT.md

A file holds features, identities and cameras, as an evaluation with `save_features` writes it. File
number s is measured with seed s of the wrong answers. `gain` asks an oracle about pairs or on
sheets of eight, without and with judged small images. On a sheet with several comparisons the
oracle judges no small images: "sheets, marked" judges those of the single pairs.

Seconds are counted, not measured: 4 for a pair, 8 for a sheet of eight, and each value of `SMALL`
for a small image. How long a person looks at a small image is not known. The last table says at how
many seconds marking is worth as much as further pairs.

Curves that `--from` names are taken over and not measured again, so that a measurement can be
continued, and several can be joined. `--scale tiny` needs no file: it shows that the script works,
and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

import markdown_rows
import surroundings

from fastreid_al.config import ClusterConfig, OracleConfig, QuestionConfig, SimulationConfig, recipe
from fastreid_al.files import write_file
from fastreid_al.methods.cluster_images import cluster_images
from fastreid_al.runs.features_file import read_features
from fastreid_al.runs.simulate import simulate
from fastreid_al.synthetic import planted_partition

#: Seconds that a person is taken to need for a pair, and for each further image of a sheet.
SECONDS = 4.0
SECONDS_MORE = 4 / 7
#: Seconds for a small image that the tables are made for.
SMALL = (SECONDS_MORE, 0.25, 0.1)
SHEET = 8
#: Comparisons of a curve, by arm: enough for an hour of answers, if a small image takes 0.1 s.
BUDGETS = {"pairs": 900, "pairs, marked": 600, "sheets": 3000, "sheets, marked": 2000}
#: Where the tables look at a curve.
AT_SECONDS = (500, 1000, 2000, 3500)
AT_DECISIONS = (100, 200, 400)
SCORES = {"f1": "pair F1", "bcubed_f1": "B-cubed F1", "class_completeness": "completeness"}
PLACES = ("questions", "gestures", "members", "seconds", *SCORES, "class_purity")


class Setting(NamedTuple):
    """What a curve was made with.

    Args:
        features: Name of the features.
        code: Name of the version of the program.
        arm: A key of `BUDGETS`.
        aim: What `gain` optimises.
        window: Questions that are open at a time.
        error: Share of wrong answers.
        expected: Share that the run expects.
        seed: Number of the file, and seed of the wrong answers; -1 for the mean.
    """

    features: str
    code: str
    arm: str
    aim: str
    window: int
    error: float
    expected: float
    seed: int


class Curve(NamedTuple):
    """A setting, and its places (p, 8) with the columns of `PLACES`."""

    setting: Setting
    places: np.ndarray


def main() -> None:
    """Measure, and write the figures and the tables."""
    options = _parser().parse_args()
    known = _read(options.earlier)
    curves = dict(known)
    sets = []
    for name, seed, features, identities, cameras in _features(options):
        clustered = cluster_images(
            features,
            torch.full((len(features),), -1) if cameras is None else cameras,
            _clustering(options.clusters),
        )
        sets.append(
            {
                "features": name,
                "seed": seed,
                "images": len(features),
                "identities": len(identities.unique()),
                "clusters": int(clustered.labels.max()) + 1,
            }
        )
        for setting in _settings(options, name, seed):
            if setting not in curves:
                places = measure(
                    setting,
                    clustered.features,
                    clustered.labels,
                    identities,
                    cameras,
                    options.budget,
                )
                curves[setting] = Curve(setting, places)
                print(setting, places[-1].round(3).tolist(), flush=True)
                _write(options, sets, list(curves.values()))
    _write(options, sets, list(curves.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", action="append", default=[], metavar="NAME=FILE,FILE")
    parser.add_argument("--scale", choices=("usual", "tiny"), default="usual")
    parser.add_argument("--clusters", choices=("linkage", "small"), default="linkage")
    parser.add_argument("--code", default="now", help="name of the version of the program")
    parser.add_argument("--arms", default=";".join(BUDGETS), help="names, separated by ;")
    parser.add_argument("--aims", default="pairs")
    parser.add_argument("--windows", default="1,4,16", help="beyond the first: without errors")
    parser.add_argument("--errors", default="0,0.02,0.05")
    parser.add_argument("--believe", action="store_true", help="believe wrong answers")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the usual budgets")
    parser.add_argument("--from", action="append", default=[], dest="earlier", metavar="FILE.json")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT.json")
    parser.add_argument("--table", type=Path, required=True, metavar="OUT.md")
    return parser


def _features(
    options: argparse.Namespace,
) -> Iterator[tuple[str, int, Tensor, Tensor, Tensor | None]]:
    """Name, seed, features (n, D), identities (n,) and cameras (n,) of each file."""
    if options.scale == "tiny":
        planted = planted_partition(200, 16, sizes=(4, 20))
        yield "planted", 0, planted.features, planted.identities, planted.cameras
        return
    if not options.features and not options.earlier:
        sys.exit("name features with --features NAME=FILE.npz, or use --scale tiny")
    for word in options.features:
        name, _, files = word.partition("=")
        for seed, file in enumerate(files.split(",")):
            # Seeds can be measured side by side: NAME=,SEED1.npz is seed 1 alone.
            if file:
                yield (name, seed, *read_features(Path(file)))


def _clustering(name: str) -> ClusterConfig:
    if name == "small":
        return recipe("synthetic").cluster
    return ClusterConfig(camera_norm="standardise", algorithm="linkage", join=0.15)


def _settings(options: argparse.Namespace, name: str, seed: int) -> Iterator[Setting]:
    """The settings of the command line, for one file; the first window with every error first."""
    first, *others = map(int, options.windows.split(","))
    for window in (first, *others):
        for error in map(float, options.errors.split(",")):
            for arm in options.arms.split(";"):
                for aim in options.aims.split(","):
                    if window == first or not error:
                        expected = 0.0 if options.believe else error
                        yield Setting(name, options.code, arm, aim, window, error, expected, seed)


def measure(
    setting: Setting,
    features: Tensor,
    labels: Tensor,
    identities: Tensor,
    cameras: Tensor | None,
    share: float = 1.0,
) -> np.ndarray:
    """Ask an oracle with one setting.

    Args:
        setting: What is asked, and how it is answered.
        features: (n, D) float32, unit-norm.
        labels: (n,) int64 clusters to begin from.
        identities: (n,) int64 true identities.
        cameras: (n,) int64 cameras; None where unknown.
        share: Share of the usual budget.

    Returns:
        (p, 8) float64 places with the columns of `PLACES`.
    """
    budget = int(share * BUDGETS[setting.arm])
    config = SimulationConfig(
        features="",
        budget=budget,
        every=max(1, budget // 20),
        questions=QuestionConfig(
            window=setting.window,
            aim=cast(Literal["pairs", "classes"], setting.aim),
            sheet=SHEET if setting.arm.startswith("sheets") else 1,
            thumbnails=setting.arm.endswith("marked"),
            expected_error=setting.expected,
        ),
        oracle=OracleConfig(
            error=setting.error, seed=setting.seed, seconds=SECONDS, seconds_more=SECONDS_MORE
        ),
    )
    points = simulate(features, labels, identities, "gain", config, cameras)
    return np.array([[getattr(point, name) or 0.0 for name in PLACES] for point in points])


def _read(files: Sequence[str]) -> dict[Setting, Curve]:
    """The curves of earlier measurements."""
    curves = {}
    for file in files:
        for row in json.loads(Path(file).read_text())["curves"]:
            setting = Setting(*(row[name] for name in Setting._fields))
            curves[setting] = Curve(setting, np.array(row["places"]))
    return curves


def _write(options: argparse.Namespace, sets: Sequence[Any], curves: Sequence[Curve]) -> None:
    sets = list(sets)
    for file in options.earlier:
        sets += [of for of in json.loads(Path(file).read_text())["sets"] if of not in sets]
    content = {
        "surroundings": surroundings.describe(),
        "seconds": SECONDS,
        "seconds_more": SECONDS_MORE,
        "sets": sets,
        "places": PLACES,
        "curves": [
            {**curve.setting._asdict(), "places": curve.places.round(4).tolist()}
            for curve in curves
        ],
    }
    write_file(options.json, json.dumps(content), private=False)
    write_file(options.table, tables(curves), private=False)


def tables(curves: Sequence[Curve]) -> str:
    """The curves by decisions and by seconds, and what marking is worth, as Markdown tables."""
    means = over_seeds(curves)
    parts = [decision_table(means), second_table(means), worth_table(means)]
    return "\n".join(parts)


def over_seeds(curves: Sequence[Curve]) -> list[tuple[Setting, list[Curve]]]:
    """Return the curves that differ in their seed alone together, by setting."""
    groups: dict[Setting, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.setting._replace(seed=-1), []).append(curve)
    return sorted(groups.items())


def value_at(curves: Sequence[Curve], score: str, at: float, of: str, small: float) -> float | None:
    """Return the mean score of curves where something has a value, between two places linearly.

    Args:
        curves: The curves of all seeds.
        score: Column of the places.
        at: The value.
        of: Column that it is of.
        small: Seconds for a small image.

    Returns:
        The score; None if a curve ends before.
    """
    found = []
    for curve in curves:
        where = column(curve, of, small)
        if where[-1] < at:
            return None
        found.append(float(np.interp(at, where, column(curve, score, small))))
    return sum(found) / len(found)


def column(curve: Curve, name: str, small: float) -> np.ndarray:
    """Return a column of the places of a curve, (p,).

    Args:
        curve: The curve.
        name: Name of the column.
        small: Seconds for a small image.
    """
    values: np.ndarray = curve.places[:, PLACES.index(name)]
    if name == "seconds":
        members = curve.places[:, PLACES.index("members")]
        return values - (SECONDS_MORE - small) * members
    return values


def decision_table(means: Sequence[tuple[Setting, list[Curve]]]) -> str:
    """Pair F1 / completeness after a number of decisions."""
    lines = markdown_rows.head([*_TITLES, *(f"{at} decisions" for at in AT_DECISIONS)])
    for setting, curves in means:
        scores = [_pair_of_scores(curves, at, "gestures", 0.0) for at in AT_DECISIONS]
        lines.append(markdown_rows.row([*_cells(setting, curves), *scores]))
    return "\n".join(lines) + "\n"


def second_table(means: Sequence[tuple[Setting, list[Curve]]]) -> str:
    """Pair F1 / completeness after a number of seconds, for each time of a small image."""
    lines = markdown_rows.head([*_TITLES, "s / small image", *(f"{at} s" for at in AT_SECONDS)])
    for setting, curves in means:
        for small in SMALL if setting.arm.endswith("marked") else SMALL[:1]:
            scores = [_pair_of_scores(curves, at, "seconds", small) for at in AT_SECONDS]
            time = f"{small:.2f}" if setting.arm.endswith("marked") else ""
            lines.append(markdown_rows.row([*_cells(setting, curves), time, *scores]))
    return "\n".join(lines) + "\n"


def worth_table(means: Sequence[tuple[Setting, list[Curve]]]) -> str:
    """Seconds of a small image at which marking is worth as much as further questions.

    A score of the marked arm after some decisions is reached by the arm without marks after some
    seconds. If the decisions take as long as that, what is left for each small image is the time in
    the cell.
    """
    titles = [f"{name} at {at}" for name in SCORES.values() for at in AT_DECISIONS[:2]]
    lines = markdown_rows.head([*_TITLES, "small images in each", *titles])
    by_setting = dict(means)
    for setting, curves in means:
        plain_arm = setting.arm.removesuffix(", marked")
        plain = by_setting.get(setting._replace(arm=plain_arm))
        plain = plain or by_setting.get(setting._replace(arm=plain_arm, code="now"))
        if plain_arm == setting.arm or plain is None:
            continue
        judged = value_at(curves, "members", AT_DECISIONS[0], "gestures", 0.0)
        cells = ["-" if judged is None else f"{judged / AT_DECISIONS[0]:.1f}"]
        for score in SCORES:
            cells += [_break_even(curves, plain, score, at) for at in AT_DECISIONS[:2]]
        lines.append(markdown_rows.row([*_cells(setting, curves), *cells]))
    return "\n".join(lines) + "\n"


def _break_even(judged: Sequence[Curve], plain: Sequence[Curve], score: str, at: int) -> str:
    """Seconds of a small image at which both arms are worth the same after some decisions."""
    reached = value_at(judged, score, at, "gestures", 0.0)
    members = value_at(judged, "members", at, "gestures", 0.0)
    own = value_at(judged, "seconds", at, "gestures", 0.0)
    if reached is None or not members or own is None:
        return "-"
    ends = min(curve.places[-1, PLACES.index("seconds")] for curve in plain)
    times = np.linspace(0, ends, 1000)
    values = [value_at(plain, score, float(time), "seconds", 0.0) or 0.0 for time in times]
    after = next((t for t, value in zip(times, values, strict=True) if value >= reached), None)
    if after is None:
        return f"> {(ends - own) / members:.2f}" if ends > own else "never reached"
    return f"{(after - own) / members:.2f}" if after > own else "none"


_TITLES = ("features", "code", "arm", "aim", "W", "wrong / expected", "seeds")


def _cells(setting: Setting, curves: Sequence[Curve]) -> list[str]:
    wrong = f"{100 * setting.error:g} / {100 * setting.expected:g} %"
    cells = [setting.features, setting.code, setting.arm, setting.aim, str(setting.window)]
    return [*cells, wrong, str(len(curves))]


def _pair_of_scores(curves: Sequence[Curve], at: float, of: str, small: float) -> str:
    found = [value_at(curves, score, at, of, small) for score in ("f1", "class_completeness")]
    return " / ".join("-" if value is None else f"{100 * value:.1f}" for value in found)


if __name__ == "__main__":
    main()
