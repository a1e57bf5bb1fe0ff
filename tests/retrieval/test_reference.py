"""What a sample of known identities says of fresh queries, in smaller and larger galleries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.data.records import Record
from fastreid_al.retrieval.probability import calibration_error
from fastreid_al.retrieval.reference import (
    PER_IDENTITY,
    Searched,
    Sureness,
    learn_sureness,
    matches_per_query,
    sample_images,
    search_sample,
)
from fastreid_al.synthetic import planted_partition


def records_of(identities: Tensor, cameras: Tensor) -> list[Record]:
    path = Path("x")
    pairs = zip(identities.tolist(), cameras.tolist(), strict=True)
    return [Record(path, identity, camera) for identity, camera in pairs]


class Planted:
    """Features of two disjoint sets of identities: a sample, and fresh ones."""

    def __init__(self) -> None:
        made = planted_partition(24_000, 64, sizes=(4, 30), outliers=0.0, spread=1.2, seed=3)
        self.features, self.identities, self.cameras = made
        known = self.identities < 500
        labelled = torch.where(known, self.identities, -1)
        self.sample = torch.tensor(sample_images(records_of(labelled, self.cameras)))
        self.fresh = (~known).nonzero()[:, 0]

    def learn(self, gallery: int, rate: float, seed: int = 0) -> Sureness:
        labels = self.identities[self.sample], self.cameras[self.sample]
        return learn_sureness(self.features[self.sample], *labels, gallery, rate, seed=seed)

    def fresh_best(self, gallery: int) -> Tensor:
        """Best similarity of 600 fresh queries in a gallery without their identities."""
        ordered = self.fresh[self.identities[self.fresh].argsort(stable=True)]
        first = torch.ones(len(ordered), dtype=torch.bool)
        first[1:] = self.identities[ordered].diff() != 0
        queries = ordered[first][:600]
        others = self.fresh[~torch.isin(self.identities[self.fresh], self.identities[queries])]
        # A random part: rows of the planted set are in random order.
        bank = self.features[others[:gallery]]
        assert len(bank) == gallery
        return (self.features[queries] @ bank.T).amax(1)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.mark.parametrize(("gallery", "rate"), [(500, 0.1), (2000, 0.05), (8000, 0.1)])
def test_the_false_match_rate_of_fresh_queries_lies_in_the_stated_interval(
    planted: Planted, gallery: int, rate: float
) -> None:
    """In eight divisions of the sample; an interval of 95 % may miss the rate in some."""
    best = planted.fresh_best(gallery)
    covered, rates = 0, []
    for seed in range(8):
        threshold = planted.learn(gallery, rate, seed).threshold
        assert threshold is not None
        errors = float((best >= threshold.similarity).double().mean())
        _, low, high = threshold.false_match.in_gallery(threshold.growth)
        covered += low <= errors <= high
        rates.append(errors)
    assert covered >= 6
    # The interval alone would be kept by a threshold that is far from what was asked.
    assert rate / 2 < np.mean(rates) < 1.5 * rate


def test_a_larger_gallery_has_a_higher_threshold(planted: Planted) -> None:
    thresholds = [planted.learn(size, 0.05).threshold for size in (200, 2000, 200_000)]
    similarity = [threshold.similarity for threshold in thresholds if threshold]
    assert len(similarity) == 3 and similarity == sorted(set(similarity))


def test_probabilities_are_calibrated_in_a_gallery_that_is_larger_than_the_sample(
    planted: Planted,
) -> None:
    learnt = planted.learn(len(planted.fresh), 0.05)
    assert learnt.probability is not None and learnt.error is not None and learnt.error < 0.02
    fresh = records_of(planted.identities[planted.fresh], planted.cameras[planted.fresh])
    found = search_sample(
        planted.features, planted.identities, planted.cameras, planted.fresh[:300], planted.fresh
    )
    matches = matches_per_query(fresh, same_camera=False)
    real = found.similarity.isfinite()
    similarity = found.similarity[real].numpy()
    same = found.same[real].numpy()
    stated = learnt.probability(similarity, matches, len(planted.fresh))
    assert calibration_error(stated, same) < 0.03
    # Without the change of the gallery's size it is not.
    wrong = learnt.probability(similarity, learnt.probability.matches, learnt.probability.others)
    assert calibration_error(wrong, same) > 2 * calibration_error(stated, same)


def test_too_few_identities_give_no_threshold() -> None:
    made = planted_partition(60, 16, sizes=(4, 4), outliers=0.0, seed=0)
    assert len(made.identities.unique()) == 15
    learnt = learn_sureness(*made, 1000, 0.01)
    assert learnt.threshold is None and learnt.images == 60
    one = torch.zeros(6, dtype=torch.int64)
    alone = learn_sureness(torch.eye(6), one, one, 10, 0.01)
    assert alone.probability is None and alone.threshold is None


@pytest.mark.parametrize("seed", range(6))
def test_a_gallery_of_one_image_has_a_threshold(seed: int) -> None:
    features = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.manual_seed(0)))
    cameras = torch.full((20,), -1)
    learnt = learn_sureness(features, torch.arange(20), cameras, 1, 0.01, seed=seed)
    assert learnt.threshold is not None
    assert np.isfinite(learnt.threshold.similarity)
    # The query whose own image is the gallery searched no other image.
    assert learnt.threshold.false_match.trials in (9, 10)


def test_the_sample_has_few_images_of_each_identity_and_many_cameras() -> None:
    identities = torch.tensor([0] * 50 + [1] * 3 + [-1] * 9)
    cameras = torch.arange(62) % 7
    rows = sample_images(records_of(identities, cameras))
    assert rows == sorted(set(rows)) and rows == sample_images(records_of(identities, cameras))
    assert (identities[rows] == 0).sum() == PER_IDENTITY and (identities[rows] == 1).sum() == 3
    assert len(set(cameras[[r for r in rows if r < 50]].tolist())) == PER_IDENTITY
    assert (identities[rows] >= 0).all()


@pytest.mark.parametrize("same_camera", [False, True])
def test_matches_are_counted_as_by_all_pairs(same_camera: bool) -> None:
    random = np.random.default_rng(0)
    identities = torch.from_numpy(random.integers(-1, 4, 40))
    cameras = torch.from_numpy(random.integers(-1, 3, 40))
    counts = []
    for i in range(40):
        if identities[i] >= 0:
            match = (identities == identities[i]) & (torch.arange(40) != i)
            if not same_camera:
                match &= (cameras != cameras[i]) | (cameras[i] == -1)
            counts.append(int(match.sum()))
    found = matches_per_query(records_of(identities, cameras), same_camera)
    assert found == pytest.approx(np.mean(counts))


def test_a_query_finds_neither_itself_nor_matches_of_its_camera() -> None:
    features = torch.nn.functional.normalize(torch.randn(30, 8), dim=1)
    identities, cameras = torch.arange(30) // 5, torch.arange(30) % 2
    found = search_sample(features, identities, cameras, torch.arange(30), torch.arange(30))
    assert isinstance(found, Searched)
    for query in range(30):
        other = identities != identities[query]
        similarity = features @ features[query]
        assert found.impostor[query] == pytest.approx(float(similarity[other].max()), abs=1e-6)
        counted = other | (cameras != cameras[query])
        assert found.best[query] == pytest.approx(float(similarity[counted].max()), abs=1e-6)
        assert found.matches[query] == int((counted & ~other).sum())
