"""The pseudo-label memory bank over several ranks against the bank of a single process."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from fastreid_al.distributed.world import SINGLE_PROCESS, World
from fastreid_al.memory import PseudoLabelMemoryBank, ShardedLabelBank
from tests.support.label_batches import random_batch
from tests.support.process_pool import Pool

N, CAPACITY = 41, 5


def compare(world: World, layout: str) -> None:
    whole = PseudoLabelMemoryBank(N, layout, CAPACITY)
    sharded = ShardedLabelBank(N, layout, CAPACITY, world)
    rows = torch.arange(N).flip(0)
    for seed in range(3):
        batch = random_batch(N, 12, 9, seed)[:3]
        whole.update(*batch)
        sharded.update(*batch)
        for got, expected in zip(sharded.lookup(rows), whole.lookup(rows), strict=True):
            assert torch.equal(got, expected)
        assert torch.equal(sharded.lookup_bits(rows), whole.lookup_bits(rows))
    assert sharded.dropped == whole.dropped
    own = torch.arange(N)[world.local_slice(N)]
    for got, expected in zip(sharded.local_lists(), whole.lookup(own), strict=True):
        assert torch.equal(got, expected)
    again = ShardedLabelBank(N, layout, CAPACITY, world)
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again.lookup_bits(rows), whole.lookup_bits(rows))
    assert again.dropped == whole.dropped


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("layout", ["bits", "sparse"])
def test_ranks_hold_what_a_single_process_holds(pool: Pool, size: int, layout: str) -> None:
    pool.run(compare, size, layout)


@pytest.mark.parametrize("layout", ["bits", "sparse"])
def test_a_single_process_reads_its_bank_without_a_copy(layout: str) -> None:
    bank = ShardedLabelBank(N, layout, CAPACITY)
    rows = torch.tensor([3, 7])
    state = bank.local.state_dict()
    for name, x in state.items():
        if x.ndim:
            table, places = SINGLE_PROCESS.replicate_rows(x, rows, N)
            assert table is x and places is rows, name
    with mock.patch.object(bank.local, "update") as update:
        batch = random_batch(N, 4, 3)[:3]
        bank.update(*batch)
    assert all(a is b for a, b in zip(update.call_args.args, batch, strict=True))
