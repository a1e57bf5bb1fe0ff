"""Standardisation by camera and whitening inside clusters, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.clustering import conditioning, standardise_by_camera, whiten_within_clusters
from fastreid_al.distributed.world import World
from tests.support.process_pool import Pool
from tests.support.references import reference_standardised, reference_whitened


def planted(n: int = 400, identities: int = 30, cameras: int = 4, dim: int = 24) -> dict[str, Any]:
    """Unit-norm features of identities that cameras shift and scale."""
    random = np.random.default_rng(n)
    identity = random.integers(0, identities, n)
    camera = random.integers(0, cameras, n)
    clean = random.normal(size=(identities, dim))[identity] + 0.5 * random.normal(size=(n, dim))
    shift = 3 * random.normal(size=(cameras, dim))
    scale = random.uniform(0.3, 3, size=(cameras, dim))
    rows = clean * scale[camera] + shift[camera]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return {
        "features": torch.from_numpy(rows),
        "cameras": torch.from_numpy(camera),
        "identities": torch.from_numpy(identity),
    }


def share_of_true_neighbours(features: Tensor, identities: Tensor, cameras: Tensor) -> float:
    """How often the nearest image of another camera has the image's identity."""
    similarity = features @ features.T
    similarity[cameras[:, None] == cameras] = -torch.inf
    return float((identities[similarity.argmax(1)] == identities).double().mean())


@pytest.mark.parametrize("scale", [True, False])
def test_standardised_features_equal_the_reference(scale: bool) -> None:
    set_ = planted()
    got = standardise_by_camera(set_["features"], set_["cameras"], scale)
    expected = reference_standardised(set_["features"].numpy(), set_["cameras"].numpy(), scale)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_standardised_features_find_identities_over_cameras() -> None:
    set_ = planted()
    before = share_of_true_neighbours(**set_)
    features = standardise_by_camera(set_["features"], set_["cameras"])
    after = share_of_true_neighbours(features, set_["identities"], set_["cameras"])
    assert before < 0.8
    assert after > 0.95


def test_dimensions_without_information_become_zero() -> None:
    set_ = planted()
    features = set_["features"].clone()
    features[:, 3] = 0.01
    features[:, 5] = 0.01 + 1e-9 * torch.randn(len(features), dtype=torch.float64)
    features[:, 7] = 1e-310
    got = standardise_by_camera(features, set_["cameras"])
    assert (got[:, [3, 5, 7]] == 0).all()
    torch.testing.assert_close(got.norm(dim=1), torch.ones(len(got), dtype=torch.float64))


def test_a_camera_of_one_image_is_not_standardised_by_itself() -> None:
    set_ = planted()
    cameras = set_["cameras"].clone()
    cameras[10] = 99
    got = standardise_by_camera(set_["features"], cameras)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got[10].norm(), torch.tensor(1.0, dtype=torch.float64))
    # Its statistics are mostly those of all cameras, so it stays far from the mean.
    whole = standardise_by_camera(set_["features"], torch.zeros_like(cameras))
    assert float(got[10] @ whole[10]) > 0.5


def test_images_that_are_all_the_same_stay_as_they_are() -> None:
    features = torch.nn.functional.normalize(torch.ones(5, 3), dim=1)
    got = standardise_by_camera(features, torch.tensor([0, 0, 1, 1, -1]))
    assert torch.equal(got, features)


def test_no_images_stay_no_images() -> None:
    features = torch.zeros(0, 4)
    assert standardise_by_camera(features, torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
    assert whiten_within_clusters(features, torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
    ids = torch.zeros(3, dtype=torch.int64)
    assert standardise_by_camera(torch.zeros(3, 0), ids).shape == (3, 0)
    assert whiten_within_clusters(torch.zeros(3, 0), ids).shape == (3, 0)


@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_whitened_features_equal_the_reference(shrinkage: float) -> None:
    set_ = planted()
    labels = set_["identities"].clone()
    labels[::7] = -1
    labels[0] = 1000  # a cluster of one image
    got = whiten_within_clusters(set_["features"], labels, shrinkage)
    expected = reference_whitened(set_["features"].numpy(), labels.numpy(), shrinkage)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)


def test_float32_features_stay_float32() -> None:
    set_ = planted()
    features = set_["features"].float()
    for got, expected in (
        (
            standardise_by_camera(features, set_["cameras"]),
            standardise_by_camera(set_["features"], set_["cameras"]),
        ),
        (
            whiten_within_clusters(features, set_["identities"]),
            whiten_within_clusters(set_["features"], set_["identities"]),
        ),
    ):
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=2e-5)


def test_features_without_a_cluster_are_not_whitened() -> None:
    set_ = planted()
    features = set_["features"]
    assert torch.equal(whiten_within_clusters(features, torch.full((400,), -1)), features)
    assert torch.equal(whiten_within_clusters(features, torch.arange(400)), features)


def test_clusters_of_copies_are_not_whitened() -> None:
    features = planted()["features"][:4].repeat_interleave(3, 0)
    labels = torch.arange(4).repeat_interleave(3)
    assert torch.equal(whiten_within_clusters(features, labels), features)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    set_ = planted()
    whole = whiten_within_clusters(set_["features"], set_["identities"])
    standard = standardise_by_camera(set_["features"], set_["cameras"])
    monkeypatch.setattr(conditioning, "_BLOCK", 8 * 24 * 10)
    np.testing.assert_allclose(
        whiten_within_clusters(set_["features"], set_["identities"]), whole, atol=1e-12
    )
    np.testing.assert_allclose(
        standardise_by_camera(set_["features"], set_["cameras"]), standard, atol=1e-12
    )


def test_a_large_set_is_whitened_by_some_of_its_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    set_ = planted()
    monkeypatch.setattr(conditioning, "_MOST", 150)
    labels = set_["identities"]
    step = -(-400 // 150)
    used = torch.where(labels % step == 0, labels, -1)
    got = whiten_within_clusters(set_["features"], labels)
    expected = reference_whitened(set_["features"].numpy(), used.numpy(), 0.1)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)


def conditioned(world: World, features: Tensor, cameras: Tensor, labels: Tensor) -> list[Tensor]:
    own = features[world.local_slice(len(features))]
    return [
        standardise_by_camera(own, cameras, world=world),
        whiten_within_clusters(own, labels, world=world),
    ]


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_get_their_rows(pool: Pool, size: int) -> None:
    set_ = planted()
    given = [set_["features"], set_["cameras"], set_["identities"]]
    parts = pool.run(conditioned, size, *given)
    for whole, of_ranks in zip(
        [
            standardise_by_camera(*given[:2]),
            whiten_within_clusters(given[0], given[2]),
        ],
        zip(*parts, strict=True),
        strict=True,
    ):
        np.testing.assert_allclose(torch.cat(of_ranks), whole, atol=1e-12)


def not_finite_on_one(world: World, features: Tensor, cameras: Tensor) -> str:
    own = features[world.local_slice(len(features))].clone()
    if world.rank == 1:
        own[0, 0] = torch.nan
    try:
        standardise_by_camera(own, cameras, world=world)
    except ValueError as error:
        return str(error)
    return ""


def test_a_row_that_is_not_finite_is_refused_on_all_ranks(pool: Pool) -> None:
    set_ = planted()
    messages = pool.run(not_finite_on_one, 2, set_["features"], set_["cameras"])
    assert all("not finite" in message for message in messages)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: standardise_by_camera(s["features"], s["cameras"][1:]), "cameras: got shape"),
        (lambda s: standardise_by_camera(s["features"], s["cameras"] - 5), "cameras"),
        (lambda s: standardise_by_camera(s["features"].half(), s["cameras"]), "dtype"),
        (lambda s: standardise_by_camera(s["features"], s["cameras"], 1), "scale: got 1"),
        (lambda s: whiten_within_clusters(s["features"], s["identities"][1:]), "labels: got shape"),
        (lambda s: whiten_within_clusters(s["features"], s["identities"], 0), "shrinkage: got 0"),
        (lambda s: whiten_within_clusters(s["features"], s["identities"], 1.5), "shrinkage: got"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(planted())
