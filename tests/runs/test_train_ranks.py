"""Runs of several ranks: they train as a single process does, and resume on any number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fastreid_al.config import ExportConfig, RunConfig
from fastreid_al.distributed.world import World
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.engine.console import Reporter
from fastreid_al.models import build_model
from fastreid_al.runs import run_training, train
from fastreid_al.runs.export_labels import export_labels
from tests.support.process_pool import Pool
from tests.support.rank_runs import configured, refused
from tests.support.tiny import MODEL, SYNTHETIC, tiny_config

ROOT = Path(__file__).resolve().parent.parent.parent

#: What is counted, or compared with a tolerance; scores follow from features that differ by
#: rounding.
EXACT = (
    "clusters",
    "clustered",
    "alone",
    "classes",
    "questions",
    "labels_per_image",
    "drafted_pair_f1",
    "pair_f1",
)


NAMES = ("instance memory", "cluster memory, questions", "source", "nnct")


def trained(world: World, config: RunConfig, cache: str) -> list[dict[str, Any]]:
    """The history of a run."""
    os.environ["FASTREID_AL_CACHE"] = cache
    train.draw_curves = lambda *_: None  # type: ignore[assignment]
    return run_training(config, resume=True, world=world).history


def assert_alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [r["epoch"] for r in one] == [r["epoch"] for r in other]
    for a, b in zip(one, other, strict=True):
        assert {k: a[k] for k in EXACT if k in a} == {k: b[k] for k in EXACT if k in b}
        for name in ("loss", "mAP"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-3), (name, a["epoch"])


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (2, NAMES[0]),
        *(pytest.param(2, name, marks=pytest.mark.slow) for name in NAMES[1:]),
        *(pytest.param(4, name, marks=pytest.mark.slow) for name in NAMES),
    ],
)
def test_several_ranks_train_as_one_process_does(
    pool: Pool, tmp_path: Path, size: int, name: str
) -> None:
    cache = os.environ["FASTREID_AL_CACHE"]
    [one] = pool.run(trained, 1, configured(tmp_path / "one", name), cache)
    histories = pool.run(trained, size, configured(tmp_path / "several", name), cache)
    assert_alike(one, histories[0])
    for other in histories[1:]:
        assert [r.get("loss") for r in other] == [r.get("loss") for r in histories[0]]
    single = moved(tmp_path / "one")
    several = moved(tmp_path / "several")
    assert (several - single).norm() < 0.1 * single.norm()


@pytest.mark.parametrize("name", [NAMES[1], pytest.param(NAMES[3], marks=pytest.mark.slow)])
def test_two_ranks_write_the_identities_that_a_single_process_exports(
    pool: Pool, tmp_path: Path, name: str
) -> None:
    config = configured(tmp_path / "run", name)
    pool.run(trained, 2, config, os.environ["FASTREID_AL_CACHE"])
    written = tmp_path / "run" / "labels.csv"
    out = tmp_path / "exported.csv"
    export_labels(ExportConfig(str(config.run_dir), "labels", str(out)), Reporter())
    columns = [[row.split(",")[:4] for row in f.read_text().splitlines()] for f in (written, out)]
    assert columns[0] == columns[1]
    assert len(columns[0]) == SYNTHETIC.train_images + 1
    assert json.loads((tmp_path / "run" / "labels.json").read_text())["next_identity"] > 0


def failing_extraction(world: World, config: RunConfig, cache: str) -> list[str]:
    """Train, while the extraction for labels.csv fails on the second rank; returns the files."""
    original = train.extract_features

    def fail(*args: Any, **options: Any) -> Tensor:
        if world.rank == 1:
            raise torch.OutOfMemoryError("too little memory")
        return original(*args, **options)

    train.extract_features = fail  # type: ignore[assignment]
    try:
        trained(world, config, cache)
    finally:
        train.extract_features = original  # type: ignore[assignment]
    return sorted(os.listdir(str(config.run_dir)))


def test_a_rank_that_cannot_extract_does_not_lose_the_run(pool: Pool, tmp_path: Path) -> None:
    config = configured(tmp_path / "run", NAMES[0])
    for files in pool.run(failing_extraction, 2, config, os.environ["FASTREID_AL_CACHE"]):
        assert "last.pt" in files
        assert "labels.csv" not in files


def moved(folder: Path) -> Tensor:
    """How far the weights of a run have come from those it began with."""
    torch.manual_seed(0)
    first = build_model(MODEL, "none", bn_group=0).state_dict()
    last = load_checkpoint(folder / "last.pt")["model"]
    return torch.cat(
        [(last[k] - v).double().flatten() for k, v in first.items() if "weight" in k or "bias" in k]
    )


@pytest.mark.slow
def test_a_run_of_two_ranks_resumes_on_four_and_on_a_single_process(
    pool: Pool, tmp_path: Path
) -> None:
    cache = os.environ["FASTREID_AL_CACHE"]
    config = configured(tmp_path / "run", "instance memory")
    [whole] = pool.run(
        trained, 1, replace(config, run_dir=str(tmp_path / "whole"), epochs=3), cache
    )
    for size, epochs in ((2, 1), (4, 2), (1, 3)):
        history = pool.run(trained, size, replace(config, epochs=epochs, evaluate_every=9), cache)[
            0
        ]
    assert_alike([{k: v for k, v in r.items() if k != "mAP"} for r in whole], history)
    assert not (tmp_path / "run" / "last.json").exists()


def test_more_ranks_than_images_are_refused(pool: Pool, tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (24, 48), (ord(name), 0, 0)).save(tmp_path / f"{name}_c1.png")
    config = replace(
        configured(tmp_path / "run", "instance memory"), dataset="folder", data_root=str(tmp_path)
    )
    for said in pool.run(refused, 4, config, {}):
        assert (
            "4 ranks are more than the 3 training images: start torchrun with fewer processes"
            in said
        )


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_the_run_ends_in_the_same_weights(
    tmp_path: Path,
) -> None:
    def command(folder: str) -> list[str]:
        torchrun = [
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "--max-restarts",
            "1",
        ]
        options = [
            "--config",
            str(tmp_path / "tiny.json"),
            "--run-dir",
            str(tmp_path / folder),
            "--device",
            "cpu",
        ]
        return [sys.executable, "-m", *torchrun, "-m", "tests.support.train_tiny", *options]

    (tmp_path / "tiny.json").write_text(json.dumps(asdict(tiny_config(tmp_path))))
    path = os.pathsep.join(["kernels", *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    whole = subprocess.run(
        command("whole"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert whole.returncode == 0, whole.stderr[-2000:]
    with subprocess.Popen(
        command("killed"),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        pointer = tmp_path / "killed" / "last.json"
        while not pointer.exists() and process.poll() is None:
            time.sleep(0.05)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said = process.communicate(timeout=150)[0].decode()
    assert process.returncode == 0, said[-2000:]
    assert "resuming" in said
    first, second = (
        load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("whole", "killed")
    )
    assert all(torch.equal(first[k], second[k]) for k in first)
