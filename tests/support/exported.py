"""Networks whose features differ from image to image without training, and images for them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastreid_al.config import ImageConfig, NetworkConfig, TestFeatures
from fastreid_al.data.augment import normalize
from fastreid_al.exports import Reference, Runtime, open_file, write_form
from fastreid_al.models import ReIdNet, build_model
from tests.support.tiny import MODEL, tiny_config

#: Height and width of the images of the tiny network.
SIZE = (48, 24)
ABOUT = {"model": "any"}


def colours(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    """Images of coarse coloured patches, (n, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 3, generator=generator) * 255
    tint = torch.rand(count, 3, 1, 1, generator=generator)
    resized = torch.nn.functional.interpolate(coarse * tint, size, mode="bilinear")
    return resized.round().to(torch.uint8)


def calibrated(name: str = MODEL, size: tuple[int, int] = SIZE, **options: Any) -> ReIdNet:
    """A random network whose BatchNorms know the statistics of such images."""
    torch.manual_seed(0)
    model = build_model(name, "none", bn_group=0, **options).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # The mean over all batches: two are enough.
            module.momentum = None
    with torch.no_grad():
        for seed in (1, 2):
            model(normalize(colours(16, size, seed)))
    return model.eval()


def reference(
    model: ReIdNet, stage: TestFeatures = "bn", count: int = 40, **size: Any
) -> Reference:
    return Reference.of(model, stage, colours(count, **size))


def exported(
    form: Any, model: ReIdNet, path: Path, stage: TestFeatures = "bn", size: tuple[int, int] = SIZE
) -> Runtime:
    """Write a network, and open the file."""
    write_form(form, model, stage, size, ABOUT, path)
    return open_file(form, path, model)


def put_run(
    folder: Path,
    model: ReIdNet,
    *,
    stage: TestFeatures = "bn",
    size: tuple[int, int] = SIZE,
    **more: Any,
) -> Path:
    """Write what an export reads of a run on the tiny synthetic set."""
    folder.mkdir()
    config = replace(
        tiny_config(folder),
        model=model.name,
        image=ImageConfig(height=size[0], width=size[1]),
        network=NetworkConfig(test_features=stage),
        **more,
    )
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    network = {
        **{"name": model.name, "pool": "avg", "test_features": stage, "osnet_fc": True},
        **{"height": size[0], "width": size[1]},
    }
    torch.save({"model": model.state_dict(), "network": network}, folder / "last.pt")
    return folder
