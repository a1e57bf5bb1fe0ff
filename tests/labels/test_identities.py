"""Identities agree with every answer in force, and with the clusters where no answer speaks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastreid_al.answers import Closure, Ledger, Verdict
from fastreid_al.config import ClusterConfig, QuestionConfig
from fastreid_al.labels import Identities, identities_by_answers
from fastreid_al.labels.identities import answered_images, changed_images, component_sizes
from fastreid_al.methods.cluster_images import cluster_images
from fastreid_al.synthetic.features import planted_partition
from tests.support.ledgers import put

N = 80
#: A seed whose answers are about images of the whole set.
WHOLE = 5


def fill(ledger: Ledger, seed: int, count: int, error: float, identities: Tensor) -> None:
    """Random answers, some of them wrong, undecided, undone, about a few images or about many."""
    draw = random.Random(seed)
    images = draw.sample(range(N), draw.choice([12, N]))
    for _ in range(count):
        a, b = draw.sample(images, 2)
        same = bool(identities[a] == identities[b]) != (draw.random() < error)
        verdict = Verdict.SAME if same else Verdict.DIFFERENT
        if draw.random() < 0.1:
            verdict = draw.choice([Verdict.UNSURE, Verdict.NOT_COMPARABLE])
        event = put(ledger, a, b, verdict, need=draw.choice([1, 1, 2]))
        if draw.random() < 0.05:
            ledger.undo(event, "anna")


def found(
    seed: int, count: int, error: float, config: QuestionConfig, algorithm: str = "dbscan"
) -> Identities:
    features, identities, cameras = planted_partition(N, 16, sizes=(3, 12), spread=1.0, seed=seed)
    settings = ClusterConfig(k1=8, k2=2, eps=0.5, join=0.2)
    settings = replace(settings, algorithm=algorithm)  # type: ignore[arg-type]

    def cluster(cannot_links: Tensor | None, must_links: Tensor | None) -> tuple[Tensor, Tensor]:
        result = cluster_images(
            features, cameras, settings, None, cannot_links, must_links=must_links
        )
        return result.labels, result.features

    with Ledger.open("sqlite://") as ledger:
        fill(ledger, seed, count, error, identities)
        links = algorithm == "linkage"
        return identities_by_answers(features, cluster, ledger, config, links)


def check(result: Identities) -> None:
    """Every must-link component has one identity, and every cannot-link pair two."""
    closure = result.closure
    for root, images in closure.components().items():
        labels = set(result.identities[images].tolist())
        assert len(labels) == 1
        if len(images) > 1:
            assert labels != {-1}
        for other in closure.cannot_links(root):
            against = set(result.identities[closure.components()[other]].tolist())
            assert not (labels & against) - {-1}


@pytest.mark.parametrize("algorithm", ["dbscan", "linkage"])
@pytest.mark.parametrize("error", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_components_have_one_identity_and_cannot_links_two(
    seed: int, error: float, algorithm: str
) -> None:
    check(found(seed, 20 * (seed + 1), error, QuestionConfig(), algorithm))


@pytest.mark.parametrize(
    "config",
    [
        QuestionConfig(expected_error=0.1),
        QuestionConfig(expected_error=None),
        QuestionConfig(closure="none"),
    ],
    ids=["expected error", "estimated error", "no closure"],
)
@pytest.mark.parametrize("seed", range(4))
def test_weighed_and_plain_answers_hold_as_well(seed: int, config: QuestionConfig) -> None:
    result = found(seed, 60, 0.2, config)
    check(result)
    if config.expected_error == 0:
        assert not result.doubted
    elif seed == 1:  # answers about twelve images, which contradict each other
        assert result.doubted


def test_answers_bring_the_identities_closer_to_the_truth() -> None:
    truth = planted_partition(N, 16, sizes=(3, 12), spread=1.0, seed=WHOLE).identities

    def wrong(labels: Tensor) -> int:
        together = (labels[:, None] == labels) & (labels[:, None] >= 0)
        return int((together != (truth[:, None] == truth)).sum())

    result = found(WHOLE, 600, 0.0, QuestionConfig())
    assert wrong(result.identities) < wrong(result.clusters) / 2


def test_without_answers_identities_are_the_clusters() -> None:
    result = found(0, 0, 0.0, QuestionConfig())
    assert torch.equal(result.identities, result.clusters) and result.clusters.max() > 0
    assert not changed_images(result.clusters, result.identities).any()


def test_nothing_is_asked_or_written(tmp_path: Path) -> None:
    url = str(tmp_path / "answers.sqlite")
    with Ledger.open(url) as ledger:
        put(ledger, 0, 1)
        # Another connection holds the ledger as its writer.
        with Ledger.open(url, write=False) as reader:
            features = torch.eye(4)
            clusters = torch.tensor([0, 0, 1, 1])
            result = identities_by_answers(
                features, lambda *_: (clusters, features), reader, QuestionConfig(budget=9)
            )
        assert ledger.last_event() == 1
    assert result.identities.tolist() == [0, 0, 1, 1]


def test_sources_follow_from_the_answers() -> None:
    clusters = torch.tensor([0, 0, 0, 1, 1, 2, 2, -1, -1])
    with Ledger.open("sqlite://") as ledger:
        put(ledger, 0, 3)  # joins clusters 0 and 1
        put(ledger, 5, 6, Verdict.DIFFERENT)  # divides cluster 2
        put(ledger, 7, 8, Verdict.UNSURE)
        features = torch.eye(9)
        result = identities_by_answers(
            features, lambda *_: (clusters, features), ledger, QuestionConfig()
        )
    assert result.identities.tolist() == [0, 0, 0, 0, 0, -1, -1, -1, -1]
    answered = answered_images(result.closure, 9)
    assert answered.nonzero()[:, 0].tolist() == [0, 3]
    changed = changed_images(clusters, result.identities)
    assert changed.tolist() == [True] * 7 + [False] * 2
    assert component_sizes(result.closure, 9).tolist() == [2, 1, 1, 2, 1, 1, 1, 1, 1]


def test_a_component_without_answers_has_one_image() -> None:
    assert component_sizes(Closure(), 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize("algorithm", ["dbscan", "linkage"])
@pytest.mark.parametrize("answers", [0, 60])
def test_images_of_a_track_have_one_identity_unless_answers_divide_it(
    answers: int, algorithm: str
) -> None:
    features, identities, cameras = planted_partition(N, 16, sizes=(3, 12), spread=1.0, seed=WHOLE)
    tracks = identities * 10 + cameras
    settings = replace(ClusterConfig(k1=8, k2=2, eps=0.5, join=0.2), algorithm=algorithm)  # type: ignore[arg-type]

    def cluster(cannot_links: Tensor | None, must_links: Tensor | None) -> tuple[Tensor, Tensor]:
        result = cluster_images(
            features, cameras, settings, None, cannot_links, must_links=must_links
        )
        return result.labels, result.features

    with Ledger.open("sqlite://") as ledger:
        fill(ledger, WHOLE, answers, 0.0, identities)
        a, b = (tracks == tracks.mode().values).nonzero()[:2, 0].tolist()
        if answers:
            put(ledger, a, b, Verdict.DIFFERENT)
        links = algorithm == "linkage"
        result = identities_by_answers(features, cluster, ledger, QuestionConfig(), links, tracks)
    check(result)
    divided = int(tracks[a]) if answers else None
    for track in tracks.unique().tolist():
        if track != divided:
            assert len(result.identities[tracks == track].unique()) == 1
    assert bool(result.identities[a] == result.identities[b] >= 0) == (not answers)
