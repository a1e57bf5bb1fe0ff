"""Tiny runs with a labelled source."""

from __future__ import annotations

from dataclasses import replace

from fastreid_al.config import (
    AdaptationConfig,
    MemoryConfig,
    NNCTConfig,
    RunConfig,
    SyntheticConfig,
)

SOURCE = SyntheticConfig(
    train_identities=6,
    train_images=36,
    test_identities=2,
    query_images=4,
    gallery_images=8,
    cameras=2,
    height=64,
    seed=5,
)


def adapted(config: RunConfig, name: str = "instance memory") -> RunConfig:
    """Two epochs of two batches of each domain; the instance memory shares its BatchNorms."""
    config = replace(
        config,
        epochs=2,
        evaluate_every=0,
        source="synthetic",
        adaptation=AdaptationConfig(synthetic=SOURCE),
        batch=replace(config.batch, size=8, iterations=2),
        image=replace(config.image, height=32, width=16),
        network=replace(config.network, bn_group=4),
    )
    if name == "nnct":
        return replace(config, method="nnct", nnct=NNCTConfig(single_label=1))
    if name == "cluster memory":
        cluster = replace(config.cluster, source="extract", noise="drop")
        return replace(config, memory=MemoryConfig(kind="cluster", hardest=True), cluster=cluster)
    return replace(config, network=replace(config.network, domain_bn=False))
