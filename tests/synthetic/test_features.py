"""Planted features have the structure asked for, and the same values on every machine."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from fastreid_al.clustering import dbscan, jaccard_graph
from fastreid_al.metrics import pair_scores
from fastreid_al.synthetic import features, planted_partition


@pytest.mark.parametrize(
    ("exact", "digest"),
    [
        (False, "aea37c953be6711b17d8d5026a06166e701e01a648796b65369a6056d9d9417b"),
        (True, "03a449cc6891f7ecc3b8854b3d5e920f1f86712ec88e01d7479642b0423b0263"),
    ],
)
def test_the_same_seed_gives_the_same_bits_on_every_machine(exact: bool, digest: str) -> None:
    got = planted_partition(700, 61, exact=exact, seed=3)
    together = b"".join(part.numpy().tobytes() for part in got)
    assert hashlib.sha256(together).hexdigest() == digest


def test_another_seed_makes_other_rows() -> None:
    assert not torch.equal(
        planted_partition(50, 16, seed=1).features, planted_partition(50, 16, seed=2).features
    )


def test_identities_do_not_depend_on_the_width_of_the_features() -> None:
    plain, other = (
        planted_partition(500, 16),
        planted_partition(500, 1, spread=3, camera_shift=0, exact=True),
    )
    assert torch.equal(plain.identities, other.identities)
    assert torch.equal(plain.cameras, other.cameras)


def test_values_do_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = planted_partition(300, 20, seed=1)
    monkeypatch.setattr(features, "_BLOCK", 20 * 7)
    for part, by_blocks in zip(whole, planted_partition(300, 20, seed=1), strict=True):
        assert torch.equal(part, by_blocks)


def test_rows_are_unit_norm() -> None:
    features = planted_partition(400, 512).features
    torch.testing.assert_close(
        features.double().norm(dim=1), torch.ones(400, dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_dot_products_of_exact_rows_are_exact_in_float32() -> None:
    features = planted_partition(400, 512, exact=True).features
    assert torch.equal((features @ features.T).double(), features.double() @ features.double().T)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(400), rtol=0, atol=2e-3)


def test_sizes_of_identities_have_a_heavy_tail() -> None:
    identities = planted_partition(20_000, 2, outliers=0).identities
    sizes = identities.bincount()
    assert sizes.sum() == 20_000
    # The last identity has what is left.
    assert int((sizes < 4).sum()) <= 1
    assert 100 < int(sizes.max()) <= 300
    assert 14 < float(sizes.double().mean()) < 21
    assert float((sizes < 8).double().mean()) == pytest.approx(0.5, abs=0.05)


def test_outliers_are_single_and_identities_are_numbered_without_gaps() -> None:
    identities = planted_partition(5_000, 2, outliers=0.2).identities
    sizes = identities.bincount()
    assert int((sizes == 1).sum()) in (1_000, 1_001)
    assert int(sizes.min()) == 1


def test_identities_are_in_random_order() -> None:
    identities = planted_partition(5_000, 2).identities
    assert int((identities[1:] == identities[:-1]).sum()) < 100


def test_an_identity_is_seen_by_several_cameras() -> None:
    planted = planted_partition(5_000, 2, cameras=5, outliers=0)
    assert set(planted.cameras.tolist()) == set(range(5))
    large = (planted.identities.bincount() >= 20).nonzero()[:, 0]
    assert len(large) > 30
    assert all(
        len(planted.cameras[planted.identities == identity].unique()) >= 2 for identity in large
    )
    assert planted_partition(50, 2, cameras=1).cameras.unique().tolist() == [0]


def test_images_of_an_identity_are_nearer_under_one_camera() -> None:
    planted = planted_partition(1_500, 512)
    similarity = planted.features @ planted.features.T
    similarity.fill_diagonal_(torch.nan)
    same = planted.identities[:, None] == planted.identities
    together = planted.cameras[:, None] == planted.cameras
    mean = {
        (a, b): float(similarity[(same == a) & (together == b)].nanmean())
        for a in (0, 1)
        for b in (0, 1)
    }
    assert mean[1, 1] > mean[1, 0] + 0.02 > mean[0, 1] + 0.1
    assert mean[0, 1] > mean[0, 0]


def test_dbscan_finds_what_was_planted() -> None:
    planted = planted_partition(3_000, 512, exact=True)
    labels = dbscan(jaccard_graph(planted.features, 30, 6, 0.6), 0.6)
    scores = pair_scores(labels, planted.identities)
    assert scores.precision > 0.9
    assert scores.recall > 0.5
    single = planted.identities.bincount()[planted.identities] == 1
    assert float((labels[single] < 0).double().mean()) > 0.7


@pytest.mark.parametrize("outliers", [0.0, 1.0])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_small_numbers_of_images_are_possible(n: int, outliers: float) -> None:
    planted = planted_partition(n, 3, outliers=outliers)
    assert planted.features.shape == (n, 3)
    assert planted.identities.shape == planted.cameras.shape == (n,)
    assert bool(planted.features.isfinite().all())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", -1),
        ("dim", 0),
        ("sizes", (0, 3)),
        ("sizes", (4, 3)),
        ("cameras", 0),
        ("spread", -0.1),
        ("spread", float("nan")),
        ("camera_shift", float("inf")),
        ("outliers", 1.1),
        ("seed", -1),
    ],
)
def test_an_argument_outside_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: got"):
        planted_partition(**{"n": 10, "dim": 4, **{name: value}})
