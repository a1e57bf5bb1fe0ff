"""BatchNorms of many ranks against one process that sees the whole batch."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fastreid_al.distributed.world import SINGLE_PROCESS, World
from fastreid_al.models import group_batchnorm, join_world, split_batchnorm, update_running
from fastreid_al.models.norm import DomainSwitch
from tests.support.process_pool import Pool

BATCH = 16
STEPS = 2
Found = tuple[list[Tensor], list[Tensor], dict[str, Tensor], dict[str, Tensor]]


def network(
    group: int, dtype: torch.dtype, domains: bool
) -> tuple[nn.Sequential, DomainSwitch | None]:
    """Convolutions and all kinds of BatchNorm, the last of one value an image and channel."""
    torch.manual_seed(3)
    layers = [
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 2),
        nn.BatchNorm2d(5),
        nn.Flatten(),
    ]
    model = nn.Sequential(*layers, nn.Linear(40, 7), nn.BatchNorm1d(7))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    group_batchnorm(model.to(dtype), group)
    return model, split_batchnorm(model) if domains else None


def trained(
    world: World, group: int, dtype: torch.dtype, last: bool, domains: bool, momentum: float | None
) -> Found:
    """Train some steps on this rank's images.

    Returns:
        Outputs, gradients of the images, gradients of the parameters, and the state.
    """
    model, switch = network(group, dtype, domains)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum
    names = list(model.state_dict())
    join_world(model, world)
    assert list(model.state_dict()) == names
    generator = torch.Generator().manual_seed(0)
    outputs, to_images = [], []
    for _ in range(STEPS):
        losses = []
        for domain in ("target", "source") if domains else ("target",):
            if switch is not None:
                switch.domain = cast(Any, domain)
            images, aims = (
                torch.randn(shape, generator=generator).to(dtype)
                for shape in ((BATCH, 2, 5, 7), (BATCH, 7))
            )
            images = images[world.local_slice(BATCH)].requires_grad_()
            y = model(images.contiguous(memory_format=torch.channels_last) if last else images)
            losses.append((y - aims[world.local_slice(BATCH)]).square().sum(1).exp().log1p().mean())
            outputs.append(y.detach())
            to_images.append(images)
        torch.stack(losses).sum().backward()
        update_running(model, world)
    # As DistributedDataParallel does; a rank's own images count W times in its mean.
    of_images = [cast(Tensor, images.grad) / world.size for images in to_images]
    of_parameters = {
        k: world.all_reduce_sum(cast(Tensor, p.grad)) / world.size
        for k, p in model.named_parameters()
    }
    return outputs, of_images, of_parameters, dict(model.named_buffers())


CASES = [
    # Images of a group, dtype, channels last, two domains, momentum.
    (0, torch.float64, False, False, 0.1),
    (0, torch.float64, False, True, None),
    (0, torch.float32, True, False, 0.1),
    (4, torch.float64, False, False, None),
    (4, torch.float64, False, True, 0.1),
    (4, torch.float32, True, False, 0.1),
]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_a_single_process(pool: Pool, size: int, case: tuple[Any, ...]) -> None:
    outputs, of_images, of_parameters, buffers = trained(SINGLE_PROCESS, *case)
    got = cast(list[Found], pool.run(trained, size, *case))
    limit = 1e-12 if case[1] == torch.float64 else 1e-5

    def close(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(
            a, b, rtol=limit, atol=limit * max(1.0, float(b.abs().max())) if b.ndim else 0
        )

    for ours, whole in ((0, outputs), (1, of_images)):
        for step, expected in enumerate(whole):
            close(torch.cat([cast(list[Tensor], of_rank[ours])[step] for of_rank in got]), expected)
    for _, _, averaged, after in got:
        assert averaged.keys() == of_parameters.keys() and after.keys() == buffers.keys()
        for name, expected in {**of_parameters, **buffers}.items():
            close({**averaged, **after}[name], expected)
        assert all(torch.equal(x, got[0][3][name]) for name, x in after.items())


def kept_back(world: World) -> None:
    model = join_world(group_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), 4), world)
    norm = cast(Any, model[0])
    x = torch.randn(8, 3, 2, 2)
    model(x)
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any()
    model.eval()
    model(x)
    update_running(model, world)
    moved = norm.running_mean.clone()
    update_running(model, world)
    assert (
        norm.num_batches_tracked == 2 * world.size
        and moved.any()
        and torch.equal(norm.running_mean, moved)
    )
    model.train()
    with pytest.raises(ValueError, match="got 6 images in a process, expected a multiple of 4"):
        model(x[:6])


def test_running_statistics_wait_for_all_ranks_and_are_applied_once(pool: Pool) -> None:
    pool.run(kept_back, 2)


def uneven(world: World) -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 4, dtype=torch.float64)[world.local_slice(3)].requires_grad_()
    y = join_world(nn.Sequential(nn.BatchNorm1d(4).double()), world)(x)
    y.pow(3).sum().backward()
    return y.detach(), cast(Tensor, x.grad)


def test_ranks_are_weighted_by_their_number_of_images(pool: Pool) -> None:
    torch.manual_seed(5)
    whole = uneven(SINGLE_PROCESS)
    for size in (2, 4):
        got = pool.run(seeded, size)
        for place, expected in enumerate(whole):
            torch.testing.assert_close(
                torch.cat([x[place] for x in got]), expected, rtol=1e-12, atol=1e-12
            )


def seeded(world: World) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return uneven(world)


def test_a_single_rank_changes_nothing() -> None:
    model, _ = network(0, torch.float32, True)
    kinds = [type(x) for x in model.modules()]
    assert [type(x) for x in join_world(model, SINGLE_PROCESS).modules()] == kinds
    grouped = join_world(
        group_batchnorm(copy.deepcopy(nn.Sequential(nn.BatchNorm1d(3))), 2), SINGLE_PROCESS
    )
    grouped(torch.randn(4, 3))
    assert cast(Any, grouped[0]).num_batches_tracked == 2  # type: ignore[index]
