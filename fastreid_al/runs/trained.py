"""What a run left behind: its folder, its network, its images, and their features."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import EngineConfig, ImageConfig, RunConfig, TestFeatures
from ..data import ImageSet
from ..data.loader import BatchLoader
from ..data.records import Record
from ..engine.checkpoint_content import is_count
from ..engine.console import Reporter
from ..engine.extract import decode_records, extract_features
from ..engine.network import Network
from ..errors import CheckpointError, SettingError, UserError
from ..models import BackboneBuilder, ReIdNet, build_model
from ..models.safetensors_file import is_safetensors, read_about
from ..models.weights import read_tensors
from ..settings import settings_of, with_values
from ..settings_file import read_settings
from .data import read_set

#: What a checkpoint says of its network, and the type of each value.
_NETWORK: dict[str, type] = {
    **{"name": str, "pool": str, "test_features": str, "osnet_fc": bool},
    **{"height": int, "width": int},
}


@dataclass(frozen=True)
class RunFiles:
    """The folder of a run, and a checkpoint in it.

    Args:
        folder: The folder.
        checkpoint: last.pt, or the checkpoint that was named.
        config: The configuration of the run.
    """

    folder: Path
    checkpoint: Path
    config: RunConfig


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode, and how its features are computed.

    Args:
        model: The network, without BatchNorms of a source.
        image: Size of its images, as `image.height` and `image.width`.
        stage: Which features are ranked.
        origin: The file of its weights.
    """

    model: ReIdNet
    image: ImageConfig
    stage: TestFeatures
    origin: Path

    def on(self, device: torch.device, engine: EngineConfig, reporter: Reporter) -> Network:
        """Move the network to a device, and return it as the engine runs it."""
        if engine.precision == "bf16" and device.type == "cpu":
            reporter.warn(
                "`engine.precision` bf16 is of training steps on a CPU: features are float32"
            )
        self.model.to(device).to(memory_format=torch.channels_last)
        return Network(self.model, engine, device, reporter.warn, reporter.line)

    def digest(self, flip: bool = False) -> str:
        """The SHA-256, in hex, of all that features depend on: weights, image size, which features.

        It does not depend on the file or its format.

        Args:
            flip: Whether features are those of the image and its mirror image.
        """
        about = {
            **{"name": self.model.name, "stage": self.stage, "flip": flip},
            **{"height": self.image.height, "width": self.image.width},
        }
        total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                continue
            value = tensor.detach().cpu().contiguous()
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            total.update(value.view(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


class Extracted(NamedTuple):
    """Features of the images that could be read.

    Args:
        features: (m, D) float32, unit-norm, on the network's device.
        records: The m images.
        digests: Digest of the content of each file, as `data.pixels` computes it.
    """

    features: Tensor
    records: list[Record]
    digests: Sequence[str]


def find_run(path: Path, data_root: str | None = None) -> RunFiles:
    """Find the files of a run.

    Args:
        path: The folder of the run, or a checkpoint in it.
        data_root: Where its images lie now, in place of where they lay.

    Raises:
        CheckpointError: There is no such run, or it has no checkpoint yet.
    """
    folder = path if os.path.isdir(path) else path.parent
    checkpoint = folder / "last.pt" if os.path.isdir(path) else path
    saved = folder / "config.json"
    if not os.path.exists(path):
        raise CheckpointError(f"{path} does not exist; name the folder of a run")
    if not os.path.isfile(saved):
        raise CheckpointError(
            f"{folder} is not the folder of a run: it has no config.json; name the folder that a "
            "training wrote into"
        )
    if not os.path.isfile(checkpoint):
        raise CheckpointError(
            f"{folder} has no {checkpoint.name}: the run has not saved a checkpoint yet"
        )
    config = config_of_run(saved)
    if data_root is not None:
        config = replace(config, data_root=data_root)
    return RunFiles(folder, checkpoint, config)


def config_of_run(file: Path) -> RunConfig:
    """Read config.json of a run; settings of other versions are left out.

    Raises:
        UserError: It is not the configuration of a run.
    """
    known = settings_of(RunConfig)
    try:
        values = {}
        for key, value in read_settings(file).items():
            if key in known:
                old = isinstance(value, str) and value in dict(known[key].replaced)
                values[key] = known[key].convert(dict(known[key].replaced)[value] if old else value)
        if "dataset" not in values:
            raise KeyError("dataset")
        return with_values(RunConfig(), values)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not the configuration of a run ({error})") from error


def load_trained(
    checkpoint: Path,
    reporter: Reporter,
    *,
    model: str | BackboneBuilder | None = None,
    pool: str = "avg",
    test_features: TestFeatures | None = None,
    height: int | None = None,
    width: int | None = None,
    store_gib: float = ImageConfig.store_gib,
) -> Trained:
    """Load the network of a file; a checkpoint knows its backbone, image size and features.

    Args:
        checkpoint: A checkpoint, an export as safetensors, or a bare weights file.
        reporter: Prints what was left out of a file of another code base.
        model: Backbone of a bare weights file, by name or as the function that builds it.
        pool: Pooling of a bare weights file.
        test_features: Which features, in place of the checkpoint's.
        height: Height of the images, in place of the checkpoint's.
        width: Width of the images, in place of the checkpoint's.
        store_gib: Decoded pixels stay in memory up to this many GiB.

    Raises:
        UserError: The file cannot be read, or the arguments do not fit it or are not enough.
    """
    refuse_folder(checkpoint)
    saved = _network_of(_content_of(checkpoint), str(checkpoint))
    backbone = model or saved.get("name")
    if backbone is None:
        raise UserError(f"{checkpoint} is a bare weights file: name its backbone with `model`")
    if isinstance(model, str) and saved.get("name", model) != model:
        raise CheckpointError(
            f"{checkpoint} was trained with `model` {saved['name']}, not {model}; do not set "
            "`model`"
        )
    network = build_model(
        backbone,
        checkpoint,
        pool=saved.get("pool", pool),
        bn_group=0,
        osnet_fc=saved.get("osnet_fc", True),
        report=reporter.line,
    )
    image = ImageConfig(
        height or saved.get("height", ImageConfig.height),
        width or saved.get("width", ImageConfig.width),
        store_gib=store_gib,
    )
    stage = test_features or saved.get("test_features", "bn")
    return Trained(network.eval(), image, stage, checkpoint)


def refuse_folder(path: Path) -> None:
    """Refuse a run folder or a part of a sharded checkpoint, and name the file of weights."""
    run = path.parent if path.name.startswith("last") else path
    weights = run / "last.pt"
    if (os.path.isdir(path) or path.suffix == ".json") and os.path.isfile(weights):
        raise CheckpointError(f"{path} is not a weights file: evaluate {weights}")


def _content_of(file: Path) -> Any:
    """Return the content of a checkpoint or weights file, or what an export says of its network.

    Raises:
        UserError: The file cannot be read.
    """
    content = read_tensors(file)
    if not is_safetensors(file):
        return content
    try:
        return read_about(file)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy it again") from error


def _network_of(content: Any, origin: str) -> dict[str, Any]:
    """Return what a checkpoint says of its network; empty for a bare weights file.

    Raises:
        CheckpointError: It says something that no run writes.
    """
    saved = content.get("network") if isinstance(content, Mapping) else None
    if not isinstance(saved, Mapping) or "name" not in saved:
        return {}
    for name, kind in _NETWORK.items():
        value: Any = saved.get(name)
        right = is_count(value) and value > 0 if kind is int else isinstance(value, kind)
        if name in saved and not right:
            raise CheckpointError(
                f"{origin} is not a checkpoint that a run wrote: network.{name} is {value!r:.40}"
            )
    return dict(saved)


def engine_of_run(engine: EngineConfig, config: RunConfig) -> EngineConfig:
    """Return how features of a run are extracted: with mirror images where the run did so.

    They are another network's output, not another way to compute the same.

    Args:
        engine: What a command was asked for.
        config: The configuration of the run.
    """
    return replace(engine, flip_features=engine.flip_features or config.engine.flip_features)


def engine_of_checkpoint(
    engine: EngineConfig, checkpoint: Path, reporter: Reporter
) -> EngineConfig:
    """Return how features of a checkpoint are extracted: as its run did, where it lies in one.

    A config.json that cannot be read, or that no run wrote, is passed over with a warning: the
    file of another program may lie beside bare weights.

    Args:
        engine: What a command was asked for.
        checkpoint: The folder of a run, a checkpoint or a weights file.
        reporter: Says what was taken over, or why nothing could be.
    """
    folder = checkpoint if os.path.isdir(checkpoint) else checkpoint.parent
    file = folder / "config.json"
    if not os.path.lexists(file):
        return engine
    try:
        config = config_of_run(file)
    except UserError as error:
        if not engine.flip_features:
            reporter.warn(
                f"{error}; features are those of images without mirror images: if the run averaged "
                "them, set `engine.flip_features`"
            )
        return engine
    found = engine_of_run(engine, config)
    if found != engine:
        reporter.line("features are averaged with those of mirror images, as in the run")
    return found


def images_of_run(run: RunFiles, reporter: Reporter) -> ImageSet:
    """Read the image set of a run.

    Raises:
        UserError: It cannot be read; the message names `data_root` where the images may have moved.
    """
    config = run.config
    try:
        return read_set(config, config.dataset, reporter)
    except SettingError:
        raise
    except UserError as error:
        raise type(error)(
            f"{error}; if the images of the run were moved, name their folder with `data_root`"
        ) from error


def extract_records(
    trained: Trained,
    network: Network,
    records: Sequence[Record],
    split: str,
    engine: EngineConfig,
    reporter: Reporter,
) -> Extracted:
    """Decode images, and extract their features.

    Args:
        trained: The network, and how its features are computed.
        network: The same network as the engine runs it (`Trained.on`).
        records: The images.
        split: What they are, for the lines that are printed.
        engine: How the features are extracted.
        reporter: Shows progress, and names images that cannot be read.

    Returns:
        The features of the images that could be read: 267 MB at n = 32,621 and 8.2 GB at 1e6 for
        D = 2,048. Decoded pixels beyond `image.store_gib` lie in a temporary file meanwhile.
    """
    store, readable = decode_records(records, split, trained.image, None, reporter)
    loader = BatchLoader(store, network.device, "host")
    with reporter.progress(f"extracting {split}", len(store)) as update:
        features = extract_features(network, loader, engine, update, trained.stage)
    return Extracted(features, readable, list(store.digests))
