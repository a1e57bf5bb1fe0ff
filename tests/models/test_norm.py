"""BatchNorm over groups, by domain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastreid_al.models import group_batchnorm
from fastreid_al.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d
from tests.support.references import reference_grouped_batchnorm


@pytest.mark.parametrize(("n", "group"), [(64, 16), (20, 16), (36, 16), (33, 8), (9, 4), (7, 16)])
@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_grouped_batchnorm_equals_the_reference(n: int, group: int, kind: str) -> None:
    shape = (n, 5) if kind == "1d" else (n, 5, 3, 2)
    x = torch.randn(shape, dtype=torch.float64)
    plain: nn.Module = nn.BatchNorm1d(5) if kind == "1d" else nn.BatchNorm2d(5)
    norm = group_batchnorm(nn.Sequential(plain.double()), group)[0]  # type: ignore[index]
    assert type(norm) is (GroupedBatchNorm1d if kind == "1d" else GroupedBatchNorm2d)
    with torch.no_grad():
        norm.weight.uniform_()
        norm.bias.uniform_()
    mean, var = torch.zeros(5).double(), torch.ones(5).double()
    for _ in range(2):
        expected, mean, var = (
            torch.as_tensor(a)
            for a in reference_grouped_batchnorm(
                x.numpy(),
                group,
                norm.weight.detach().numpy(),
                norm.bias.detach().numpy(),
                mean.numpy(),
                var.numpy(),
            )
        )
        assert torch.allclose(norm(x), expected)
    assert torch.allclose(norm.running_mean, mean)
    assert torch.allclose(norm.running_var, var)
    norm.eval()
    assert torch.allclose(
        norm(x), torch.nn.functional.batch_norm(x, mean, var, norm.weight, norm.bias)
    )


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("n", [12, 10])
def test_running_statistics_follow_one_group_after_the_other(
    momentum: float | None, n: int
) -> None:
    norm, plain = (nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2))
    group_batchnorm(nn.Sequential(norm), 4)
    for _ in range(2):
        x = torch.randn(n, 3, 2, 2).double()
        expected = torch.cat([plain(part) for part in x.tensor_split(list(range(4, n - 3, 4)))])
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    for (name, a), b in zip(norm.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


def test_groups_do_not_see_each_other_and_gradients_flow() -> None:
    norm = group_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), 4)
    x = torch.randn(8, 3, 2, 2, requires_grad=True)
    norm(x)[:4].square().sum().backward()
    assert (x.grad[4:] == 0).all()
    assert (x.grad[:4] != 0).any()
