"""Images that are marked for a look are those whose identity is likely to be wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastreid_al.answers import Answer, Closure, Verdict
from fastreid_al.config import ClusterConfig
from fastreid_al.labels.margins import Margins
from fastreid_al.labels.review import close_to_another, contradicted_images, weakly_joined
from fastreid_al.methods.cluster_images import cluster_images
from fastreid_al.synthetic.features import planted_partition

SAME, DIFFERENT = Verdict.SAME, Verdict.DIFFERENT


def lift(wrong: Tensor, marked: Tensor, inside: Tensor) -> float:
    """How many times more frequent wrong images are among the marked ones than among all."""
    wrong, marked = wrong[inside].double(), marked[inside]
    assert marked.any() and wrong.any()
    return float(wrong[marked].mean() / wrong.mean())


def minority(labels: Tensor, identities: Tensor) -> Tensor:
    """Whether each image is of another identity than most images of its cluster."""
    wrong = torch.zeros(len(labels), dtype=torch.bool)
    for cluster in labels[labels >= 0].unique():
        rows = (labels == cluster).nonzero()[:, 0]
        wrong[rows] = identities[rows] != identities[rows].mode().values
    return wrong


@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_images_with_a_wrong_identity_are_found(spread: float) -> None:
    planted = planted_partition(1500, 64, sizes=(4, 40), outliers=0, spread=spread, seed=1)
    labels = planted.identities.clone()
    moved = torch.randperm(len(labels))[:75]
    labels[moved] = (labels[moved] + 1) % (int(labels.max()) + 1)
    wrong = labels != planted.identities
    marked = close_to_another(Margins(planted.features, labels).margin)
    assert lift(wrong, marked, labels >= 0) > 3
    assert marked[wrong].double().mean() > 0.9


@pytest.mark.parametrize("algorithm", ["dbscan", "linkage"])
def test_images_in_the_wrong_cluster_are_found(algorithm: str) -> None:
    planted = planted_partition(1500, 64, sizes=(4, 40), outliers=0.05, spread=1.0, seed=1)
    config = ClusterConfig(algorithm=algorithm, k1=12, k2=3, eps=0.55, join=0.2)  # type: ignore[arg-type]
    labels = cluster_images(planted.features, planted.cameras, config).labels
    marked = close_to_another(Margins(planted.features, labels).margin)
    wrong = minority(labels, planted.identities)
    assert lift(wrong, marked, labels >= 0) > 3
    assert marked[wrong].double().mean() > 0.3


def test_contradicted_and_doubted_answers_are_marked() -> None:
    answers = [Answer(1, 0, 1, SAME), Answer(2, 1, 2, SAME), Answer(3, 0, 2, DIFFERENT)]
    closure = Closure.replay([*answers, Answer(4, 5, 6, SAME)])
    marked = contradicted_images(closure, [Answer(9, 7, 8, SAME)], 10)
    assert marked.nonzero()[:, 0].tolist() == [0, 1, 2, 7, 8]


def test_clusters_that_one_unlikely_answer_joins_are_marked() -> None:
    clusters = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, -1])
    answers = [
        *(Answer(1, 0, 2, SAME), Answer(2, 1, 3, SAME)),  # two answers
        Answer(3, 3, 4, SAME),  # one answer that the features support
        Answer(4, 5, 6, SAME),  # one that they do not
        Answer(5, 7, 8, SAME),  # with an image outside every cluster
    ]
    said = {(0, 2): 0.1, (1, 3): 0.1, (3, 4): 0.6, (5, 6): 0.1, (7, 8): 0.1}
    marked = weakly_joined(clusters, Closure.replay(answers), said)
    assert marked.nonzero()[:, 0].tolist() == [5, 6]


def test_a_close_image_is_judged_by_the_margins_of_all() -> None:
    margins = torch.tensor([0.5, 0.5, 0.5, 0.14, -0.1, torch.nan], dtype=torch.float64)
    assert close_to_another(margins).tolist() == [False, False, False, True, True, False]
    assert not close_to_another(margins + 0.2)[3]
    assert close_to_another(-margins.abs()).tolist() == [True] * 5 + [False]
    assert not close_to_another(torch.full((3,), torch.nan)).any()
