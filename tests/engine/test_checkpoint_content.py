"""Checkpoints whose bytes are sound and whose content no run writes, and damaged bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastreid_al.config import RunConfig
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.engine.checkpoint_content import check_content
from fastreid_al.errors import CheckpointError, UserError
from fastreid_al.runs import run_training
from fastreid_al.runs import train as train_module
from tests.support.tiny import tiny_config

State = dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """The folder of a run of one epoch."""
    config = replace(tiny_config(tmp_path_factory.mktemp("trained") / "run"), epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "draw_curves", lambda *_: None)
        return run_training(config).folder


@pytest.fixture
def run(trained: Path, config: RunConfig) -> RunConfig:
    """The same run, for two epochs, in a folder that can be changed."""
    shutil.copytree(trained, str(config.run_dir))
    return replace(config, epochs=2)


def put(*path: Any, value: Any) -> Callable[[State], None]:
    """Set a value in nested dictionaries and lists."""

    def change(state: State) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    change.__name__ = "-".join(map(str, path)) + f"={str(value)[:20]}"
    return change


def drop(*path: Any) -> Callable[[State], None]:
    """Remove a value from nested dictionaries."""

    def change(state: State) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    change.__name__ = "without-" + "-".join(map(str, path))
    return change


def first_weight(value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        weight = next(iter(state["model"].values()))
        weight[(0,) * weight.ndim] = value

    change.__name__ = f"weight={value}"
    return change


def wrong_moment(state: State) -> None:
    next(iter(state["optimizer"]["state"].values()))["exp_avg"] = torch.zeros(3)


def moments_of_nothing(state: State) -> None:
    state["optimizer"]["state"][10**6] = {}


KEYS = (
    *("model", "network", "config", "epoch", "step", "loss", "optimizer", "scheduler", "method"),
    *("random", "data", "metrics", "history", "pending"),
)
CHANGES: list[Callable[[State], None]] = [
    *(drop(key) for key in KEYS if key != "optimizer"),
    *(put(key, value=object_) for key in KEYS for object_ in ("x", [1.5], torch.zeros(2, 2))),
    *(put("format", value=value) for value in ("1", -3, 2.5, None, True, [3])),
    *(put("step", value=value) for value in (-3, 999, 2.0, True, None, 10**30)),
    *(put("epoch", value=value) for value in (-1, 10**9, 0, 2, "1", None)),
    *(put("method", value=value) for value in ({}, {"labels": None, "memory": {}})),
    put("method", "labels", value=torch.zeros(3, dtype=torch.int64)),
    put("method", "labels", value=torch.full((64,), 10**6)),
    put("method", "labels", value=torch.zeros(64)),
    put("method", "memory", "bank", value=torch.zeros(2, 3)),
    put("method", "memory", "classes", value=torch.zeros(2)),
    put("method", "memory", value=None),
    put("method", "threshold", value="high"),
    put("optimizer", "state", value={}),
    put("optimizer", "param_groups", value=[]),
    put("optimizer", "param_groups", 0, "lr", value="fast"),
    put("optimizer", "param_groups", 0, "params", value=[0, 1, 2, 3]),
    wrong_moment,
    moments_of_nothing,
    put("scheduler", "last_epoch", value=7),
    put("scheduler", "gamma", value=None),
    put("scheduler", "base_lrs", value=[]),
    put("random", "torch", value=torch.zeros(3, dtype=torch.uint8)),
    put("random", "augment", value=torch.zeros(5056, dtype=torch.int64)),
    put("history", 0, value={"epoch": 5}),
    put("history", 0, "mAP", value="high"),
    drop("history", 1, "rank5"),
    drop("history", 1, "alone"),
    put("history", 1, "class_purity", value={"a": 1}),
    put("metrics", "clusters", value=[3]),
    put("scheduler", "_last_lr", value="x"),
    put("history", value=[]),
    put("config", "optimizer", value=None),
    put("data", value={"x.jpg": 3}),
    put("model", value={}),
    put("model", "neck.weight", value=torch.zeros(1)),
    put("model", "neck.weight", value=torch.zeros(1).expand(512)),
    put("model", "neck.weight", value=torch.zeros(512).to_sparse()),
    first_weight(float("nan")),
    first_weight(float("inf")),
]


#: Two of the changes that are noticed only when the run is built, for the plain tests.
FEW = CHANGES[-1:] + [change for change in CHANGES if "labels=tensor([1000000" in change.__name__]


def refused(config: RunConfig, change: Callable[[State], None]) -> str:
    """What a run says that is to continue from a changed checkpoint."""
    path = Path(str(config.run_dir)) / "last.pt"
    state = load_checkpoint(path)
    change(state)
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError) as said:
        run_training(config, resume=True)
    return str(said.value)


@pytest.mark.parametrize("change", FEW, ids=lambda change: change.__name__)
def test_content_that_does_not_fit_the_run_is_refused_in_one_line(
    run: RunConfig, change: Callable[[State], None]
) -> None:
    said = refused(run, change)
    assert "\n" not in said and "does not fit the run" in said and len(said) < 700


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_content_that_no_run_writes_is_refused_in_one_line(
    run: RunConfig, change: Callable[[State], None]
) -> None:
    said = refused(run, change)
    assert "\n" not in said and len(said) < 700


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_another_type_is_refused_before_anything_slow(trained: Path, key: str) -> None:
    path = trained / "last.pt"
    state = load_checkpoint(path)
    check_content(state, path)
    for value in ("x", [1.5], torch.zeros(2, 2), {1: 2}, float("nan"), b"x"):
        with pytest.raises(CheckpointError, match=f"{key}: got "):
            check_content({**state, key: value}, path)
    del state[key]
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        check_content(state, path)


def test_a_precision_may_be_absent_but_not_unknown(trained: Path) -> None:
    path = trained / "last.pt"
    state = load_checkpoint(path)
    assert state["precision"] == "float32"
    for value in ("float16", [1.5], torch.zeros(2, 2), {1: 2}, None):
        with pytest.raises(CheckpointError, match=r"precision: got .*, expected float32 or bf16"):
            check_content({**state, "precision": value}, path)
    del state["precision"]
    check_content(state, path)


def test_an_untouched_checkpoint_of_format_2_without_a_digest_is_read(run: RunConfig) -> None:
    path = Path(str(run.run_dir)) / "last.pt"
    state = load_checkpoint(path)
    torch.save({**state, "format": 2}, path)
    assert [r["epoch"] for r in run_training(run, resume=True).history] == [0, 1, 2]


def test_a_changed_bit_is_refused_wherever_it_is(trained: Path, tmp_path: Path) -> None:
    content = (trained / "last.pt").read_bytes()
    places = random.Random(0)
    path = tmp_path / "last.pt"
    for _ in range(40):
        changed = bytearray(content)
        place = places.randrange(len(content))
        changed[place] ^= 1 << places.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged|cannot be read") as refused:
            load_checkpoint(path)
        assert "\n" not in str(refused.value)
    for length in (0, 1, 100, len(content) // 2, len(content) - 60, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    path.write_bytes(content[: -len(b"fastreid_al SHA-256\n") - 32])
    with pytest.raises(UserError, match="its end, which holds the digest"):
        load_checkpoint(path)
