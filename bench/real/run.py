"""Train every arm of a comparison on real images, and write one JSON file and one table.

    python bench/real/run.py --dataset market1501 --data-root DATA --weights OSNET.pth --out OUT

An arm is a training with some settings changed (`ARMS`), or one whose clusters are corrected with
the true identities (`oracle_edits`). Each run lies in OUT/SIZE/ARM/SEED. A run that exists is
continued, or left alone if it is finished, so the command can be stopped and started again, and
several can work on different arms of one OUT. `--summarise` only writes results.json and results.md
from the runs that are there.

The backbone is OSNet x0.25, whose weights for MSMT17 are public, so that the start is a person
re-identification network that has never seen the set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import oracle_edits

from fastreid_al.config import RunConfig, recipe
from fastreid_al.data.load import load
from fastreid_al.files import write_file
from fastreid_al.runs.train import run_training
from fastreid_al.settings import with_values

#: Seconds that a person is taken to need for a pair, and for each further image of a sheet. Both
#: are assumed: a sheet of eight takes as long as two pairs.
SECONDS = 4.0
SECONDS_MORE = 4 / 7

_CAMERAS = {"cluster.camera_norm": "standardise"}
_WHITE = {**_CAMERAS, "cluster.whiten": 2}
_LINKAGE = {"cluster.algorithm": "linkage"}
#: The best start that is known: see docs/results.md.
_LINKED = {**_CAMERAS, **_LINKAGE, "cluster.join": 0.15, "cluster.source": "extract"}

_CLASSES = {"questions.aim": "classes", "questions.sheet": 8}

#: Settings of each arm, by key. `edit` names a correction of `oracle_edits.EDITS`.
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "bound": {"method": "supervised"},
    "centre": {"cluster.camera_norm": "centre"},
    "cameras": _CAMERAS,
    "white": _WHITE,
    "linkage": {**_LINKAGE, "cluster.join": 0.25},
    "linkage-cameras": {**_CAMERAS, **_LINKAGE, "cluster.join": 0.25},
    "linked": _LINKED,
    "linkage-white": {**_WHITE, **_LINKAGE, "cluster.join": 0.35},
    "extract": {"cluster.source": "extract"},
    "cameras-extract": {**_CAMERAS, "cluster.source": "extract"},
    "drop": {"cluster.noise": "drop"},
    "cameras-drop": {**_CAMERAS, "cluster.noise": "drop"},
    "random": {"ask": "random"},
    "spal": {"ask": "spal"},
    "ucal": {"ask": "ucal", "questions.k_max_rule": "root"},
    "gain": {"ask": "gain"},
    "gain-cameras": {"ask": "gain", **_CAMERAS},
    **{f"linked-{ask}": {**_LINKED, "ask": ask} for ask in ("random", "spal", "gain")},
    "linked-classes": {**_LINKED, "ask": "gain", **_CLASSES},
    "linked-ucal": {**_LINKED, "ask": "ucal", "questions.k_max_rule": "root"},
    "nnct-0": {"method": "nnct", "neighbours_k": 0},
    "nnct-1": {"method": "nnct", "neighbours_k": 1},
    **{f"oracle-{name}": {"edit": name} for name in oracle_edits.EDITS},
    **{f"linked-oracle-{name}": {"edit": name, **_LINKED} for name in oracle_edits.EDITS},
}


class Score(NamedTuple):
    """Scores of one arm at one size, over its seeds.

    Args:
        size: Height and width, such as 128x64.
        arm: Name of the arm.
        values: Metric -> one value for each seed, from the record of the last epoch.
        seconds: Seconds of training for each seed.
    """

    size: str
    arm: str
    values: dict[str, list[float]]
    seconds: list[float]


def main() -> None:
    """Run what the command line asks for, and write the summary."""
    options = _parser().parse_args()
    out = Path(options.out)
    if not options.summarise:
        for size in options.sizes.split(","):
            for seed in options.seeds.split(","):
                for arm in options.arms.split(","):
                    folder = out / size / arm / seed
                    if not finished(folder, options.epochs):
                        train(options, size, arm, int(seed), folder)
                        summarise(out)
    summarise(out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="market1501")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--weights", default="none", help="weights of the backbone")
    parser.add_argument("--model", default="osnet_x0_25")
    parser.add_argument("--out", required=True)
    parser.add_argument("--arms", default="base,ucal,gain,random,bound,nnct-0,nnct-1")
    parser.add_argument("--sizes", default="128x64,256x128")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--evaluate-every", type=int, default=3)
    parser.add_argument("--step", type=int, default=7, help="epochs before the rate falls")
    parser.add_argument("--start", type=int, default=2, help="epochs without questions")
    parser.add_argument("--per-epoch", type=int, default=150, help="questions of an epoch")
    parser.add_argument("--minutes", type=float, help="minutes of all answers")
    parser.add_argument("--error", type=float, default=0.0, help="share of wrong answers")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--summarise", action="store_true")
    return parser


def train(options: argparse.Namespace, size: str, arm: str, seed: int, folder: Path) -> None:
    """Train one arm, from its last checkpoint if it has one."""
    settings = dict(ARMS[arm])
    edit = settings.pop("edit", None)
    config = configuration(options, size, seed, folder, settings)
    strategy = None
    if edit is not None:
        images = load(config.dataset, config.data_root, synthetic=config.synthetic, verbose=False)
        identities = torch.tensor([record.identity for record in images.train])
        strategy = oracle_edits.correcting(oracle_edits.EDITS[edit], identities)
    print(f"{size} {arm}, seed {seed}", flush=True)
    run_training(config, resume=True, strategy=strategy)


def configuration(
    options: argparse.Namespace, size: str, seed: int, folder: Path, settings: Mapping[str, Any]
) -> RunConfig:
    """Return the configuration of one run.

    Args:
        options: The command line.
        size: Height and width, such as 128x64.
        seed: Seed of the run.
        folder: Folder of the run.
        settings: What the arm changes, by key.
    """
    height, width = map(int, size.split("x"))
    method = settings.get("method", "ucal")
    values: dict[str, Any] = {
        "data_root": options.data_root,
        "model": options.model,
        "weights": options.weights,
        "epochs": options.epochs,
        "evaluate_every": options.evaluate_every,
        "seed": seed,
        "run_dir": str(folder),
        "image.height": height,
        "image.width": width,
        "image.pad": 5 if height < 256 else 10,
        "batch.iterations": options.iterations,
        "optimizer.step": options.step,
        "questions.start": options.start,
        "questions.per_epoch": options.per_epoch,
        "questions.minutes": options.minutes,
        "oracle.error": options.error,
        "oracle.seconds": SECONDS,
        "oracle.seconds_more": SECONDS_MORE,
    }
    values |= settings
    for text in options.set:
        key, _, value = text.partition("=")
        values[key] = json.loads(value)
    if method == "nnct":
        values["camstyle"] = values.get("camstyle", "none")
    return with_values(recipe(options.dataset, "paper", method), values)


def finished(folder: Path, epochs: int) -> bool:
    """Whether a run has scored its last epoch."""
    history = read_history(folder)
    return bool(history) and history[-1]["epoch"] >= epochs and "mAP" in history[-1]


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; none where there is no run."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def scores(out: Path) -> Iterator[Score]:
    """Read the runs of a folder, arm after arm."""
    for size in sorted(path for path in out.iterdir() if path.is_dir()):
        for arm in sorted(size.iterdir()):
            histories = [read_history(run) for run in sorted(arm.iterdir())]
            last = [history[-1] for history in histories if history and "mAP" in history[-1]]
            if not last:
                continue
            epochs = max(record["epoch"] for record in last)
            last = [record for record in last if record["epoch"] == epochs]
            names = {name for record in last for name, value in record.items() if _number(value)}
            values = {name: [r[name] for r in last if _number(r.get(name))] for name in names}
            seconds = [sum(_seconds(record) for record in history) for history in histories]
            yield Score(size.name, arm.name, values, seconds)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(record: Mapping[str, Any]) -> float:
    seconds = record.get("seconds", {})
    return float(sum(value for value in seconds.values() if _number(value)))


def summarise(out: Path) -> None:
    """Write results.json and results.md."""
    found = list(scores(out))
    write_file(out / "results.json", json.dumps([s._asdict() for s in found], indent=1))
    write_file(out / "results.md", table(found))


#: Columns of the table: title, metric, factor and decimals.
_COLUMNS = (
    ("mAP", "mAP", 100, 1),
    ("rank-1", "rank1", 100, 1),
    ("questions", "questions_total", 1, 0),
    ("pair P", "pair_precision", 100, 1),
    ("pair R", "pair_recall", 100, 1),
    ("pair F1", "pair_f1", 100, 1),
    ("B-cubed P", "bcubed_precision", 100, 1),
    ("B-cubed R", "bcubed_recall", 100, 1),
    ("purity", "class_purity", 1, 3),
    ("completeness", "class_completeness", 1, 3),
    ("cross-camera R", "cross_camera_recall", 100, 1),
    ("clusters", "clusters", 1, 0),
)


def table(found: list[Score]) -> str:
    """The results as a Markdown table: mean, and standard deviation over several seeds."""
    titles = ["size", "arm", "seeds", *(title for title, *_ in _COLUMNS), "hours of answers", "min"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for score in found:
        cells = [score.size, score.arm, str(len(score.values["mAP"]))]
        for _, name, factor, decimals in _COLUMNS:
            cells.append(_cell([factor * x for x in score.values.get(name, [])], decimals))
        answering = score.values.get("answering_seconds_total", [])
        cells.append(_cell([seconds / 3600 for seconds in answering], 1))
        cells.append(_cell([seconds / 60 for seconds in score.seconds], 0))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], decimals: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{decimals}f}"
    if len(set(values)) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}"


if __name__ == "__main__":
    main()
