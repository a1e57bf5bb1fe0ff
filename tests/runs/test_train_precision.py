"""Runs in bfloat16 on a CPU: what is in float32, how they resume, and what they say."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastreid_al.config import EngineConfig, MemoryConfig, NetworkConfig, RunConfig
from fastreid_al.distributed.world import World
from fastreid_al.engine import Interrupted, Network
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.methods import NNCT
from fastreid_al.models import build_model
from fastreid_al.runs import run_training, train
from tests.support.process_pool import Pool
from tests.support.source_runs import adapted
from tests.support.tiny import (
    MODEL,
    elsewhere,
    recorded,
    same_weights,
    stop_after,
    stop_in_step,
    tiny_config,
    weights,
)

BF16 = EngineConfig(precision="bf16")
FLOAT32 = EngineConfig(precision="float32")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Two epochs in bfloat16."""
    return replace(tiny_config(tmp_path / "run"), epochs=2, evaluate_every=2, engine=BF16)


def variant(config: RunConfig, name: str) -> RunConfig:
    if name == "supervised":
        return replace(config, method="supervised", memory=MemoryConfig(kind="cluster"))
    if name == "nnct":
        network = NetworkConfig(bn_group=0, test_features="pool5")
        nnct = replace(config.nnct, single_label=1, threshold=0.3)
        return replace(config, method="nnct", network=network, nnct=nnct)
    return adapted(config) if name == "source" else config


def floating(state: object) -> list[Tensor]:
    """The floating tensors in nested values."""
    if isinstance(state, dict):
        return [x for value in state.values() for x in floating(value)]
    if isinstance(state, list | tuple):
        return [x for value in state for x in floating(value)]
    return [state] if isinstance(state, Tensor) and state.is_floating_point() else []


@pytest.mark.parametrize("name", ["ucal", "nnct", "supervised", "source"])
def test_all_but_the_products_of_steps_is_float32(
    config: RunConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()
    features = Network.features

    def watched(self: Network, *args: object) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "autocast", noting)
            return features(self, *args)  # type: ignore[arg-type]

    original = torch.autocast

    def noting(device: str, dtype: torch.dtype, enabled: bool) -> object:
        seen.add((enabled, dtype))
        return original(device, dtype, enabled=enabled)

    monkeypatch.setattr(Network, "features", watched)
    finished = run_training(variant(config, name))
    assert seen == {(False, torch.bfloat16)}
    state = load_checkpoint(finished.folder / "last.pt")
    kept = [state[key] for key in ("model", "optimizer", "method")]
    assert {x.dtype for x in floating(kept)} == {torch.float32}
    assert state["precision"] == "bf16"
    other = run_training(elsewhere(variant(config, name), "float32", engine=FLOAT32))
    assert not same_weights(weights(finished.folder), weights(other.folder))


@pytest.mark.parametrize("name", ["ucal", "nnct"])
def test_a_stopped_run_resumes_to_bit_identical_weights(
    config: RunConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = variant(config, name)
    whole = run_training(elsewhere(config, "whole"))
    with monkeypatch.context() as patch:
        if name == "nnct":
            stop_in_step(patch, NNCT, 6)
        else:
            stop_after(patch, 6)
        with pytest.raises(Interrupted):
            run_training(config)
    resumed = run_training(config, resume=True)
    assert same_weights(weights(resumed.folder), weights(whole.folder))
    assert recorded(resumed.folder) == recorded(whole.folder)


def test_a_run_says_and_keeps_its_precision(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_training(config).folder
    line = "training steps in bfloat16, features in float32 (`engine.precision` bf16"
    assert line in " ".join(capsys.readouterr().out.split())
    assert json.loads((folder / "versions.json").read_text())["precision"].startswith(line)


def test_a_resume_in_another_precision_says_so(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(replace(config, epochs=1))
    warning = "the run was trained in bf16 until here; set `engine.precision` bf16 to go on"
    path = Path(str(config.run_dir)) / "last.pt"
    state = load_checkpoint(path)
    for change, warned in (({}, True), ({"precision": "float32"}, False), (None, False)):
        kept = {k: v for k, v in state.items() if change is not None or k != "precision"}
        save_checkpoint(path, {**kept, **(change or {})})
        capsys.readouterr()
        run_training(replace(config, engine=FLOAT32), resume=True)
        printed = capsys.readouterr()
        said = " ".join((printed.out + printed.err).split())
        assert (warning in said) == warned


def trained(world: World, config: RunConfig, cache: str) -> None:
    os.environ["FASTREID_AL_CACHE"] = cache
    train.draw_curves = lambda *_: None  # type: ignore[assignment]
    run_training(config, world=world)


def moved(folder: Path) -> Tensor:
    """How far the weights of a run have come from those it began with."""
    torch.manual_seed(0)
    first = build_model(MODEL, "none", bn_group=0).state_dict()
    last = weights(folder)
    parts = [
        (last[k] - v).flatten() for k, v in first.items() if k.endswith(("weight", "running_mean"))
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("bn_group", [0, 8])
def test_two_ranks_train_in_bfloat16_nearly_as_one_process(
    pool: Pool, config: RunConfig, tmp_path: Path, bn_group: int
) -> None:
    config = replace(
        config,
        epochs=1,
        network=NetworkConfig(bn_group=bn_group),
        optimizer=replace(config.optimizer, name="sgd", lr=1e-5, momentum=0.0),
    )
    cache = os.environ["FASTREID_AL_CACHE"]
    pool.run(trained, 1, elsewhere(config, "one"), cache)
    for name in ("two", "again"):
        pool.run(trained, 2, elsewhere(config, name), cache)
    one, two = moved(tmp_path / "one"), moved(tmp_path / "two")
    assert (two - one).norm() < 0.1 * one.norm()
    assert same_weights(weights(tmp_path / "two"), weights(tmp_path / "again"))
