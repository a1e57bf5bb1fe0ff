"""Feature memories on CUDA equal those of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_al.memory import ClusterMemory, FeatureMemory, InstanceMemory
from tests.support.cuda_features import double
from tests.support.features import unit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


MEMORIES = [
    pytest.param(lambda: InstanceMemory(0.2, 0.05), id="instance"),
    pytest.param(lambda: ClusterMemory(0.1, 0.05), id="cluster"),
    pytest.param(lambda: ClusterMemory(0.1, 0.05, hardest=True), id="cluster, hardest"),
]


@pytest.mark.parametrize("build", MEMORIES)
def test_memory_and_loss_equal_those_of_the_cpu(build) -> None:
    features = double(300, 20)
    # The classes come from the CPU, as those of the clustering do; some images have none.
    classes = torch.arange(300) % 25 - 1
    sides: list[tuple[FeatureMemory, torch.device]] = [
        (build(), torch.device("cpu")),
        (build(), torch.device(DEVICE)),
    ]
    for memory, device in sides:
        memory.start(features.to(device))
        memory.begin_epoch(features.to(device), classes)
    random = np.random.default_rng(1)
    for _ in range(5):
        # With repeated images, and only images that have a class.
        rows = torch.from_numpy(random.choice(np.flatnonzero(classes.numpy() >= 0)[:40], 32))
        batch = torch.from_numpy(unit(random.normal(size=(32, features.shape[1]))))
        losses, gradients = [], []
        for memory, device in sides:
            x = batch.to(device).requires_grad_()
            loss = memory.loss(x, rows.to(device))
            loss.backward()
            memory.update(x.detach(), rows.to(device))
            losses.append(loss.item())
            gradients.append(x.grad.cpu())
            assert memory.bank.device.type == device.type
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9)
        torch.testing.assert_close(sides[0][0].bank, sides[1][0].bank.cpu(), rtol=0, atol=1e-9)
