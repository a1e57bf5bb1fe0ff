"""Operators over a sharded bank against the plain operators over the whole bank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reid_kernels import (
    NotFiniteError,
    bank_contrast_loss,
    class_index,
    hardest_rows,
    label_prediction,
    label_prediction_reference,
    multilabel_bank_loss,
    multilabel_bank_loss_reference,
    similarity_topk,
    similarity_topk_reference,
    update_bank_,
)
from reid_kernels.multilabel import sum_of_multilabel_bank_losses
from reid_kernels.sharded import (
    bank_rows,
    sharded_bank_contrast_loss,
    sharded_label_prediction,
    sharded_multilabel_bank_loss,
    sharded_similarity_topk,
    sharded_update_bank_,
    update_shard_,
    with_gradient,
)

from fastreid_al.distributed.world import SINGLE_PROCESS, World
from tests.support.kernels import on_grid, unit_rows
from tests.support.process_pool import Pool

SIZES = [1, 2, 3, 4]
#: Rows of the bank: shards of different sizes, some empty on three and on four processes.
NS = [41, 5, 4]
#: Features of a batch that is cut into parts of one size.
BATCH = 12


def crowded(n: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    """Rows in a few crowds, float64, no two similarities equal."""
    centres = unit_rows(4, dim, torch.float64, seed)
    return torch.nn.functional.normalize(
        centres[torch.arange(n) * 7 % 4] + 0.4 * unit_rows(n, dim, torch.float64, 1)
    )


def part_of(world: World, batch: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch."""
    return batch.chunk(world.size)[world.rank].clone()


def predict(world: World) -> int:
    walked = 0
    for n in NS:
        rows = torch.arange(9) * 5 % n
        # Products on the grid are exact, and many of them equal.
        for bank, thresholds in (
            (crowded(n), (0.3, 0.7)),
            (on_grid(n, 4), (-0.1, 1.5)),
            (on_grid(n, 2).half(), (0.1,)),
        ):
            for threshold in thresholds:
                for at_least in (1, 10):
                    own = bank[world.local_slice(n)].clone()
                    labels = sharded_label_prediction(
                        own, rows, n, world, threshold=threshold, at_least=at_least
                    )
                    whole = label_prediction(bank, rows, threshold=threshold, at_least=at_least)
                    expected = label_prediction_reference(
                        bank.double(), rows, threshold=threshold, at_least=at_least
                    )
                    for a, b, c in zip(labels, whole, expected, strict=True):
                        assert torch.equal(a, b) and torch.equal(a, c)
                    walked += int((labels[0].diff() > 3).sum())
        none = sharded_label_prediction(own, rows[:0], n, world)
        assert none[0].tolist() == [0] and len(none[1]) == 0
    return walked


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_those_of_the_whole_bank(pool: Pool, size: int) -> None:
    assert min(pool.run(predict, size)) > 50


def find_nearest(world: World) -> None:
    for n in NS:
        for query, bank in (
            (crowded(5, seed=3), crowded(n)),
            (on_grid(5, 4, seed=3), on_grid(n, 4)),
        ):
            exclude = torch.tensor([0, n - 1, -1, n // 2, n // 3])
            own = bank[world.local_slice(n)]
            for k in (1, 2, 7):
                for normalize in (False, True) if query.dtype == torch.float64 else (False,):
                    got = sharded_similarity_topk(
                        query, own, k, n, world, normalize=normalize, exclude=exclude
                    )
                    for operator in (similarity_topk, similarity_topk_reference):
                        values, indices = operator(
                            query, bank, k, normalize=normalize, exclude=exclude
                        )
                        assert torch.equal(got[1], indices)
                        torch.testing.assert_close(got[0], values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_neighbours_are_those_of_the_whole_bank_ties_by_lowest_row(pool: Pool, size: int) -> None:
    pool.run(find_nearest, size)


def bits_of(lists: list[list[int]], n: int) -> torch.Tensor:
    bits = torch.zeros(len(lists), (n + 31) // 32, dtype=torch.int64)
    for row, some in enumerate(lists):
        for j in set(some):
            bits[row, j // 32] |= 1 << j % 32
    return bits.to(torch.int32)


def label_sets(n: int, random: torch.Generator) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Two sets of labels of a batch: lists of no label, of all, of one twice and of some; and bit
    rows.
    """
    picked = [
        [],
        list(range(n)),
        [n - 1, n - 1],
        *torch.randint(n, (BATCH - 3, 6), generator=random).tolist(),
    ]
    indptr = torch.tensor([0, *map(len, picked)]).cumsum(0)
    indices = torch.tensor([j for labels in picked for j in labels])
    return (indptr, indices), bits_of([[j % n, (3 * j + 1) % n] for j in range(BATCH)], n)


def whole_loss(
    operator: Callable[..., torch.Tensor],
    features: torch.Tensor,
    bank: torch.Tensor,
    sets: tuple[Any, Any],
    ratio: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted losses of the whole batch by an operator over the whole bank, and their
    gradient.
    """
    x = features.clone().requires_grad_()
    first = operator(x, bank, sets[0], delta=3.0, hard_ratio=ratio, reduction="none")
    second = operator(x, bank, sets[1], delta=3.0, hard_ratio=ratio, reduction="none")
    losses = 1.25 * first + 0.5 * second
    losses.sum().backward()
    assert x.grad is not None
    return losses.detach(), x.grad


def compute_losses(world: World, block: int) -> None:
    from reid_kernels import multilabel_cpu

    before = multilabel_cpu.BLOCK
    multilabel_cpu.BLOCK = block
    random = torch.Generator().manual_seed(4)
    for n in NS:
        for features, bank in (
            (crowded(BATCH, seed=3), crowded(n)),
            (on_grid(BATCH, 4, seed=3), on_grid(n, 4)),
            (torch.ones(BATCH, 3), torch.ones(n, 3)),
        ):
            lists, bits = label_sets(n, random)
            for ratio in (0.0, 0.3, 1.0):
                x = part_of(world, features).requires_grad_()
                losses = sharded_multilabel_bank_loss(
                    x,
                    bank[world.local_slice(n)],
                    [lists, bits, lists],
                    [1.0, 0.5, 0.25],
                    n,
                    world,
                    delta=3.0,
                    hard_ratio=ratio,
                    reduction="none",
                )
                losses.sum().backward()
                tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
                close = {"rtol": tolerance, "atol": tolerance}
                for operator in (multilabel_bank_loss, multilabel_bank_loss_reference):
                    expected, gradient = whole_loss(operator, features, bank, (lists, bits), ratio)
                    torch.testing.assert_close(losses, part_of(world, expected), **close)
                    torch.testing.assert_close(x.grad, part_of(world, gradient), **close)
    multilabel_cpu.BLOCK = before


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (1, 2**26),
        (2, 2**9),
        pytest.param(3, 2**26, marks=pytest.mark.slow),
        pytest.param(4, 2**9, marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_the_whole_bank_and_ties_are_split(
    pool: Pool, size: int, block: int
) -> None:
    pool.run(compute_losses, size, block)


def test_a_known_gradient_reaches_the_features_once() -> None:
    features = unit_rows(3, 4).requires_grad_()
    gradient = unit_rows(3, 4, seed=1)
    losses = with_gradient(features, torch.tensor([1.0, 2.0, 4.0]), gradient)
    assert losses.tolist() == [1, 2, 4]
    (slopes,) = torch.autograd.grad(
        losses @ torch.tensor([1.0, 10.0, 100.0]), features, create_graph=True
    )
    assert torch.equal(slopes.detach(), gradient * torch.tensor([[1.0], [10.0], [100.0]]))
    with pytest.raises(RuntimeError, match="no second derivative"):
        slopes.sum().backward()


def update(world: World) -> None:
    for n in NS:
        # Rows that the batch names several times.
        rows = torch.arange(24) * 7 % n
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            whole, features = unit_rows(n, 8, dtype), unit_rows(24, 8, dtype, seed=1)
            own = whole[world.local_slice(n)].clone()
            assert sharded_update_bank_(own, features, rows, 0.3, n, world) is own
            assert torch.equal(own, update_bank_(whole, features, rows, 0.3)[world.local_slice(n)])
            assert torch.equal(
                bank_rows(own, rows, n, world),
                whole[rows].to(torch.promote_types(dtype, torch.float32)),
            )


@pytest.mark.parametrize("size", SIZES)
def test_updates_are_bit_for_bit_those_of_the_whole_bank(pool: Pool, size: int) -> None:
    pool.run(update, size)


def contrast(world: World) -> None:
    # Ten classes of several vectors, dealt to the processes in turn; some features have no class.
    classes = torch.arange(41) % 10
    bank = crowded(41)
    features = crowded(BATCH, seed=3)
    targets = torch.arange(BATCH) % 11 - 1
    whole = features.clone().requires_grad_()
    expected = bank_contrast_loss(whole, bank, targets, 0.1, classes=classes)
    expected.backward()
    own = torch.arange(10) % world.size == world.rank
    local_classes = torch.full((11,), -1)
    local_classes[:10][own] = torch.arange(int(own.sum()))
    held = own[classes]
    x = part_of(world, features).requires_grad_()
    loss = sharded_bank_contrast_loss(
        x,
        bank[held],
        part_of(world, targets),
        local_classes,
        0.1,
        world,
        classes=class_index(local_classes[classes[held]]),
    )
    loss.backward()
    mean = world.all_reduce_sum(loss.detach()) / world.size
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-12, atol=1e-12)
    gradient = part_of(world, whole.grad)
    torch.testing.assert_close(x.grad / world.size, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_contrast_is_that_of_the_whole_bank(pool: Pool, size: int) -> None:
    pool.run(contrast, size)


def update_hardest(world: World) -> None:
    whole = unit_rows(8, 6)
    features = unit_rows(BATCH, 6, seed=1)
    rows = torch.arange(BATCH) * 5 % 8
    # Rows of the bank are dealt to the processes in turn.
    own = torch.arange(8) % world.size == world.rank
    places = torch.where(own, own.cumsum(0) - 1, -1)[rows]
    shard = whole[own].clone()
    assert update_shard_(shard, features, places, 0.3, world, hardest=True) is shard
    hard = hardest_rows(features, whole, rows)
    assert torch.equal(shard, update_bank_(whole, features[hard], rows[hard], 0.3)[own])


@pytest.mark.parametrize("size", SIZES)
def test_hardest_updates_are_bit_for_bit_those_of_the_whole_bank(pool: Pool, size: int) -> None:
    pool.run(update_hardest, size)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(equal, a, b))
    return torch.equal(a, b)


def test_one_process_returns_bit_for_bit_what_the_plain_operators_return() -> None:
    n = 41
    world = SINGLE_PROCESS
    bank = unit_rows(n, 6)
    features = unit_rows(BATCH, 6, seed=1).requires_grad_()
    rows = torch.arange(BATCH) * 5 % n
    query = features.detach()
    assert equal(bank_rows(bank, rows, n, world), bank[rows])
    assert equal(
        sharded_label_prediction(bank, rows, n, world, threshold=0.3),
        label_prediction(bank, rows, threshold=0.3),
    )
    assert equal(
        sharded_similarity_topk(query, bank, 3, n, world, exclude=rows),
        similarity_topk(query, bank, 3, exclude=rows, precision="ieee"),
    )
    lists, bits = label_sets(n, torch.Generator().manual_seed(4))
    pairs = [
        (
            sharded_multilabel_bank_loss(features, bank, [bits], [1.0], n, world),
            multilabel_bank_loss(features, bank, bits),
        ),
        (
            sharded_multilabel_bank_loss(features, bank, [lists, bits], [1.0, 0.5], n, world),
            sum_of_multilabel_bank_losses(features, bank, [lists, bits], [1.0, 0.5]),
        ),
        (
            sharded_bank_contrast_loss(features, bank, rows, torch.empty(0), 0.05, world),
            bank_contrast_loss(features, bank, rows, 0.05),
        ),
    ]
    for sharded, plain in pairs:
        assert equal(sharded.detach(), plain.detach())
        gradients = [torch.autograd.grad(loss, features)[0] for loss in (sharded, plain)]
        assert equal(*gradients)
    shard = bank.clone()
    assert sharded_update_bank_(shard, query, rows, 0.3, n, world) is shard
    assert equal(shard, update_bank_(bank.clone(), query, rows, 0.3))


def refuse(world: World) -> list[str]:
    n, said = 10, []
    bank, rows, features = unit_rows(n, 4), torch.arange(6), unit_rows(6, 4)
    bank[3] = torch.nan
    broken, own = features.clone(), bank[world.local_slice(n)]
    broken[2] = torch.inf
    for call in (
        lambda: sharded_label_prediction(own, rows, n, world),
        lambda: sharded_similarity_topk(features, own, 2, n, world, exclude=rows),
        lambda: sharded_multilabel_bank_loss(
            features, own, [(torch.arange(7), rows)], [1.0], n, world
        ),
        lambda: sharded_update_bank_(own, broken, rows, 0.5, n, world),
    ):
        with pytest.raises(NotFiniteError) as error:
            call()
        said.append(str(error.value).split(":")[0])
    return said


def test_what_is_not_finite_on_one_process_is_raised_on_all(pool: Pool) -> None:
    for rank, said in enumerate(pool.run(refuse, 4)):
        # The fourth row lies on the second process.
        bank = "bank" if rank == 1 else "features and bank"
        assert said == ["bank", "query and bank" if rank != 1 else bank, bank, "features"]
