"""Operators over a bank in parts against themselves over the whole bank."""

from __future__ import annotations

import pytest
import torch
from reid_kernels import (
    NotFiniteError,
    label_prediction,
    label_prediction_reference,
    multilabel_bank_loss,
    multilabel_bank_loss_reference,
    similarity_topk,
    similarity_topk_reference,
    update_bank_,
)
from reid_kernels.sharded import (
    bank_rows,
    sharded_label_prediction,
    sharded_multilabel_bank_loss,
    sharded_similarity_topk,
    sharded_update_bank_,
    with_gradient,
)

from fastreid_al.distributed.world import World
from tests.support.kernels import on_grid, unit_rows
from tests.support.process_pool import Pool

SIZES = [1, 2, 3, 4]
#: Parts that are not equal, and some that are empty on three and on four ranks.
NS = [41, 5, 4]


def crowded(n: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    """Rows in a few crowds, float64, no two similarities equal."""
    centres = unit_rows(4, dim, torch.float64, seed)
    return torch.nn.functional.normalize(
        centres[torch.arange(n) * 7 % 4] + 0.4 * unit_rows(n, dim, torch.float64, 1)
    )


def predicted(world: World) -> int:
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
                    found = sharded_label_prediction(
                        own, rows, n, world, threshold=threshold, at_least=at_least
                    )
                    whole = label_prediction(bank, rows, threshold=threshold, at_least=at_least)
                    wanted = label_prediction_reference(
                        bank.double(), rows, threshold=threshold, at_least=at_least
                    )
                    for a, b, c in zip(found, whole, wanted, strict=True):
                        assert torch.equal(a, b) and torch.equal(a, c)
                    walked += int((found[0].diff() > 3).sum())
        none = sharded_label_prediction(own, rows[:0], n, world)
        assert none[0].tolist() == [0] and len(none[1]) == 0
    return walked


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_those_of_the_whole_bank(pool: Pool, size: int) -> None:
    assert min(pool.run(predicted, size)) > 50


def nearest(world: World) -> None:
    for n in NS:
        for query, bank in (
            (crowded(5, seed=3), crowded(n)),
            (on_grid(5, 4, seed=3), on_grid(n, 4)),
        ):
            exclude = torch.tensor([0, n - 1, -1, n // 2, n // 3])
            own = bank[world.local_slice(n)]
            for k in (1, 2, 7):
                for normalize in (False, True) if query.dtype == torch.float64 else (False,):
                    found = sharded_similarity_topk(
                        query, own, k, n, world, normalize=normalize, exclude=exclude
                    )
                    for operator in (similarity_topk, similarity_topk_reference):
                        values, indices = operator(
                            query, bank, k, normalize=normalize, exclude=exclude
                        )
                        assert torch.equal(found[1], indices)
                        torch.testing.assert_close(found[0], values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_neighbours_are_those_of_the_whole_bank_equal_ones_from_the_lowest_row(
    pool: Pool, size: int
) -> None:
    pool.run(nearest, size)


def bits_of(lists: list[list[int]], n: int) -> torch.Tensor:
    bits = torch.zeros(len(lists), (n + 31) // 32, dtype=torch.int64)
    for row, some in enumerate(lists):
        for j in set(some):
            bits[row, j // 32] |= 1 << j % 32
    return bits.to(torch.int32)


def lost(world: World, block: int) -> None:
    from reid_kernels import multilabel_cpu

    multilabel_cpu.BLOCK, before = block, multilabel_cpu.BLOCK
    random = torch.Generator().manual_seed(4)
    for n in NS:
        for features, bank in (
            (crowded(5, seed=3), crowded(n)),
            (on_grid(5, 4, seed=3), on_grid(n, 4)),
            (torch.ones(5, 3), torch.ones(n, 3)),
        ):
            # None, all, one twice, some.
            picked = [
                [],
                list(range(n)),
                [n - 1, n - 1],
                *torch.randint(n, (2, 6), generator=random).tolist(),
            ]
            lists = (
                torch.tensor([0, *map(len, picked)]).cumsum(0),
                torch.tensor([j for some in picked for j in some]),
            )
            other = bits_of([[j % n, (3 * j + 1) % n] for j in range(5)], n)
            for ratio in (0.0, 0.3, 1.0):
                losses, gradient = sharded_multilabel_bank_loss(
                    features,
                    bank[world.local_slice(n)],
                    [lists, other, lists],
                    [1.0, 0.5, 0.25],
                    n,
                    world,
                    delta=3.0,
                    hard_ratio=ratio,
                )
                for operator in (multilabel_bank_loss, multilabel_bank_loss_reference):
                    x = features.clone().requires_grad_()
                    first, second = (
                        operator(x, bank, some, delta=3.0, hard_ratio=ratio, reduction="none")
                        for some in (lists, other)
                    )
                    wanted = 1.25 * first + 0.5 * second
                    wanted.sum().backward()
                    tiny = (
                        {"rtol": 1e-12, "atol": 1e-12}
                        if x.dtype == torch.float64
                        else {"rtol": 1e-5, "atol": 1e-5}
                    )
                    torch.testing.assert_close(losses, wanted.detach(), **tiny)
                    torch.testing.assert_close(gradient, x.grad, **tiny)
    multilabel_cpu.BLOCK = before


@pytest.mark.parametrize(("size", "block"), [(1, 2**26), (2, 2**9), (3, 2**26), (4, 2**9)])
def test_losses_and_gradients_are_those_of_the_whole_bank_and_ties_are_shared(
    pool: Pool, size: int, block: int
) -> None:
    pool.run(lost, size, block)


def test_a_known_gradient_reaches_the_features_once() -> None:
    features = unit_rows(3, 4).requires_grad_()
    gradient = unit_rows(3, 4, seed=1)
    losses = with_gradient(features, torch.tensor([1.0, 2.0, 4.0]), gradient)
    assert losses.tolist() == [1, 2, 4]
    (found,) = torch.autograd.grad(
        losses @ torch.tensor([1.0, 10.0, 100.0]), features, create_graph=True
    )
    assert torch.equal(found.detach(), gradient * torch.tensor([[1.0], [10.0], [100.0]]))
    with pytest.raises(RuntimeError, match="no second derivative"):
        found.sum().backward()


def updated(world: World) -> None:
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
    pool.run(updated, size)


def refused(world: World) -> list[str]:
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
    for rank, said in enumerate(pool.run(refused, 4)):
        # The fourth row lies on the second process.
        bank = "bank" if rank == 1 else "features and bank"
        assert said == ["bank", "query and bank" if rank != 1 else bank, bank, "features"]
