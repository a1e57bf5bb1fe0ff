"""UCAL on a single process: clustering, questions, loss, state and messages."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from fastreid_al.active import QuestionRounds
from fastreid_al.annotators import Oracle
from fastreid_al.answers import Asker, Verdict
from fastreid_al.clustering import (
    average_linkage,
    dbscan,
    ivf_neighbours,
    jaccard_graph,
    self_paced_labels,
    standardise_by_camera,
    whiten_within_clusters,
)
from fastreid_al.config import BatchConfig, ClusterConfig, MemoryConfig, QuestionConfig
from fastreid_al.errors import SettingError, TrainingError
from fastreid_al.methods import UCAL
from fastreid_al.methods.collective_questions import CollectiveQuestions
from fastreid_al.methods.ucal import singleton_classes
from tests.support.features import clustered_features
from tests.support.graphs import scikit_learn_labels
from tests.support.ledgers import put

N = 200
FEATURES = torch.from_numpy(clustered_features(N, 15, spread=1.2)).float()
CAMERAS = torch.arange(N) % 4
BATCH = BatchConfig(size=16, per_identity=4, iterations=3)


def ucal(
    questions: QuestionRounds | None = None, memory: MemoryConfig | None = None, **cluster: object
) -> UCAL:
    settings = ClusterConfig(**{"k1": 15, **cluster})  # type: ignore[arg-type]
    collective = CollectiveQuestions(questions)
    return UCAL(CAMERAS, settings, BATCH, memory or MemoryConfig(), seed=0, questions=collective)


def test_base_clusters_the_features_and_makes_noise_singletons() -> None:
    method = ucal()
    facts = method.label_images(0, lambda: FEATURES)
    expected, threshold = self_paced_labels(jaccard_graph(FEATURES, 15))
    assert torch.equal(method.labels, expected)
    assert method.threshold == threshold
    assert facts["classes"] == facts["clusters"] + facts["alone"]
    alone = method.memory.classes[method.labels < 0]
    assert len(alone.unique()) == len(alone)
    assert int(alone.min()) == facts["clusters"]


def test_linkage_clusters_what_was_standardised_and_whitened() -> None:
    method = ucal(camera_norm="standardise", whiten=2, algorithm="linkage", join=0.3)
    method.label_images(0, lambda: FEATURES)
    features = standardise_by_camera(FEATURES, CAMERAS)
    for _ in range(2):
        labels = average_linkage(jaccard_graph(features, 15, max_distance=0.9), 0.3).labels
        features = whiten_within_clusters(features, labels)
    expected = average_linkage(jaccard_graph(features, 15, max_distance=0.9), 0.3).labels
    assert torch.equal(method.labels, expected)
    assert method.threshold is None


def test_dbscan_clusters_what_was_whitened_by_its_own_clusters() -> None:
    method = ucal(whiten=1)
    method.label_images(0, lambda: FEATURES)
    labels = dbscan(jaccard_graph(FEATURES, 15), 0.6)
    features = whiten_within_clusters(FEATURES, labels)
    expected, _ = self_paced_labels(jaccard_graph(features, 15))
    assert torch.equal(method.labels, expected)


def test_answers_are_cuts_in_the_clustering_of_later_epochs() -> None:
    identities = torch.arange(N) % 5
    asker = Asker(Oracle(identities))
    rounds = QuestionRounds(asker, "gain", QuestionConfig(start=0, per_epoch=30))
    method = ucal(rounds, algorithm="linkage", join=0.2)
    method.label_images(0, lambda: FEATURES)
    different = [a for a in asker.ledger.answers() if a.verdict is Verdict.DIFFERENT]
    assert different
    method.label_images(1, lambda: FEATURES)
    drafted = method.labels_before_questions
    assert drafted is not None
    for answer in different:
        assert drafted[answer.left] != drafted[answer.right] or drafted[answer.left] < 0


@pytest.mark.parametrize("algorithm", ["dbscan", "linkage"])
@pytest.mark.parametrize("asks", [False, True])
def test_images_of_a_track_have_one_label_in_every_epoch(asks: bool, algorithm: str) -> None:
    identities = torch.arange(N) % 5
    tracks = torch.where(torch.arange(N) < 60, identities, -1)
    questions = None
    if asks:
        asker = Asker(Oracle(identities), tracks=tracks)
        questions = QuestionRounds(asker, "gain", QuestionConfig(start=1, per_epoch=20))
    settings = ClusterConfig(k1=15, algorithm=algorithm, join=0.2)  # type: ignore[arg-type]
    collective = CollectiveQuestions(questions)
    method = UCAL(CAMERAS, settings, BATCH, MemoryConfig(), 0, collective, tracks=tracks)
    for epoch in range(3):
        method.label_images(epoch, lambda: FEATURES)
        for track in range(5):
            assert len(method.labels[tracks == track].unique()) == 1


@pytest.mark.parametrize("before", [False, True])
def test_answers_of_same_enter_before_the_clustering_if_set(before: bool) -> None:
    identities = torch.arange(N) % 5
    asker = Asker(Oracle(identities))
    config = QuestionConfig(start=0, per_epoch=40, must_links="before" if before else "compact")
    method = ucal(QuestionRounds(asker, "gain", config), algorithm="linkage", join=0.2)
    method.label_images(0, lambda: FEATURES)
    same = [a for a in asker.ledger.answers() if a.verdict is Verdict.SAME]
    assert same
    method.label_images(1, lambda: FEATURES)
    drafted = method.labels_before_questions
    assert drafted is not None
    together = [bool(drafted[a.left] == drafted[a.right] >= 0) for a in same]
    assert all(together) == before


def test_a_track_that_answers_divide_does_not_enter_the_clustering_as_one() -> None:
    tracks = torch.full((N,), -1)
    tracks[:4] = 0
    asker = Asker(Oracle(torch.arange(N)), tracks=tracks)
    rounds = QuestionRounds(asker, "gain", QuestionConfig(start=0))
    groups = rounds.must_links(0, FEATURES)
    assert groups is not None and groups[:5].tolist() == [0, 0, 0, 0, -1]
    put(asker.ledger, 1, 3, Verdict.DIFFERENT)
    groups = rounds.must_links(0, FEATURES)
    assert groups is not None and groups[0] == groups[1] == groups[2] != groups[3]
    with pytest.raises(ValueError, match="tracks: got 200, expected 100, one per image"):
        rounds.must_links(0, FEATURES[:100])


def test_too_few_clusters_of_linkage_are_explained_by_its_own_setting() -> None:
    method = ucal(algorithm="linkage", join=1.0, noise="drop")
    with pytest.raises(TrainingError, match=r"a larger `cluster\.join` or a smaller"):
        method.label_images(0, lambda: FEATURES)
    far_apart = torch.nn.functional.normalize(torch.randn(N, 256))
    with pytest.raises(TrainingError, match=r"no cluster .* a smaller `cluster\.join` finds more"):
        method.label_images(0, lambda: far_apart)


def test_dropped_noise_is_never_drawn() -> None:
    method = ucal(noise="drop", eps=0.4)
    method.label_images(0, lambda: FEATURES)
    assert (method.labels < 0).any()
    rows = torch.cat(list(method.batches(0)))
    assert (method.labels[rows] >= 0).all()


def test_memory_is_clustered_after_the_first_epoch() -> None:
    method = ucal()
    calls: list[int] = []

    def extract() -> Tensor:
        calls.append(1)
        return FEATURES

    for epoch in range(3):
        method.label_images(epoch, extract)
    assert len(calls) == 1
    fresh = ucal(source="extract", memory=MemoryConfig(kind="cluster"))
    for epoch in range(3):
        fresh.label_images(epoch, extract)
    assert len(calls) == 4


def test_threshold_is_fixed_at_the_first_clustering() -> None:
    method = ucal(source="extract")
    method.label_images(0, lambda: FEATURES)
    first = method.threshold
    method.label_images(
        1, lambda: torch.from_numpy(clustered_features(N, 15, spread=0.9, seed=4)).float()
    )
    assert method.threshold == first


def test_questions_refine_the_clusters_from_their_epoch_on() -> None:
    identities = torch.arange(N) % 5
    asker = Asker(Oracle(identities))
    method = ucal(QuestionRounds(asker, "gain", QuestionConfig(start=2, per_epoch=20)))
    base = ucal()
    for epoch in range(4):
        facts = method.label_images(epoch, lambda: FEATURES)
        base.label_images(epoch, lambda: FEATURES)
        if epoch < 2:
            assert torch.equal(method.labels, base.labels)
            assert method.labels_before_questions is None
            assert "questions" not in facts
        else:
            assert torch.equal(method.labels_before_questions, base.labels)
            assert (facts["questions"], facts["questions_total"]) == (20, 20 * (epoch - 1))
            assert facts["share_total"] == facts["questions_total"] / (N * (N - 1) / 2)
        assert torch.equal(
            method.memory.classes[method.labels >= 0], method.labels[method.labels >= 0]
        )
    for answer in asker.ledger.answers():
        together = method.labels[answer.left] == method.labels[answer.right] >= 0
        assert bool(together) == (answer.verdict is Verdict.SAME)


def test_loss_falls_when_features_move_along_its_gradient() -> None:
    method = ucal()
    method.label_images(0, lambda: FEATURES)
    rows = next(iter(method.batches(0)))
    features = FEATURES[rows].clone().requires_grad_()
    before = method.loss(features, rows)
    before.backward()
    after = method.loss(torch.nn.functional.normalize(FEATURES[rows] - 0.01 * features.grad), rows)
    assert after < before


def test_state_continues_bit_for_bit() -> None:
    first = ucal()
    first.label_images(0, lambda: FEATURES)
    first.update(FEATURES[10:26], torch.arange(16))
    other = ucal()
    other.load_state_dict(first.state_dict())
    assert first.label_images(1, lambda: FEATURES) == other.label_images(1, lambda: FEATURES)
    assert torch.equal(first.labels, other.labels)
    assert all(torch.equal(a, b) for a, b in zip(first.batches(1), other.batches(1), strict=True))


def test_all_noise_with_dropping_says_what_to_change() -> None:
    with pytest.raises(
        TrainingError, match=r"epoch 1: no cluster .*`cluster.eps` .*`cluster.noise` singleton"
    ):
        ucal(noise="drop", min_samples=100).label_images(0, lambda: FEATURES)


def test_all_noise_with_singletons_trains() -> None:
    facts = ucal(min_samples=100).label_images(0, lambda: FEATURES)
    assert (facts["clusters"], facts["classes"]) == (0, N)


def test_one_single_cluster_says_what_to_change() -> None:
    same = torch.from_numpy(clustered_features(30, 1, spread=0.01)).float()
    with pytest.raises(TrainingError, match=r"one single cluster among 30 images.*`cluster.eps`"):
        UCAL(CAMERAS[:30], ClusterConfig(), BATCH, MemoryConfig(), 0).label_images(0, lambda: same)


def test_collapsed_features_are_named() -> None:
    with pytest.raises(TrainingError, match=r"all 200 images have one and the same feature"):
        ucal().label_images(0, lambda: torch.ones(N, 4) / 2)


def test_features_that_are_not_finite_are_counted() -> None:
    broken = FEATURES.clone()
    broken[3:5] = torch.nan
    with pytest.raises(TrainingError, match="features of 2 of 200 images are not finite"):
        ucal().label_images(0, lambda: broken)


def test_a_cluster_memory_cannot_be_clustered() -> None:
    with pytest.raises(SettingError, match=r"`cluster.source`: got 'memory', expected extract"):
        ucal(memory=MemoryConfig(kind="cluster"))


def test_dbscan_of_another_library_gives_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ucal()
    expected.label_images(0, lambda: FEATURES)
    # The package's function of this name hides its module.
    module = sys.modules["fastreid_al.clustering.dbscan"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # scikit-learn stands in for cuML, which needs a GPU.
    monkeypatch.setattr(
        module,
        "_by_cuml",
        lambda graph, eps, min_samples: torch.from_numpy(
            scikit_learn_labels(graph, eps.tolist(), min_samples)
        ),
    )
    for own in ("_by_extension", "_by_pointer_jumping"):
        monkeypatch.setattr(module, own, lambda *_: pytest.fail("cuml was chosen"))
    got = ucal(dbscan="cuml")
    got.label_images(0, lambda: FEATURES)
    assert torch.equal(got.labels, expected.labels)


def test_dbscan_that_cannot_run_is_refused_before_the_first_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"cluster.dbscan.*: 'cuml' is not installed; pip install"):
        ucal(dbscan="cuml")


def test_approximate_neighbours_are_clustered_and_their_recall_is_said() -> None:
    pytest.importorskip("faiss")
    method = ucal(neighbours="ivf")
    facts = method.label_images(0, lambda: FEATURES)
    neighbours, recall = ivf_neighbours(FEATURES, 15)
    assert facts["neighbours_recall"] == recall >= 0.98
    graph = jaccard_graph(FEATURES, 15, neighbours=neighbours)
    assert torch.equal(method.labels, self_paced_labels(graph)[0])
    assert "neighbours_recall" not in ucal().label_images(0, lambda: FEATURES)


def test_an_approximate_search_that_is_not_installed_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        TrainingError,
        match=r"epoch 1: `cluster.neighbours` ivf: .*pip install 'fastreid_al\[ivf\]'",
    ):
        ucal(neighbours="ivf").label_images(0, lambda: FEATURES)


def test_singletons_are_numbered_after_the_clusters() -> None:
    assert singleton_classes(torch.tensor([1, -1, 0, -1])).tolist() == [1, 2, 0, 3]
    assert singleton_classes(torch.tensor([-1, -1])).tolist() == [0, 1]
