"""Small trainings on CUDA run, resume and lower the loss."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.config import (
    BatchConfig,
    ClusterConfig,
    ImageConfig,
    MemoryConfig,
    NetworkConfig,
    OptimizerConfig,
    RunConfig,
    SyntheticConfig,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


@pytest.fixture
def small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    for package in ("rich", "matplotlib", "sqlalchemy"):
        pytest.importorskip(package)
    monkeypatch.setenv("FASTREID_AL_CACHE", str(tmp_path / "cache"))
    try:
        import platformdirs  # noqa: F401
    except ImportError:
        # It only finds the cache folder, which is given here.
        monkeypatch.setitem(sys.modules, "platformdirs", types.ModuleType("platformdirs"))
    return RunConfig(
        method="supervised",
        model="osnet_x0_25",
        weights="none",
        epochs=2,
        device=DEVICE,
        evaluate_every=9,
        run_dir=str(tmp_path / "run"),
        synthetic=SyntheticConfig(
            train_identities=16,
            train_images=160,
            test_identities=8,
            query_images=8,
            gallery_images=40,
            height=64,
        ),
        image=ImageConfig(height=64, width=32, pad=4),
        network=NetworkConfig(bn_group=16),
        batch=BatchConfig(size=32, per_identity=4, iterations=20),
        cluster=ClusterConfig(k1=10),
        optimizer=OptimizerConfig(lr=1e-3),
    )


def test_training_runs_and_resumes_and_lowers_the_loss(small_run: RunConfig) -> None:
    from fastreid_al.runs import run_training

    first = run_training(small_run)
    assert [r["epoch"] for r in first.history] == [0, 1, 2]
    after = run_training(replace(small_run, epochs=4), resume=True)
    assert [r["epoch"] for r in after.history] == [0, 1, 2, 3, 4]
    assert after.history[:3] == first.history
    assert after.history[-1]["loss"] < first.history[1]["loss"]
    assert 0 < after.history[-1]["mAP"] <= 1


@pytest.mark.parametrize(
    ("memory", "source"),
    [(MemoryConfig(), "memory"), (MemoryConfig("cluster", hardest=True), "extract")],
    ids=["instance memory", "cluster memory"],
)
def test_unlabelled_training_runs_and_resumes(
    small_run: RunConfig, memory: MemoryConfig, source: str
) -> None:
    from fastreid_al.runs import run_training

    cluster = replace(small_run.cluster, source=source)  # type: ignore[arg-type]
    config = replace(small_run, method="ucal", memory=memory, cluster=cluster, epochs=1)
    run_training(config)
    after = run_training(replace(config, epochs=2), resume=True)
    assert [r["epoch"] for r in after.history] == [0, 1, 2]
    assert all(np.isfinite(r["loss"]) for r in after.history[1:])


def test_a_run_stopped_within_an_epoch_resumes(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from fastreid_al.engine import Interrupted
    from fastreid_al.methods import Supervised
    from fastreid_al.runs import run_training

    update, calls = Supervised.update, []

    def stop_at_the_fifth(self: Supervised, features: Tensor, rows: Tensor) -> None:
        update(self, features, rows)
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Supervised, "update", stop_at_the_fifth)
    config = replace(small_run, epochs=1)
    with pytest.raises(Interrupted):
        run_training(config)
    after = run_training(config, resume=True)
    assert len(calls) == config.batch.iterations
    assert after.history[-1]["epoch"] == 1
