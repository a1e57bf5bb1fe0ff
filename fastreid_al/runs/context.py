"""The context of a run, which its steps take: configuration, device, processes, folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from ..active.strategies import Strategy
from ..answers.question import AnyAnnotator
from ..config import RunConfig
from ..data import ImageSet
from ..distributed.world import SINGLE_PROCESS, World
from ..engine.console import Reporter
from ..engine.precision import Precision, choose_precision
from ..engine.run_folder import RunFolder
from ..engine.stop_signal import StopSignal
from ..models import BackboneBuilder

#: Folder of runs whose `run_dir` is not given.
RUNS = Path("runs")


@dataclass(frozen=True)
class Extensions:
    """Objects that replace names in the configuration; None where the name holds.

    Args:
        strategy: Which pairs to ask about, in place of `ask`.
        annotator: Who answers, in place of `annotator`.
        dataset: The image set, in place of `dataset` and `data_root`.
        model: Builds the backbone, in place of `model`.
    """

    strategy: Strategy | None = None
    annotator: AnyAnnotator | None = None
    dataset: ImageSet | None = None
    model: BackboneBuilder | None = None

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the settings that an object replaces."""
        objects = {
            "ask": self.strategy,
            "annotator": self.annotator,
            "dataset": self.dataset,
            "model": self.model,
        }
        return frozenset(key for key, value in objects.items() if value is not None)


@dataclass(frozen=True)
class RunContext:
    """A run, as its steps see it.

    Args:
        config: The configuration.
        device: Where this process computes.
        world: The processes of the run.
        reporter: Prints lines and progress; silent on all processes but the first.
        folder: The folder of the run, into which only the first process writes.
        stop: Signals that ask the run to stop.
        precision: In which precision all processes compute.
        extensions: Objects that replace names in the configuration.
    """

    config: RunConfig
    device: torch.device
    world: World
    reporter: Reporter
    folder: RunFolder
    stop: StopSignal
    precision: Precision
    extensions: Extensions = field(default_factory=Extensions)


def make_context(
    config: RunConfig,
    device: torch.device,
    world: World = SINGLE_PROCESS,
    reporter: Reporter | None = None,
    extensions: Extensions | None = None,
) -> RunContext:
    """Make the context of a run. All processes call it.

    Args:
        config: The configuration.
        device: Where this process computes.
        world: The processes of the run.
        reporter: Prints the first process's lines; a plain one when not given.
        extensions: Objects that replace names in the configuration.
    """
    if not world.is_first:
        reporter = Reporter(Console(quiet=True))
    # The path may hold the time, which differs between processes.
    path = world.all_gather_objects(_run_path(config))[0]
    return RunContext(
        config,
        device,
        world,
        reporter or Reporter(),
        RunFolder(path, world.is_first, config.tensorboard),
        StopSignal(ends_phases=world.size == 1),
        choose_precision(config.engine, device, world),
        extensions or Extensions(),
    )


def _run_path(config: RunConfig) -> Path:
    if config.run_dir:
        return Path(config.run_dir)
    return RUNS / f"{config.dataset}-{config.method}-{time.strftime('%Y%m%d-%H%M%S')}"
