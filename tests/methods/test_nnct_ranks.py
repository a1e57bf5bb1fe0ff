"""NNCT on several ranks in lock-step with one process, and with the loops of its reference."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.config import BatchConfig, NNCTConfig
from fastreid_al.distributed.world import SINGLE_PROCESS, Sharded, World
from fastreid_al.errors import TrainingError
from fastreid_al.memory import PseudoLabelMemoryBank, ShardedLabelBank
from fastreid_al.methods import NNCT
from fastreid_al.methods.adaptation import Source, SourceClassifier
from tests.support import references_nnct as reference
from tests.support.features import clustered_features, unit
from tests.support.process_pool import Pool

EPOCHS, DIM = 4, 8


def nnct(
    world: World,
    n: int,
    k: int,
    size: int,
    source: SourceClassifier | None = None,
    layout: str = "auto",
    capacity: int = 64,
    **settings: Any,
) -> NNCT:
    chosen = NNCTConfig(**{"single_label": 1, **settings})
    batch = BatchConfig(size=size)
    return NNCT(n, k, chosen, batch, EPOCHS, 0, source, world, layout, capacity)


def begin(epoch: int, *methods: NNCT) -> None:
    for method in methods:
        method.label_images(epoch, lambda: pytest.fail("no pass over the images is needed"))


def part(world: World, batch: Tensor, halves: int = 1) -> Tensor:
    """This rank's part of a batch, of its target's and its source's half."""
    return torch.cat([half.chunk(world.size)[world.rank] for half in batch.chunk(halves)])


def iterate(
    method: NNCT, embeddings: Tensor, rows: Tensor, halves: int = 1
) -> tuple[Tensor, Tensor]:
    """One iteration as the loop makes it; the loss and the gradient of the whole batch."""
    world = method.world
    own, some = part(world, embeddings, halves).requires_grad_(), part(world, rows, halves)
    loss = method.loss(own, some)
    loss.backward()
    method.update(own.detach(), some)
    assert own.grad is not None and loss.ndim == 0
    gradient = world.all_gather(own.grad / world.size)
    if halves == 2:
        gradient = torch.cat(
            [x.chunk(2)[half] for half in (0, 1) for x in gradient.chunk(world.size)]
        )
    return world.all_reduce_sum(loss.detach()) / world.size, gradient


def batches(
    n: int, size: int, epoch: int, repeat: bool, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Embeddings and rows; of `repeat` the first rows come again on the last ranks."""
    random = np.random.default_rng(epoch)
    images, got = clustered_features(n, min(n, 6), dim=DIM, spread=0.6, seed=1), []
    for _ in range(2):
        rows = random.permutation(n)[:size]
        if repeat:
            rows[-2:] = rows[0], rows[size // 2]
        moved = images[rows] + 0.3 * random.normal(size=(size, DIM)) / np.sqrt(DIM)
        embeddings = moved * random.uniform(0.3, 4, size=(size, 1))
        got.append((torch.from_numpy(embeddings).to(dtype), torch.from_numpy(rows)))
    return got


def lists(labels: tuple[Tensor, Tensor]) -> list[list[int]]:
    indptr, indices = labels
    return [indices[start:end].tolist() for start, end in pairwise(indptr.tolist())]


def check_state(shared: NNCT, alone: NNCT) -> None:
    """Memories, labels and what the log says, of the whole and of a part."""
    own = shared.world.local_slice(shared.n)
    assert torch.equal(shared.memory.bank, alone.memory.bank[own])
    assert lists(shared.label_memory.local_lists()) == lists(alone.label_memory.local_lists())[own]
    images = torch.arange(shared.n).flip(0)
    for got, expected in zip(
        shared.label_memory.lookup(images), alone.label_memory.lookup(images), strict=True
    ):
        assert torch.equal(got, expected)
    assert torch.equal(
        shared.label_memory.lookup_bits(images), alone.label_memory.lookup_bits(images)
    )
    for identities in (None, torch.arange(shared.n) % 5):
        assert shared.label_metrics(identities) == alone.label_metrics(identities)


def follow(
    world: World,
    n: int,
    k: int,
    size: int,
    repeat: bool,
    settings: dict[str, Any],
    dtype: torch.dtype,
) -> tuple[int, int]:
    """Steps of one label and of several; the most labels of an image, and how many were dropped."""
    shared, alone = (nnct(some, n, k, size, **settings) for some in (world, SINGLE_PROCESS))
    if world.size > 1:
        check_state(shared, alone) if alone.memory.bank.numel() else None
    for epoch in range(3):
        begin(epoch, shared, alone)
        for embeddings, rows in batches(n, size, epoch, repeat, dtype):
            got, expected = iterate(shared, embeddings, rows), iterate(alone, embeddings, rows)
            for a, b in zip(got, expected, strict=True):
                assert a.dtype == b.dtype
                tiny = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 0.01
                assert (a - b).abs().max() <= tiny * b.abs().max()
            check_state(shared, alone)
    return max(map(len, lists(alone.label_memory.local_lists()))), alone.label_memory.dropped


@pytest.mark.parametrize(
    ("size", "n", "k", "batch", "repeat", "settings", "dtype"),
    [
        (1, 40, 1, 12, True, {}, torch.float64),
        (2, 47, 0, 12, False, {"layout": "bits"}, torch.float64),
        (2, 60, 2, 12, True, {"layout": "sparse", "capacity": 3}, torch.float64),
        (3, 47, 1, 12, True, {"layout": "bits", "hard_ratio": 0.1}, torch.float64),
        (3, 60, 1, 12, False, {}, torch.float32),
        (3, 4, 2, 3, False, {"layout": "sparse"}, torch.float64),
        (4, 70, 2, 12, True, {"layout": "bits", "at_least": 2}, torch.float64),
        (3, 50, 1, 12, True, {"threshold": "auto", "at_least": 3}, torch.float64),
        (4, 41, 1, 8, True, {"layout": "sparse", "capacity": 4}, torch.float64),
        (4, 5, 1, 4, False, {}, torch.float64),
        (4, 41, 1, 8, False, {}, torch.bfloat16),
    ],
)
def test_ranks_follow_one_process(
    pool: Pool,
    size: int,
    n: int,
    k: int,
    batch: int,
    repeat: bool,
    settings: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    for longest, dropped in pool.run(follow, size, n, k, batch, repeat, settings, dtype):
        assert n < 10 or longest > 2
        assert (dropped > 0) == ("capacity" in settings)


def restated(world: World, n: int, k: int) -> int:
    size, several = 12, 0
    shared = nnct(world, n, k, size, hard_ratio=0.05)
    settings = reference.Settings(single_label=1, hard_ratio=0.05)
    memory, labels = np.zeros((n, DIM)), [{i} for i in range(n)]
    for epoch in range(3):
        begin(epoch, shared)
        for embeddings, rows in batches(n, size, epoch, True, torch.float64):
            x = embeddings.numpy()
            expected = reference.step(
                memory, labels, unit(x), rows.tolist(), epoch, EPOCHS, k, settings
            )
            loss, gradient = iterate(shared, embeddings, rows)
            assert float(loss) == pytest.approx(expected.loss, abs=1e-10)
            assert np.allclose(
                gradient.numpy(),
                reference.before_normalisation(expected.gradient, x),
                rtol=0,
                atol=1e-9,
            )
            memory, labels = expected.memory, expected.label_memory
            assert np.allclose(
                world.all_gather_rows(shared.memory.bank).numpy(), memory, rtol=0, atol=1e-12
            )
            got = lists(shared.label_memory.lookup(torch.arange(n)))
            assert got == [sorted(some) for some in labels]
            several += sum(len(some) > 1 for some in labels)
    return several


def test_ranks_follow_the_reference(pool: Pool) -> None:
    assert min(pool.run(restated, 3, 47, 1)) > 0


def adapted(world: World) -> None:
    n, m, size = 40, 30, 12
    source = Source(torch.arange(m) % 5, torch.zeros(m, dtype=torch.int64))
    shared, alone = (
        nnct(some, n, 1, size, SourceClassifier(source, DIM, 0.3, seed=0).double())
        for some in (world, SINGLE_PROCESS)
    )
    for epoch in (0, 1):
        begin(epoch, shared, alone)
        for (target, rows), (beside, more) in zip(
            batches(n, size, epoch, False, torch.float64),
            batches(m, size, 9 + epoch, False, torch.float64),
            strict=True,
        ):
            embeddings, images = torch.cat([target, beside]), torch.cat([rows, n + more])
            got, expected = (
                iterate(shared, embeddings, images, 2),
                iterate(alone, embeddings, images, 2),
            )
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
            check_state(shared, alone)
    assert shared.source is not None and alone.source is not None
    gradient, whole = (method.source.linear.weight.grad for method in (shared, alone))
    torch.testing.assert_close(
        world.all_reduce_sum(gradient) / world.size, whole, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_has_its_part_of_the_target_and_of_the_source(pool: Pool, size: int) -> None:
    pool.run(adapted, size)


def saved(world: World, layout: str, n: int) -> dict[str, Any]:
    method = nnct(world, n, 1, 12, layout=layout, capacity=3)
    for epoch in (0, 1):
        begin(epoch, method)
        for embeddings, rows in batches(n, 12, epoch, True, torch.float64):
            iterate(method, embeddings, rows)
    return method.state_dict()


def resumed(world: World, layout: str, n: int, state: dict[str, Any], in_parts: bool) -> None:
    def cut(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: cut(value) for name, value in x.items()}
        rows = isinstance(x, Tensor) and x.ndim > 0 and len(x) == n
        return (
            Sharded(x[world.local_slice(n)].clone(), n)
            if rows and in_parts and world.size > 1
            else x
        )

    shared, alone = (
        nnct(some, n, 1, 12, layout=layout, capacity=3) for some in (world, SINGLE_PROCESS)
    )
    # What came lies in memory that all ranks see.
    state = deepcopy(state)
    shared.load_state_dict(cut(state))
    alone.load_state_dict(deepcopy(state))
    assert shared.label_memory.dropped == alone.label_memory.dropped
    assert shared.memory.bank.untyped_storage().nbytes() == shared.memory.bank.nbytes
    for embeddings, rows in batches(n, 12, 2, True, torch.float64):
        for a, b in zip(
            iterate(shared, embeddings, rows), iterate(alone, embeddings, rows), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        check_state(shared, alone)
    with pytest.raises(ValueError, match=f"memory is of {n} images, the set has {n + 1}"):
        nnct(world, n + 1, 1, 12, layout=layout, capacity=3).load_state_dict(cut(state))


def whole_of(states: list[dict[str, Any]]) -> dict[str, Any]:
    """One state of what ranks gave."""
    got = {}
    for name, x in states[0].items():
        each = [state[name] for state in states]
        if isinstance(x, dict):
            got[name] = whole_of(each)
        else:
            got[name] = torch.cat([part.rows for part in each]) if isinstance(x, Sharded) else x
    return got


@pytest.mark.parametrize(
    ("layout", "before", "after"),
    [("bits", 3, 2), ("sparse", 2, 4), ("sparse", 4, 1), ("bits", 1, 3)],
)
def test_a_state_goes_on_on_another_number_of_ranks(
    pool: Pool, layout: str, before: int, after: int
) -> None:
    n = 47
    state = whole_of(pool.run(saved, before, layout, n))
    expected = pool.run(saved, 1, layout, n)[0]
    for name in ("words",) if layout == "bits" else ("ids", "counts", "dropped"):
        assert torch.equal(state["label_memory"][name], expected["label_memory"][name])
    assert torch.equal(state["bank"], expected["bank"])
    for in_parts in (False, True):
        pool.run(resumed, after, layout, n, state, in_parts)


def unstarted(world: World) -> None:
    state = nnct(world, 20, 1, 12).state_dict()
    assert isinstance(state["bank"], Tensor) and state["bank"].shape == (0, 0)
    shared, alone = (nnct(some, 20, 1, 12) for some in (world, SINGLE_PROCESS))
    shared.load_state_dict(state)
    begin(0, shared, alone)
    for embeddings, rows in batches(20, 12, 0, False, torch.float64):
        iterate(shared, embeddings, rows), iterate(alone, embeddings, rows)
    check_state(shared, alone)


def test_a_state_from_before_the_first_batch_goes_on(pool: Pool) -> None:
    pool.run(unstarted, 3)


def failing(world: World) -> str:
    for k in (0, 1):
        method = nnct(world, 20, k, 12)
        begin(0, method)
        (first, rows), (embeddings, more) = batches(20, 12, 0, False, torch.float64)
        iterate(method, first, rows)
        # One image of the last rank.
        embeddings[-1, 2] = torch.nan
        for epoch in (0, 1):
            begin(epoch, method)
            with pytest.raises(TrainingError, match="the training diverged"):
                method.loss(part(world, embeddings), part(world, more))
        with pytest.raises(ValueError, match="features: row 11 is not finite"):
            method.update(part(world, embeddings), part(world, more))
    state = nnct(world, 20, 1, 12, layout="sparse").state_dict()
    if world.rank == 1:
        state["label_memory"]["counts"].rows[0] = 7
    with pytest.raises(ValueError) as error:  # noqa: PT011
        nnct(world, 20, 1, 12, layout="sparse").load_state_dict(state)
    return str(error.value)


def test_what_one_rank_alone_sees_is_raised_on_all(pool: Pool) -> None:
    for said in pool.run(failing, 3):
        assert "state['counts']" in said


def sized(world: World, n: int, layout: str) -> tuple[int, int]:
    method = nnct(world, n, 1, 12, layout=layout)
    begin(0, method)
    iterate(method, *batches(n, 12, 0, False, torch.float32)[0])
    assert isinstance(method.label_memory, ShardedLabelBank)
    assert len(method.label_memory) == n and method.label_memory.device == torch.device("cpu")
    return method.label_memory.nbytes, method.memory.bank.untyped_storage().nbytes()


@pytest.mark.parametrize("layout", ["bits", "sparse"])
def test_each_rank_holds_its_share_of_both_memories(pool: Pool, layout: str) -> None:
    n = 3001
    whole = PseudoLabelMemoryBank(n, layout).nbytes
    for size in (2, 4):
        held = pool.run(sized, size, n, layout)
        step = -(-n // size)
        # Each rank counts what it dropped.
        scalars = 8 * (layout == "sparse")
        assert sum(labels for labels, _ in held) == whole + (size - 1) * scalars
        assert max(labels for labels, _ in held) == (whole - scalars) // n * step + scalars
        assert [features for _, features in held] == [4 * DIM * step] * (size - 1) + [
            4 * DIM * (n - (size - 1) * step)
        ]
