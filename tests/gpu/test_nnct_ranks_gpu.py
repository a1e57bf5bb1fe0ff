"""NNCT's memories in parts on CUDA: ranks are threads of one process, for a GPU alone has no two of
them.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.config import BatchConfig, NNCTConfig
from fastreid_al.distributed.world import SINGLE_PROCESS, World
from fastreid_al.methods import NNCT
from tests.support.features import clustered_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
N, CLUSTERS, EPOCHS, SIZE = 901, 45, 10, 32


class Thread(World):
    """A rank that is a thread: what all give lies in a list that all read."""

    def __init__(self, rank: int, given: list[Any], barrier: threading.Barrier) -> None:
        super().__init__()
        self.rank = rank
        self.size = len(given)
        self._given = given
        self._barrier = barrier

    def all_gather_objects(self, own: Any) -> list[Any]:
        self._given[self.rank] = own
        self._barrier.wait(60)
        gathered = list(self._given)
        self._barrier.wait(60)
        return gathered

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        return torch.stack(self.all_gather_objects(x)).sum(0, dtype=x.dtype)

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        return torch.cat(self.all_gather_objects(rows))

    all_gather = all_gather_rows

    def all_gather_counts(self, count: int) -> list[int]:
        return self.all_gather_objects(count)


def iterations(world: World, k: int, layout: str, dtype: torch.dtype) -> list[Any]:
    """Losses, gradients, this rank's rows of the memory and labels, and what the log says, after
    some iterations.
    """
    settings = NNCTConfig(single_label=1)
    method = NNCT(N, k, settings, BatchConfig(SIZE), EPOCHS, 0, None, world, layout, capacity=12)
    first = torch.from_numpy(clustered_features(N, CLUSTERS, dim=64, spread=0.75))
    random = np.random.default_rng(1)
    got: list[Any] = []
    for step in range(N // SIZE + 12):
        method.label_images(0 if step < N // SIZE else EPOCHS - 1, first.clone)
        rows = (
            torch.from_numpy(random.choice(N, SIZE))
            if step >= N // SIZE
            else torch.arange(step * SIZE, (step + 1) * SIZE)
        )
        noise = torch.from_numpy(random.normal(scale=0.05, size=(SIZE, 64)))
        own = slice(world.rank * SIZE // world.size, (world.rank + 1) * SIZE // world.size)
        x = (3 * (first[rows] + noise))[own].to(DEVICE, dtype).requires_grad_()
        some = rows[own].to(DEVICE)
        loss = method.loss(x, some)
        loss.backward()
        method.update(x.detach(), some)
        assert x.grad is not None
        got.append(
            (
                world.all_reduce_sum(loss.detach()) / world.size,
                world.all_gather(x.grad / world.size),
            )
        )
    assert method.memory.bank.device.type == torch.device(DEVICE).type
    return [
        got,
        world.all_gather_rows(method.memory.bank),
        method.label_memory.local_lists(),
        method.label_metrics(torch.arange(N) % CLUSTERS),
    ]


@pytest.mark.parametrize("layout", ["bits", "sparse"])
@pytest.mark.parametrize(
    ("size", "k", "dtype"), [(2, 2, torch.float32), (4, 1, torch.float32), (4, 1, torch.float64)]
)
def test_ranks_follow_one_process(size: int, k: int, layout: str, dtype: torch.dtype) -> None:
    given, barrier = [None] * size, threading.Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        waiting = [
            pool.submit(iterations, Thread(rank, given, barrier), k, layout, dtype)
            for rank in range(size)
        ]
        shared = [some.result() for some in waiting]
    steps, bank, (indptr, indices), facts = iterations(SINGLE_PROCESS, k, layout, dtype)
    tiny = 1e-12 if dtype == torch.float64 else 1e-4
    for got, memory, _, said in shared:
        for (loss, gradient), (expected, exact) in zip(got, steps, strict=True):
            torch.testing.assert_close(loss, expected, rtol=tiny, atol=tiny)
            torch.testing.assert_close(gradient, exact, rtol=tiny, atol=tiny)
        assert torch.equal(memory, bank)
        assert said == facts
    assert torch.equal(torch.cat([lists[1] for _, _, lists, _ in shared]), indices)
    assert torch.equal(torch.cat([lists[0].diff() for _, _, lists, _ in shared]), indptr.diff())
    assert int(indptr.diff().max()) > 2
