"""What ranks tell each other, on two, three and four processes."""

from __future__ import annotations

import time

import pytest
import torch
from ranked import Pool
from torch import Tensor

from fastreid_al.ranks import ALONE, Ranks, Sharded

SIZES = [2, 3, 4]


def rows_of(n: int, dtype: torch.dtype) -> Tensor:
    return (torch.arange(3 * n).view(n, 3) % 7).to(dtype)


def moved(ranks: Ranks, n: int, dtype: torch.dtype) -> None:
    whole = rows_of(n, dtype)
    own = whole[ranks.own(n)]
    assert torch.equal(ranks.gather(own), whole)
    for where, rows in ranks.circulate(own, n):
        assert torch.equal(rows, whole[where])
    if n:
        wanted = torch.randint(n, (5 * ranks.rank,), generator=torch.Generator().manual_seed(ranks.rank))
        assert torch.equal(ranks.fetch(own, wanted, n), whole[wanted])
        assert (ranks.owner(torch.arange(n), n)[ranks.own(n)] == ranks.rank).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_rows_reach_every_rank_that_asks_for_them(pool: Pool, size: int, dtype: torch.dtype) -> None:
    for n in (0, 1, 5, 12):
        pool.run(moved, size, n, dtype)


def reduced(ranks: Ranks) -> tuple[list[float], list[bool], list[int]]:
    x = torch.tensor([1.0, float(ranks.rank)])
    sums = [float(f(x)[1]) for f in (ranks.total, ranks.greatest, ranks.least)]
    assert float(x[1]) == ranks.rank
    return sums, [ranks.any(False), ranks.any(ranks.rank == 1)], ranks.counts(10 + ranks.rank)


@pytest.mark.parametrize("size", SIZES)
def test_reductions_give_all_ranks_the_same_and_leave_their_argument(pool: Pool, size: int) -> None:
    want = [sum(range(size)), size - 1, 0], [False, True], [10 + rank for rank in range(size)]
    assert pool.run(reduced, size) == [want] * size


def stacked(ranks: Ranks) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.bool):
        own = torch.full((2, 3), ranks.rank).to(dtype)
        found = ranks.stack(own)
        assert found.dtype == dtype and torch.equal(
            found, torch.arange(ranks.size).to(dtype)[:, None, None].expand(-1, 2, 3)
        )
    assert ranks.stack(torch.zeros(0)).shape == (ranks.size, 0)


@pytest.mark.parametrize("size", SIZES)
def test_tensors_of_one_shape_are_stacked_in_rank_order(pool: Pool, size: int) -> None:
    pool.run(stacked, size)


def exchanged(ranks: Ranks) -> list[int]:
    counts = [ranks.rank + other for other in range(ranks.size)]
    came, sizes = ranks.exchange(torch.full((sum(counts),), ranks.rank), counts)
    assert sizes == counts
    return came.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_an_exchange_of_different_counts_arrives_in_rank_order(pool: Pool, size: int) -> None:
    for rank, came in enumerate(pool.run(exchanged, size)):
        assert came == [other for other in range(size) for _ in range(rank + other)]


def shared(ranks: Ranks) -> tuple[object, float, str]:
    began = time.process_time()

    def slow() -> dict[str, int]:
        time.sleep(1.5)
        return {"asked": ranks.rank}

    made = ranks.share(slow)
    waited = time.process_time() - began

    def fails() -> None:
        raise KeyError("stopped")

    try:
        ranks.share(fails)
    except KeyError as error:
        return made, waited, str(error)
    return made, waited, "nothing was raised"


def test_what_the_first_rank_makes_or_raises_reaches_all_and_waiting_takes_no_time_of_the_processor(pool: Pool) -> None:
    for made, waited, raised in pool.run(shared, 3):
        assert (made, raised) == ({"asked": 0}, "'stopped'")
        assert waited < 0.5


def test_rows_are_cut_as_torch_chunk_cuts_them(pool: Pool) -> None:
    for size, cuts in zip(SIZES, (pool.run(cut, size) for size in SIZES), strict=True):
        for n in range(1, 14):
            chunks = [len(c) for c in torch.arange(n).chunk(size)]
            assert [stop - start for start, stop in (c[n] for c in cuts)] == chunks + [0] * (size - len(chunks))


def cut(ranks: Ranks) -> list[tuple[int, int]]:
    return [(ranks.own(n).start, ranks.own(n).stop) for n in range(14)]


def test_a_process_alone_sends_nothing() -> None:
    x = torch.arange(6).view(3, 2)
    assert ALONE.gather(x) is x and ALONE.total(x) is x and ALONE.shard(x, 3) is x
    assert ALONE.exchange(x, [3]) == (x, [3]) and ALONE.share(lambda: 5) == 5
    assert torch.equal(ALONE.fetch(x, torch.tensor([2, 0]), 3), x[[2, 0]])
    assert torch.equal(ALONE.local(Sharded(x, 3)), x) and ALONE.is_first
