"""The cluster memory against loop-by-loop references."""

from __future__ import annotations

import numpy as np
import torch
from reid_kernels import class_means, hardest_rows

from fastreid_al.memory import ClusterMemory
from tests.support.features import unit
from tests.support.references import reference_update


def rows_of(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(unit(np.random.default_rng(seed).normal(size=(n, dim))))


CLASSES = torch.tensor([0, 2, 1, -1, 2, 0, 1, 2, -1, 3])


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
    assert torch.allclose(memory.bank, means)
    expected = reference_update(means.numpy(), batch.numpy(), CLASSES[rows].numpy(), 0.1)
    memory.update(batch, rows)
    assert np.allclose(memory.bank.numpy(), expected, atol=1e-12)


def test_hardest_update_takes_the_least_similar_image_of_each_class() -> None:
    centroids = torch.eye(3).double()
    features = torch.tensor(
        [[1.0, 0, 0], [0.6, 0.8, 0], [0, 0.9, 0], [0, 0.2, 0], [0, 0.2, 1]]
    ).double()
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


def test_state_restores_the_memory() -> None:
    memory = ClusterMemory(0.1, 0.05)
    features, rows = rows_of(10), torch.tensor([0, 4])
    memory.start(features)
    memory.begin_epoch(features, CLASSES)
    memory.update(rows_of(2, seed=5), rows)
    other = type(memory)(memory.momentum, memory.temperature)
    other.load_state_dict(memory.state_dict())
    batch = rows_of(2, seed=6)
    assert torch.equal(other.loss(batch, rows), memory.loss(batch, rows))
