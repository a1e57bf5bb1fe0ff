"""Feature memories and Eq. 1 against loop-by-loop references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import unit
from references import reference_instance_loss, reference_update

from fastreid_al.memory import ClusterMemory, InstanceMemory, class_means, contrast_loss, update_rows_
from fastreid_al.memory.features import hardest_rows


def rows_of(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(unit(np.random.default_rng(seed).normal(size=(n, dim))))


CLASSES = torch.tensor([0, 2, 1, -1, 2, 0, 1, 2, -1, 3])


def test_instance_loss_equals_the_reference() -> None:
    bank, features, rows = rows_of(10), rows_of(6, seed=1), torch.tensor([0, 4, 9, 2, 5, 4])
    memory = InstanceMemory(momentum=0.2, temperature=0.05)
    memory.start(bank)
    memory.begin_epoch(bank, CLASSES)
    expected = reference_instance_loss(features.numpy(), bank.numpy(), CLASSES.numpy(), CLASSES[rows].numpy(), 0.05)
    assert memory.loss(features, rows).item() == pytest.approx(expected, abs=1e-10)


def test_loss_has_the_gradient_of_eq_1_and_none_for_the_memory() -> None:
    centroids, targets = rows_of(4, seed=2), torch.tensor([0, 3, 1])
    features = rows_of(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: contrast_loss(f, centroids, targets, 0.05), features)
    memory = InstanceMemory(0.2, 0.05)
    memory.start(rows_of(10))
    memory.begin_epoch(memory.bank, CLASSES)
    memory.loss(features, torch.tensor([0, 1, 2])).backward()
    assert not memory.bank.requires_grad


@pytest.mark.parametrize("rows", [[3], [0, 5, 2], [4, 4, 4, 4], [1, 0, 1, 7, 0, 1], []])
@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.9, 1.0])
def test_update_applies_the_batch_in_order(rows: list[int], momentum: float) -> None:
    bank, features = rows_of(8), rows_of(len(rows), seed=1) if rows else torch.zeros(0, 8).double()
    expected = reference_update(bank.numpy().copy(), features.numpy(), np.array(rows, dtype=np.int64), momentum)
    update_rows_(bank, features, torch.tensor(rows, dtype=torch.int64), momentum)
    assert np.allclose(bank.numpy(), expected, atol=1e-12)


def test_class_means_are_means_of_members() -> None:
    bank = rows_of(10)
    means = class_means(bank, CLASSES, 4)
    for c in range(4):
        assert torch.allclose(means[c], bank[c == CLASSES].mean(0))


def test_cluster_memory_starts_from_normalised_means_and_moves_in_order() -> None:
    features, batch, rows = rows_of(10), rows_of(5, seed=1), torch.tensor([0, 5, 9, 0, 2])
    memory = ClusterMemory(momentum=0.1, temperature=0.05)
    memory.start(features)
    memory.begin_epoch(features, CLASSES)
    means = torch.nn.functional.normalize(class_means(features, CLASSES, 4))
    assert torch.allclose(memory.centroids(), means)
    expected = reference_update(means.numpy(), batch.numpy(), CLASSES[rows].numpy(), 0.1)
    memory.update(batch, rows)
    assert np.allclose(memory.bank.numpy(), expected, atol=1e-12)


def test_hardest_update_takes_the_least_similar_image_of_each_class() -> None:
    centroids = torch.eye(3).double()
    features = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0.9, 0], [0, 0.2, 0], [0, 0.2, 1]]).double()
    targets = torch.tensor([0, 0, 1, 1, 1])
    assert sorted(hardest_rows(features, centroids, targets).tolist()) == [1, 3]
    memory = ClusterMemory(0.1, 0.05, hardest=True)
    memory.begin_epoch(centroids, torch.arange(3))
    before = memory.bank.clone()
    memory.classes = torch.tensor([0, 0, 1, 1, 1])
    memory.update(features, torch.arange(5))
    hard = [1, 3]
    expected = reference_update(before.numpy(), features[hard].numpy(), np.array([0, 1]), 0.1)
    assert np.allclose(memory.bank.numpy(), expected, atol=1e-12)
    assert torch.equal(memory.bank[2], before[2])


@pytest.mark.parametrize("memory", [InstanceMemory(0.2, 0.05), ClusterMemory(0.1, 0.05)])
def test_state_restores_the_memory(memory: InstanceMemory | ClusterMemory) -> None:
    features, rows = rows_of(10), torch.tensor([0, 4])
    memory.start(features)
    memory.begin_epoch(features, CLASSES)
    memory.update(rows_of(2, seed=5), rows)
    other = type(memory)(memory.momentum, memory.temperature)
    other.load_state_dict(memory.state_dict())
    batch = rows_of(2, seed=6)
    assert torch.equal(other.loss(batch, rows), memory.loss(batch, rows))
