"""Tiny runs that several ranks train together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastreid_al.config import (
    MemoryConfig,
    NetworkConfig,
    OptimizerConfig,
    QuestionConfig,
    RunConfig,
)
from fastreid_al.distributed.world import World
from fastreid_al.errors import UserError
from fastreid_al.runs import run_training
from tests.support.tiny import SYNTHETIC, tiny_config


def configured(run_dir: Path, name: str) -> RunConfig:
    """Two epochs in which four images are what a rank of four is given.

    Short steps of plain SGD: statistics of four tiny images make a change of 1e-7 in the weights
    grow tenfold with each longer one, and Adam's first steps turn the rounding of a gradient near
    zero into a step of full length.
    """
    config = replace(
        tiny_config(run_dir), epochs=2, evaluate_every=2, network=NetworkConfig(bn_group=4)
    )
    config = replace(config, optimizer=OptimizerConfig(name="sgd", lr=1e-5, momentum=0.0))
    if name == "cluster memory, questions":
        asked = QuestionConfig(start=1, per_epoch=10)
        config = replace(
            config, ask="gain", questions=asked, memory=MemoryConfig(kind="cluster", hardest=True)
        )
        return replace(config, cluster=replace(config.cluster, source="extract"))
    if name == "source":
        return replace(
            config,
            source="synthetic",
            adaptation=replace(config.adaptation, synthetic=replace(SYNTHETIC, seed=1)),
        )
    if name == "nnct":
        nnct = replace(config.nnct, single_label=1, threshold=0.3)
        return replace(
            config,
            method="nnct",
            nnct=nnct,
            network=NetworkConfig(bn_group=0, test_features="pool5"),
        )
    return config


def refused(world: World, config: RunConfig, change: dict[str, Any]) -> str:
    try:
        run_training(replace(config, **change) if world.rank == 1 else config, world=world)
    except UserError as error:
        return str(error)
    return "nothing"
