"""The collectives between ranks, on two, three and four processes."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastreid_al.distributed import world as module
from fastreid_al.distributed.world import SINGLE_PROCESS, Sharded, World
from tests.support.process_pool import Pool

SIZES = [2, 3, 4]


def rows_of(n: int, dtype: torch.dtype) -> Tensor:
    return (torch.arange(3 * n).view(n, 3) % 7).to(dtype)


def moved(world: World, n: int, dtype: torch.dtype) -> None:
    whole = rows_of(n, dtype)
    own = whole[world.local_slice(n)]
    assert torch.equal(world.all_gather_rows(own), whole)
    for where, rows in world.broadcast_each(own, n):
        assert torch.equal(rows, whole[where])
    if n:
        expected = torch.randint(
            n, (5 * world.rank,), generator=torch.Generator().manual_seed(world.rank)
        )
        assert torch.equal(world.fetch_rows(own, expected, n), whole[expected])
        assert (world.owner_ranks(torch.arange(n), n)[world.local_slice(n)] == world.rank).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
)
def test_rows_reach_every_rank_that_asks_for_them(
    pool: Pool, size: int, dtype: torch.dtype
) -> None:
    for n in (0, 1, 5, 12):
        pool.run(moved, size, n, dtype)


def without_warning(world: World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved(world, 5, torch.float32)
        reduced(world)


def test_no_collective_warns(pool: Pool) -> None:
    pool.run(without_warning, 2)


def reduced(world: World) -> tuple[list[float], list[bool], list[int]]:
    x = torch.tensor([1.0, float(world.rank)])
    sums = [
        float(f(x)[1]) for f in (world.all_reduce_sum, world.all_reduce_max, world.all_reduce_min)
    ]
    assert float(x[1]) == world.rank
    return (
        sums,
        [world.any_true(False), world.any_true(world.rank == 1)],
        world.all_gather_counts(10 + world.rank),
    )


@pytest.mark.parametrize("size", SIZES)
def test_reductions_are_equal_on_all_ranks_and_keep_their_argument(pool: Pool, size: int) -> None:
    want = [sum(range(size)), size - 1, 0], [False, True], [10 + rank for rank in range(size)]
    assert pool.run(reduced, size) == [want] * size


def reduced_on_the_host(world: World) -> float:
    # A group for devices only, as NCCL's is.
    devices = dist.new_group(
        list(range(world.size)), backend="cuda:gloo", use_local_synchronization=True
    )
    return float(World(devices, None, world.group).all_reduce_sum(torch.tensor(world.rank + 1.0)))


def test_host_tensors_are_summed_over_the_control_group(pool: Pool) -> None:
    assert pool.run(reduced_on_the_host, 2) == [3.0, 3.0]


def exchanged(world: World) -> list[int]:
    counts = [world.rank + other for other in range(world.size)]
    came, sizes = world.all_to_all_rows(torch.full((sum(counts),), world.rank), counts)
    assert sizes == counts
    again, _ = world.all_to_all_rows(torch.full((sum(counts),), world.rank), counts, sizes)
    assert torch.equal(again, came)
    return came.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_all_to_all_rows_of_different_counts_arrive_in_rank_order(pool: Pool, size: int) -> None:
    for rank, came in enumerate(pool.run(exchanged, size)):
        assert came == [other for other in range(size) for _ in range(rank + other)]


def gathered(world: World, dtype: torch.dtype) -> None:
    whole = rows_of(2 * world.size, dtype)
    own = whole[world.local_slice(len(whole))]
    assert torch.equal(world.all_gather(own), whole)
    assert torch.equal(world.all_gather(own[:, 0]), whole[:, 0])
    first = world.gather_rows_to_first(rows_of(7, dtype)[world.local_slice(7)])
    assert torch.equal(first, rows_of(7, dtype) if world.is_first else whole[:0])
    if dtype in (torch.float32, torch.int64):
        assert torch.equal(
            world.reduce_scatter(whole * (world.rank + 1)),
            own * (world.size * (world.size + 1) // 2),
        )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_gathers_and_reduce_scatter_match_the_whole_tensor(
    pool: Pool, size: int, dtype: torch.dtype
) -> None:
    pool.run(gathered, size, dtype)


def rearranged(world: World, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = torch.randint(world.size, (n,), generator=generator)
    after = torch.randint(-1, world.size, (n,), generator=generator)
    if seed == 1:
        after = torch.full((n,), world.size - 1)
    whole = rows_of(n, torch.float32)
    parts = list(world.redistribute_rows(whole[before == world.rank], before, after))
    assert torch.equal(torch.cat([rows for _, rows in parts], 1), whole[after == world.rank])
    assert [i for columns, _ in parts for i in range(columns.start, columns.stop)] == [0, 1, 2]


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_redistributed_from_any_ranks_to_any_others(pool: Pool, size: int) -> None:
    for n in (0, 3, 14):
        for seed in range(3):
            pool.run(rearranged, size, n, seed)


def narrow(world: World) -> None:
    kept, module._MOVED = module._MOVED, 10
    try:
        rearranged(world, 14, 0)
        home = world.owner_ranks(torch.arange(14), 14)
        assert (
            len(
                list(
                    world.redistribute_rows(
                        rows_of(14, torch.float32)[world.local_slice(14)], home, home
                    )
                )
            )
            == 3
        )
    finally:
        module._MOVED = kept


def test_rows_are_redistributed_some_columns_at_a_time(pool: Pool) -> None:
    pool.run(narrow, 2)


def checked(world: World) -> tuple[int, str]:
    def fails() -> int:
        if world.rank:
            raise ValueError(f"rank {world.rank} is wrong")
        return 5

    try:
        world.raise_together(fails)
    except ValueError as error:
        return world.raise_together(lambda: 5), str(error)
    return 0, "nothing was raised"


@pytest.mark.parametrize("size", SIZES)
def test_an_error_on_any_rank_is_raised_on_all(pool: Pool, size: int) -> None:
    assert pool.run(checked, size) == [(5, "rank 1 is wrong")] * size


def shared(world: World) -> tuple[object, float, str]:
    began = time.process_time()

    def slow() -> dict[str, int]:
        time.sleep(1.5)
        return {"asked": world.rank}

    made = world.compute_on_first(slow)
    waited = time.process_time() - began

    def fails() -> None:
        raise KeyError("stopped")

    try:
        world.compute_on_first(fails)
    except KeyError as error:
        return made, waited, str(error)
    return made, waited, "nothing was raised"


def test_a_result_or_error_of_the_first_rank_reaches_idle_ranks(
    pool: Pool,
) -> None:
    for made, waited, raised in pool.run(shared, 3):
        assert (made, raised) == ({"asked": 0}, "'stopped'")
        assert waited < 0.5


def test_rows_are_sharded_as_torch_chunk_splits_them(pool: Pool) -> None:
    for size, cuts in zip(SIZES, (pool.run(cut, size) for size in SIZES), strict=True):
        for n in range(1, 14):
            chunks = [len(c) for c in torch.arange(n).chunk(size)]
            assert [stop - start for start, stop in (c[n] for c in cuts)] == chunks + [0] * (
                size - len(chunks)
            )


def cut(world: World) -> list[tuple[int, int]]:
    return [(world.local_slice(n).start, world.local_slice(n).stop) for n in range(14)]


def test_a_single_process_gets_its_own_tensors_back() -> None:
    x = torch.arange(6).view(3, 2)
    assert (
        SINGLE_PROCESS.all_gather_rows(x) is x
        and SINGLE_PROCESS.all_reduce_sum(x) is x
        and SINGLE_PROCESS.shard(x, 3) is x
    )
    assert (
        SINGLE_PROCESS.all_gather(x) is x
        and SINGLE_PROCESS.gather_rows_to_first(x) is x
        and SINGLE_PROCESS.reduce_scatter(x) is x
    )
    (columns, rows), *_ = SINGLE_PROCESS.redistribute_rows(x, torch.zeros(3), torch.zeros(3))
    assert (columns, rows is x) == (slice(0, 2), True)
    assert torch.equal(
        next(SINGLE_PROCESS.redistribute_rows(x, torch.zeros(3), torch.tensor([0, -1, 0])))[1],
        x[[0, 2]],
    )
    assert (
        SINGLE_PROCESS.all_to_all_rows(x, [3]) == (x, [3])
        and SINGLE_PROCESS.compute_on_first(lambda: 5) == 5
    )
    assert torch.equal(SINGLE_PROCESS.fetch_rows(x, torch.tensor([2, 0]), 3), x[[2, 0]])
    assert torch.equal(SINGLE_PROCESS.local_rows(Sharded(x, 3)), x) and SINGLE_PROCESS.is_first
