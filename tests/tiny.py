"""A run small enough to be killed many times."""

from __future__ import annotations

from pathlib import Path

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
    train_identities=8, train_images=64, test_identities=6, query_images=12, gallery_images=36, cameras=3, height=64
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
