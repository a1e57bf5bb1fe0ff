"""A run small enough to be killed many times, and how it is stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from fastreid_al.config import (
    BatchConfig,
    ClusterConfig,
    ImageConfig,
    NetworkConfig,
    OptimizerConfig,
    RunConfig,
    SyntheticConfig,
)

SYNTHETIC = SyntheticConfig(
    train_identities=8,
    train_images=64,
    test_identities=6,
    query_images=12,
    gallery_images=36,
    cameras=3,
    height=64,
)


def tiny_config(run_dir: Path) -> RunConfig:
    """Three epochs of four small batches: a few seconds."""
    return RunConfig(
        model="osnet_x0_25",
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
    )


def same_state(a: object, b: object) -> bool:
    """Nested dictionaries and lists of tensors and values, bit for bit; seconds, speed and settings left aside."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(
            same_state(a[k], b[k]) for k in a if k not in ("seconds", "speed", "config")
        )
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_state, a, b))
    return (
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    )


def stop_in_step(patch: pytest.MonkeyPatch, method: type, step: int) -> None:
    """Send this process SIGTERM in the given step of all."""
    update, done = method.update, [0]  # type: ignore[attr-defined]

    def stopping(*args: object) -> None:
        done[0] += 1
        if done[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        update(*args)

    patch.setattr(method, "update", stopping)
