"""Margins are those of centroids that are computed one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastreid_al.labels.margins import Margins


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=-1)


def reference(features: Tensor, identities: Tensor, image: int, target: int | None = None) -> float:
    """The margin of one image towards an identity, its own when not given."""
    target = int(identities[image]) if target is None else target
    cosines = {}
    for identity in set(identities.tolist()) - {-1}:
        members = identities == identity
        members[image] = False
        if members.any():
            centroid = unit(features[members].double().sum(0))
            cosines[identity] = float(centroid @ features[image].double())
    if target not in cosines or target == -1:
        return float("nan")
    return cosines.pop(target) - max(cosines.values(), default=-1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_margins_leave_the_image_itself_out(count: int) -> None:
    features = unit(torch.randn(40, 8)).float()
    identities = torch.randint(-1, count, (40,))
    identities[:2] = 0
    margins = Margins(features, identities)
    expected = torch.tensor([reference(features, identities, i) for i in range(40)])
    torch.testing.assert_close(margins.margin.float(), expected, equal_nan=True)
    assert margins.margin.isnan()[identities < 0].all()


def test_margins_towards_other_identities() -> None:
    features = unit(torch.randn(30, 6)).float()
    identities = torch.randint(-1, 5, (30,))
    inside = (identities >= 0).nonzero()[:, 0]
    images = torch.arange(30).repeat_interleave(len(inside))
    targets = inside.repeat(30)
    got = Margins(features, identities).towards(images, targets)
    expected = torch.tensor(
        [
            reference(features, identities, int(i), int(identities[j]))
            for i, j in zip(images, targets, strict=True)
        ]
    )
    torch.testing.assert_close(got.float(), expected, equal_nan=True)


def test_the_only_image_of_an_identity_has_no_margin() -> None:
    margins = Margins(torch.eye(3), torch.tensor([4, 9, 9]))
    assert margins.margin.isnan().tolist() == [True, False, False]
    assert margins.sizes.tolist() == [1, 2]


def test_without_identities_there_is_no_margin() -> None:
    margins = Margins(torch.eye(3), torch.full((3,), -1))
    assert margins.margin.isnan().all() and len(margins.sizes) == 0
