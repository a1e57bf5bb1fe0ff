"""One training step: read, augment, forward, loss (UCAL's Eq. 1), backward, Adam, memory update.

On a busy CPU, `--benchmark-timer=time.process_time` measures the time of the process.
"""

from __future__ import annotations

from typing import Any, Literal

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastreid_al.config import EngineConfig, ImageConfig
from fastreid_al.data.augment import Augment
from fastreid_al.data.pixels import PixelStore
from fastreid_al.engine.network import Network
from fastreid_al.memory import InstanceMemory
from fastreid_al.models import build_model

#: Backbone, height, width, batch, images in the feature memory.
SIZES = {
    "tiny": [("resnet18", 32, 16, 4, 60)],
    "small": [
        ("resnet18", 96, 48, 64, 2_000),
        ("osnet_x0_25", 128, 64, 64, 2_000),
        ("osnet_x0_25", 256, 128, 32, 2_000),
        ("osnet_x1_0", 256, 128, 16, 2_000),
        ("resnet50", 256, 128, 16, 2_000),
    ],
    "market": [("resnet50", 256, 128, 64, 12_936)],
    "msmt17": [("resnet50", 256, 128, 64, 32_621)],
}
#: Images with pixels of their own; the others repeat them, which does not change the step's time.
PIXELS = 2_000


class Step:
    """A network, its memory and its images; each call is one step on the next batch."""

    def __init__(
        self,
        device: str,
        name: str,
        height: int,
        width: int,
        batch: int,
        n: int,
        bn_group: int,
        precision: Literal["float32", "bf16"],
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.batch = batch
        self.model = (
            build_model(name, "none", bn_group=bn_group)
            .to(device)
            .to(memory_format=torch.channels_last)
        )
        self.network = Network(
            self.model, EngineConfig(precision=precision, compile="none"), torch.device(device)
        )
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=3.5e-4, weight_decay=5e-4)
        self.augment = Augment(ImageConfig(height, width), 0)
        pixels = torch.randint(256, (min(n, PIXELS), 3, height, width), dtype=torch.uint8)
        rows = torch.arange(n)
        self.store = PixelStore(pixels, rows % len(pixels), [""] * n, [])
        features, classes = harness.planted_features(n, self.model.features)
        self.memory = InstanceMemory(0.2, 0.05)
        self.memory.start(features.to(device))
        # A memory needs classes that are numbered without gaps.
        self.memory.begin_epoch(self.memory.bank, classes.unique(return_inverse=True)[1])
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> float:
        """Do a step and return its loss."""
        rows = torch.randint(len(self.store), (self.batch,), generator=self.generator)
        images = self.augment(self.store.read(rows).to(self.device)).contiguous(
            memory_format=torch.channels_last
        )
        rows = rows.to(self.device)
        features = self.network.train(images)
        loss = self.memory.loss(features, rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.memory.update(features.detach(), rows)
        return float(loss.detach())


def make(device: str, *settings: Any) -> tuple[Step]:
    return (Step(device, *settings),)


def step(state: Step) -> float:
    return state()


@pytest.mark.parametrize("bn_group", [16, 0])
def test_train_step(
    benchmark: BenchmarkFixture,
    size: tuple[str, int, int, int, int],
    bn_group: int,
    device: str,
    precision: str,
) -> None:
    name, height, width, batch, n = size
    benchmark.group = f"training step, {name}, {height} x {width}, batch {batch}"
    rounds = 20 if device == "cuda" else 3
    inputs = harness.Inputs(make, (*size, bn_group, precision))
    dim = 2_048 if name == "resnet50" else 512
    loss = harness.measure(
        benchmark,
        step,
        inputs,
        device,
        n=n,
        dim=dim,
        rounds=rounds,
        warmup=3 if device == "cuda" else 1,
    )
    benchmark.extra_info.update(batch=batch, bn_group=bn_group, precision=precision)
    seconds = harness.median_seconds(benchmark)
    if seconds:
        benchmark.extra_info["images_per_second"] = round(batch / seconds, 1)
    assert loss == loss, "the loss is not a number"
