"""A run small enough to be killed many times, how to stop it, and how to compare runs."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastreid_al import plugins
from fastreid_al.config import (
    BatchConfig,
    ClusterConfig,
    EngineConfig,
    ImageConfig,
    NetworkConfig,
    OptimizerConfig,
    RunConfig,
    SyntheticConfig,
)
from fastreid_al.engine import TrainingLoop
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.models.backbone import BackboneOptions

#: The name by which runs of this process, and of processes that it forks, find `tiny_backbone`.
MODEL = "tiny"
#: D of its features.
FEATURES = 64
SYNTHETIC = SyntheticConfig(
    train_identities=8,
    train_images=64,
    test_identities=6,
    query_images=12,
    gallery_images=36,
    cameras=3,
    height=64,
)


def tiny_backbone(options: BackboneOptions) -> nn.Module:
    """Three convolutions; OSNet's 190 layers would take most of the time of a tiny run."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, FEATURES)):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone.features = FEATURES  # type: ignore[assignment]
    return backbone


def _register() -> None:
    """Make the backbone known by its name, as an entry point of a package would."""
    known: Any = plugins.BUILT_IN[plugins.MODELS]
    known[MODEL] = f"{__name__}:{tiny_backbone.__name__}"
    plugins.available.cache_clear()


_register()


def tiny_config(run_dir: Path) -> RunConfig:
    """Three epochs of four small batches: a second or two."""
    return RunConfig(
        model=MODEL,
        weights="none",
        epochs=3,
        evaluate_every=1,
        run_dir=str(run_dir),
        synthetic=SYNTHETIC,
        image=ImageConfig(height=48, width=24, pad=2),
        network=NetworkConfig(bn_group=8),
        batch=BatchConfig(size=16, iterations=4),
        cluster=ClusterConfig(k1=8, k2=2, eps=0.5),
        optimizer=OptimizerConfig(lr=1e-3, step=2),
        # The same on every CPU.
        engine=EngineConfig(precision="float32"),
    )


def same_state(a: object, b: object) -> bool:
    """Whether nested values are equal bit for bit, apart from seconds, speed and settings."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(
            same_state(a[k], b[k]) for k in a if k not in ("seconds", "speed", "config")
        )
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_state, a, b))
    return (
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    )


def stop_after(patch: pytest.MonkeyPatch, steps: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal while the images of a step, counted over epochs, are augmented."""
    original = TrainingLoop._augmented
    done = 0

    def counting(*args: Any) -> Any:
        nonlocal done
        done += 1
        if done == steps:
            os.kill(os.getpid(), signum)
        return original(*args)

    patch.setattr(TrainingLoop, "_augmented", counting)


def stop_in_step(patch: pytest.MonkeyPatch, method: type, step: int) -> None:
    """Send this process SIGTERM in the given step of all."""
    update = method.update  # type: ignore[attr-defined]
    done = 0

    def stopping(*args: object) -> None:
        nonlocal done
        done += 1
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        update(*args)

    patch.setattr(method, "update", stopping)


def elsewhere(config: RunConfig, name: str, **changes: object) -> RunConfig:
    """The same run in another folder, with some settings changed."""
    folder = Path(str(config.run_dir)).parent / name
    return replace(config, run_dir=str(folder), **changes)  # type: ignore[arg-type]


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    """The weights in the last checkpoint of a run."""
    return load_checkpoint(Path(run) / "last.pt")["model"]


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two networks are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def recorded(run: str | Path) -> list[dict[str, Any]]:
    """The records in metrics.jsonl, without seconds and speed."""
    records = []
    for line in (Path(run) / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        records.append({k: v for k, v in record.items() if k not in ("seconds", "speed")})
    return records
