"""Whether two programs compute the same features."""

from __future__ import annotations

import pytest
import torch

from fastreid_al.metrics.parity import compare_features


def rows(seed: int = 0, count: int = 64, dim: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator))


def test_equal_features_have_parity_whatever_their_length() -> None:
    own = rows()
    parity = compare_features(own, 7 * own)
    assert parity.holds
    assert (parity.images, parity.same_lists, parity.length) == (64, 64, 10)
    assert parity.cosine == pytest.approx(1)
    assert parity.difference < 1e-6


def test_rounding_keeps_parity_and_one_other_feature_ends_it() -> None:
    own = rows()
    assert compare_features(own, own + 1e-7 * rows(1)).holds
    other = own.clone()
    other[5] = -own[5]
    parity = compare_features(own, other)
    assert not parity.holds
    assert parity.cosine == pytest.approx(-1)


def test_lists_are_compared_too_where_all_cosines_are_high() -> None:
    # Rows near one direction: their cosines are high, their order is not kept.
    own = torch.nn.functional.normalize(torch.ones(32) + 0.02 * rows())
    other = torch.nn.functional.normalize(torch.ones(32) + 0.02 * rows(1))
    parity = compare_features(own, other)
    assert parity.cosine > 0.9999
    assert not parity.holds


def test_ties_may_come_in_another_order() -> None:
    own = rows(count=8).repeat(2, 1)
    assert compare_features(own, own.flip(0).flip(0) + 1e-9 * rows(3, 16)).holds


def test_features_that_are_not_finite_have_no_parity() -> None:
    other = rows()
    other[3, 2] = float("inf")
    parity = compare_features(rows(), other)
    assert not parity.holds
    assert str(parity) == "features that are not finite"


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(64, 32\)"):
        compare_features(rows(), rows(dim=16))
    with pytest.raises(ValueError, match="2 or more"):
        compare_features(rows(count=1), rows(count=1))
