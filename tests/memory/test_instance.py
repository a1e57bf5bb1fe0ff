"""The instance memory and Eq. 1 against loop-by-loop references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastreid_al.memory import InstanceMemory
from tests.support.features import unit
from tests.support.references import reference_instance_loss, reference_update


def rows_of(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(unit(np.random.default_rng(seed).normal(size=(n, dim))))


CLASSES = torch.tensor([0, 2, 1, -1, 2, 0, 1, 2, -1, 3])


def test_instance_loss_equals_the_reference() -> None:
    bank, features, rows = rows_of(10), rows_of(6, seed=1), torch.tensor([0, 4, 9, 2, 5, 4])
    memory = InstanceMemory(momentum=0.2, temperature=0.05)
    memory.start(bank)
    memory.begin_epoch(bank, CLASSES)
    expected = reference_instance_loss(
        features.numpy(), bank.numpy(), CLASSES.numpy(), CLASSES[rows].numpy(), 0.05
    )
    assert memory.loss(features, rows).item() == pytest.approx(expected, abs=1e-10)


def test_no_gradient_flows_into_the_memory() -> None:
    features = rows_of(3, seed=1).requires_grad_()
    memory = InstanceMemory(0.2, 0.05)
    memory.start(rows_of(10))
    memory.begin_epoch(memory.bank, CLASSES)
    memory.loss(features, torch.tensor([0, 1, 2])).backward()
    assert features.grad is not None and bool(features.grad.any())
    assert not memory.bank.requires_grad


@pytest.mark.parametrize("rows", [[3], [4, 4, 4, 4], [1, 0, 1, 7, 0, 1]])
def test_instance_memory_applies_the_batch_in_order(rows: list[int]) -> None:
    bank, features = rows_of(8), rows_of(len(rows), seed=1)
    memory = InstanceMemory(0.2, 0.05)
    memory.start(bank)
    memory.update(features, torch.tensor(rows))
    assert np.allclose(
        memory.bank.numpy(),
        reference_update(bank.numpy().copy(), features.numpy(), np.array(rows), 0.2),
        atol=1e-12,
    )


def test_state_restores_the_memory() -> None:
    memory = InstanceMemory(0.2, 0.05)
    features, rows = rows_of(10), torch.tensor([0, 4])
    memory.start(features)
    memory.begin_epoch(features, CLASSES)
    memory.update(rows_of(2, seed=5), rows)
    other = type(memory)(memory.momentum, memory.temperature)
    other.load_state_dict(memory.state_dict())
    batch = rows_of(2, seed=6)
    assert torch.equal(other.loss(batch, rows), memory.loss(batch, rows))
