"""Checks made before expensive work starts: settings, batches, device."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from ..clustering import check_backend
from ..clustering.ivf import check_library
from ..config import RunConfig, recipe
from ..data import ImageSet
from ..data.augment import CROP_ASPECT
from ..engine.console import Reporter
from ..errors import SettingError, UserError
from ..settings import unread_settings, validate


def check_settings(config: RunConfig, objects: Collection[str] = ()) -> None:
    """Refuse settings that cannot work, alone or on this machine.

    Args:
        config: The configuration of a run.
        objects: Keys of extensions for which the caller passes an object instead of a name.

    Raises:
        UserError: In one line.
    """
    validate(config, objects)
    if config.method != "ucal":
        return
    cluster = config.cluster
    try:
        check_backend(cluster.dbscan, name="`cluster.dbscan`")
        if cluster.neighbours == "ivf":
            check_library(pick_device(config.device).type)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_run_folder(folder: Path, images: ImageSet) -> None:
    """Refuse a new run in a folder that holds images of its set.

    Readers pass over the folder of a run, so that the set could not be read again. Above the root
    of the set a run is harmless. A manifest names its images, so that any folder may hold them.

    Args:
        folder: The folder of the run, which need not exist.
        images: The images of the run.

    Raises:
        SettingError: The folder lies in the image set and holds images of it.
    """
    root = images.root.resolve()
    if images.name == "manifest" or not folder.resolve().is_relative_to(root):
        return
    inside = f"{images.root / folder.resolve().relative_to(root)}{os.sep}"
    held = [
        x for records in images.splits.values() for x in records if str(x.path).startswith(inside)
    ]
    if held:
        raise SettingError(
            "run_dir",
            str(folder),
            "a folder without images of the set, which could not be read beside a run",
            f"it holds {len(held):,} (first: {held[0].path}); name another folder",
        )


def check_parts(config: RunConfig, processes: int) -> None:
    """Refuse batches that cannot be divided, and settings that work in a single process only.

    A batch is divided into identities, into the parts of the processes, and into BatchNorm groups.

    Args:
        config: The configuration of a run.
        processes: Processes that train together.

    Raises:
        SettingError: The message names sizes that can be divided.
    """
    if processes > 1 and config.method == "ucal":
        _check_single_process(config, processes)
    size = config.batch.size
    group = config.network.bn_group
    per_identity = 1 if config.method == "nnct" else config.batch.per_identity
    if size % per_identity:
        _refuse_size(size, per_identity, f"`batch.per_identity` {per_identity}")
    if group > size and processes == 1:
        return
    step = processes * max(group, 1)
    if size % step:
        groups = f"groups of `network.bn_group` {group}"
        ranks = f"{processes} ranks" + (f" of {groups}" if group else "")
        parts = ranks if processes > 1 else groups
        _refuse_size(size, math.lcm(step, per_identity), parts)


def _check_single_process(config: RunConfig, processes: int) -> None:
    cluster = config.cluster
    where = f"with {processes} ranks"
    if cluster.dbscan not in ("auto", "graph"):
        expected = f"auto or graph {where}"
        hint = f"{cluster.dbscan} runs in a single process"
        raise SettingError("cluster.dbscan", cluster.dbscan, expected, hint)
    if cluster.neighbours != "exact":
        expected = f"exact {where}"
        hint = f"{cluster.neighbours} runs in a single process"
        raise SettingError("cluster.neighbours", cluster.neighbours, expected, hint)


def _refuse_size(size: int, divisor: int, parts: str) -> None:
    below = size - size % divisor
    near = f"{below} or {below + divisor}" if below else f"{divisor}"
    raise SettingError("batch.size", size, f"a size that divides into {parts}, such as {near}")


def warn_of_settings(config: RunConfig, reporter: Reporter, objects: Collection[str] = ()) -> None:
    """Warn of settings that have no effect in this run.

    Args:
        config: The configuration of a run.
        reporter: Prints the warnings.
        objects: Keys of extensions for which the caller passes an object instead of a name.
    """
    image = config.image
    crops = image.crop_area != (1.0, 1.0)
    if crops and image.crop_area[0] * CROP_ASPECT[0] > image.height / image.width:
        reporter.warn(
            f"no random crop will be made: at {image.height} x {image.width} no crop has the area "
            f"`image.crop_area` {list(image.crop_area)} and a height / width of "
            f"{CROP_ASPECT[0]:g} to {CROP_ASPECT[1]:g}"
        )
    recipes = [recipe(config.dataset, "paper", config.method)]
    recipes += [recipe(config.dataset, name, config.method) for name in ("small", "reid")]
    for line in unread_settings(config, recipes, objects):
        reporter.warn(line)


def pick_device(name: str) -> torch.device:
    """Return the device that the setting `device` names; "auto" is CUDA if it is available.

    Raises:
        SettingError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    expected = "auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError("device", name, expected) from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError("device", name, expected)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        hint = f"this machine has {count} CUDA devices"
        raise SettingError("device", name, "cpu, auto or an existing device", hint)
    return device


def working_on(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one inside a block; the previous one is current again after.

    Events of the clock, pinned memory and the question which code the extension has are about the
    current device.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
