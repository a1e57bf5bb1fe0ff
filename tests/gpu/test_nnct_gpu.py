"""NNCT on CUDA, in float32: against the CPU, and without waiting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_al import native
from fastreid_al.config import BatchConfig, NNCTConfig
from fastreid_al.methods.nnct import NNCT
from tests.support.features import clustered_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
#: Images, clusters that touch each other, epochs.
N, CLUSTERS, EPOCHS = 900, 45, 10


def features() -> Tensor:
    return torch.from_numpy(clustered_features(N, CLUSTERS, dim=64, spread=0.75)).float()


def started(
    neighbours_k: int, device: str, layout: str = "auto", dtype: torch.dtype = torch.float32
) -> NNCT:
    """A method whose memory holds every image, in the epochs of several labels."""
    batch = BatchConfig(32)
    method = NNCT(N, neighbours_k, NNCTConfig(), batch, EPOCHS, 0, layout=layout, capacity=12)
    embeddings = features().to(device, dtype)
    method.label_images(0, embeddings.clone)
    method.loss(embeddings[:1], torch.zeros(1, dtype=torch.int64, device=device))
    method.update(embeddings, torch.arange(N, device=device))
    method.label_images(EPOCHS - 1, embeddings.clone)
    return method


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Rows, and embeddings of any length near the images' first ones."""
    random, first = np.random.default_rng(1), features()
    got = []
    for _ in range(count):
        rows = torch.from_numpy(random.choice(N, 32, replace=False))
        noise = torch.from_numpy(random.normal(scale=0.05, size=(32, first.shape[1]))).float()
        got.append((3 * (first[rows] + noise), rows))
    return got


def lists(labels: tuple[Tensor, Tensor]) -> list[list[int]]:
    indptr, indices = labels
    return [sorted(some.tolist()) for some in indices.split(indptr.diff().tolist())]


def test_a_label_of_its_own_gives_the_cpus_loss_and_gradient() -> None:
    here, there = started(1, "cpu"), started(1, DEVICE)
    for method in (here, there):
        method.label_images(0, features)
    x, rows = batches(1)[0]
    compare_losses(here, there, x, rows)


def compare_losses(here: NNCT, there: NNCT, x: Tensor, rows: Tensor) -> None:
    losses, gradients = [], []
    for method in (here, there):
        leaf = x.to(method.memory.bank).detach().requires_grad_()
        loss = method.loss(leaf, rows.to(leaf.device))
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(leaf.grad.double().cpu())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", ["bits", "sparse"])
@pytest.mark.parametrize("neighbours_k", [0, 1, 3])
def test_iterations_equal_the_cpus(neighbours_k: int, layout: str) -> None:
    here, there = started(neighbours_k, "cpu", layout), started(neighbours_k, DEVICE, layout)
    sizes = []
    for x, rows in batches(12):
        labels = lists(here.predict(rows))
        assert lists(there.predict(rows.to(DEVICE))) == labels
        sizes += map(len, labels)
        unit = F.normalize(x)
        assert torch.equal(
            there.neighbours(unit.to(DEVICE), rows.to(DEVICE)).cpu(), here.neighbours(unit, rows)
        )
        compare_losses(here, there, x, rows)
        for method in (here, there):
            method.update(x.to(method.memory.bank), rows.to(method.memory.bank.device))
        torch.testing.assert_close(there.memory.bank.cpu(), here.memory.bank, rtol=0, atol=1e-6)
    assert min(sizes) < 10 < max(sizes)
    for name, expected in here.label_memory.state_dict().items():
        assert torch.equal(there.label_memory.state_dict()[name].cpu(), expected)
    assert [x.tolist() for x in there.label_memory.local_lists()] == [
        x.tolist() for x in here.label_memory.local_lists()
    ]
    assert there.label_metrics(torch.arange(N) % CLUSTERS) == here.label_metrics(
        torch.arange(N) % CLUSTERS
    )


def test_a_state_moves_between_devices() -> None:
    first, other = started(1, DEVICE), started(1, "cpu")
    (x, rows), (y, next_rows) = batches(2)
    compare_losses(other, first, x, rows)
    for method in (first, other):
        method.update(x.to(method.memory.bank), rows.to(method.memory.bank.device))
    resumed = NNCT(N, 1, NNCTConfig(), BatchConfig(32), EPOCHS, 0)
    resumed.load_state_dict(first.state_dict())
    assert resumed.memory.bank.device.type == torch.device(DEVICE).type
    compare_losses(other, resumed, y, next_rows)


def test_the_host_waits_for_labels_and_neighbours_alone() -> None:
    if native.cuda_extension() is None:
        pytest.skip("the extension has no CUDA part")
    method = started(2, DEVICE)
    x, rows = batches(1)[0]
    x, rows = x.to(DEVICE).requires_grad_(), rows.to(DEVICE)

    def iterate() -> None:
        method.loss(x, rows).backward()
        method.update(x.detach(), rows)

    # Kernels are compiled and loaded at their first launch.
    iterate()
    labels, near = method.predict(rows), method.neighbours(F.normalize(x.detach()), rows)
    with mock.patch.multiple(method, predict=lambda _: labels, neighbours=lambda *_: near):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            iterate()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_loss_of_features_that_are_not_finite_is_nan() -> None:
    method = started(1, DEVICE)
    x, rows = batches(1)[0]
    x[3, 5] = torch.nan
    assert method.loss(x.to(DEVICE), rows.to(DEVICE)).isnan()


def test_training_runs_and_resumes(tmp_path: Path) -> None:
    for package in ("rich", "matplotlib", "sqlalchemy", "platformdirs"):
        pytest.importorskip(package)
    from fastreid_al.runs import run_training
    from tests.support.tiny import tiny_config

    config = replace(
        tiny_config(tmp_path),
        method="nnct",
        device=DEVICE,
        nnct=NNCTConfig(single_label=1),
        epochs=2,
    )
    run_training(config)
    after = run_training(replace(config, epochs=3), resume=True)
    assert [r["epoch"] for r in after.history] == [0, 1, 2, 3]
    assert all(np.isfinite(r["loss"]) for r in after.history[1:])
