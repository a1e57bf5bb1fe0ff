"""NNCT against its loop-by-loop reference, and both against cases worked by hand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al.config import BatchConfig, NNCTConfig
from fastreid_al.errors import CheckpointError, SettingError
from fastreid_al.methods import NNCT
from tests.support import references_nnct as reference
from tests.support.features import clustered_features, unit
from tests.support.references_nnct import Settings


def nnct(
    n: int,
    k: int = 1,
    size: int = 4,
    epochs: int = 10,
    seed: int = 0,
    iterations: int = 0,
    layout: str = "auto",
    **settings: Any,
) -> NNCT:
    batch = BatchConfig(size=size, iterations=iterations)
    return NNCT(n, k, NNCTConfig(**settings), batch, epochs, seed, layout=layout)


def begin(method: NNCT, epoch: int) -> dict[str, float]:
    return method.label_images(epoch, lambda: pytest.fail("no pass over the images is needed"))


def iterate(method: NNCT, embeddings: np.ndarray, rows: list[int]) -> tuple[float, np.ndarray]:
    """One iteration as the loop makes it; gives the loss and its gradient."""
    values, chosen = torch.from_numpy(embeddings).requires_grad_(), torch.tensor(rows)
    loss = method.loss(values, chosen)
    loss.backward()
    method.update(values.detach(), chosen)
    assert loss.ndim == 0 and values.grad is not None
    return loss.item(), values.grad.numpy()


def loss_of(method: NNCT, features: np.ndarray, rows: list[int]) -> float:
    return method.loss(torch.from_numpy(features), torch.tensor(rows)).item()


def lists(indptr: Tensor, indices: Tensor) -> list[list[int]]:
    return [indices[start:end].tolist() for start, end in pairwise(indptr.tolist())]


def planted(memory: np.ndarray, k: int = 0, epochs: int = 10, **settings: Any) -> NNCT:
    """NNCT in epoch 1, of several labels, with this feature memory and the identity as label
    memory.
    """
    n = len(memory)
    method = nnct(n, k, size=n, epochs=epochs, **{"single_label": 1, **settings})
    begin(method, 0)
    iterate(method, memory, list(range(n)))
    assert np.allclose(method.memory.bank.numpy(), memory, rtol=0, atol=1e-15)
    begin(method, 1)
    return method


def remember(method: NNCT, labels: dict[int, list[int]]) -> None:
    """Write labels into the label memory."""
    for image, some in labels.items():
        method.label_memory.update(
            torch.tensor([image]), torch.tensor([0, len(some)]), torch.tensor(some)
        )


def check_labels(
    memory: np.ndarray, i: int, expected: set[int], threshold: float = 0.6, at_least: int = 10
) -> None:
    """The labels of image i by the reference and by NNCT."""
    assert reference.predict_labels(memory, i, threshold, at_least) == expected
    method = planted(memory, threshold=threshold, at_least=at_least)
    loss_of(method, memory[[i]], [i])
    assert lists(*method.label_memory.lookup(torch.tensor([i]))) == [sorted(expected)]


def circle(*degrees: float) -> np.ndarray:
    """Unit vectors at these angles.

    Similarities fall with the angle between; above 0.6 is below 53.13 degrees.
    """
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


#: Around x, four vectors of similarity 0.75 to it and 0 to the first image. All numbers are exact
#: in binary.
FIRST = [1, 0, 0, 0, 0, 0, 0, 0]
X = [0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]
CROWD_OF_X = [[0, 0.5, 0.5, 0.5, *(0.5 * (j == place) for j in range(4))] for place in range(4)]


def test_settings_are_those_of_the_notes() -> None:
    ours = NNCTConfig()
    assert {name: getattr(ours, name) for name in Settings._fields} == Settings()._asdict()


# Whole runs in lock-step with the reference.

RUNS = [
    # neighbours_k, seed, n, clusters, images named twice in a batch, settings
    (0, 0, 60, 6, False, {"single_label": 1}),
    (0, 1, 150, 9, True, {"single_label": 0, "hard_ratio": 0.05}),
    (1, 2, 60, 6, True, {"single_label": 1}),
    (1, 3, 120, 6, False, {"single_label": 1, "hard_ratio": 0.1, "delta": 3.0}),
    (2, 4, 90, 7, True, {"single_label": 2, "lambda_n": 0.8}),
    (2, 5, 47, 5, False, {"single_label": 1, "at_least": 3, "layout": "sparse"}),
    (3, 6, 150, 9, False, {"single_label": 1, "threshold": 0.5, "momentum": 0.8}),
    (3, 7, 40, 4, True, {"single_label": 0, "at_least": 2}),
]


@pytest.mark.parametrize(("k", "seed", "n", "clusters", "twice", "changed"), RUNS)
def test_whole_runs_follow_the_reference(
    k: int, seed: int, n: int, clusters: int, twice: bool, changed: dict[str, Any]
) -> None:
    epochs, size, dim = 4, 12, 8 + seed
    random = np.random.default_rng(seed)
    images = clustered_features(n, clusters, dim=dim, spread=0.6, seed=seed)
    settings = Settings(**{name: value for name, value in changed.items() if name != "layout"})
    method = nnct(n, k, size, epochs, seed, **changed)
    memory: np.ndarray = np.zeros((n, dim))
    label_memory = [{i} for i in range(n)]
    seen = {"several": 0, "stopped": 0, "of others": 0, "up to date": 0, "in the batch": 0}
    for epoch in range(epochs):
        begin(method, epoch)
        for batch in method.batches(epoch):
            rows = batch.tolist()
            if twice:
                rows[-2:] = [rows[0], rows[3]]
            moved = images[rows] + 0.3 * random.normal(size=(size, dim)) / np.sqrt(dim)
            embeddings = moved * random.uniform(0.3, 4.0, size=(size, 1))
            expected = reference.step(
                memory, label_memory, unit(embeddings), rows, epoch, epochs, k, settings
            )
            loss, gradient = iterate(method, embeddings, rows)
            assert loss == pytest.approx(expected.loss, abs=1e-10)
            wanted = reference.before_normalisation(expected.gradient, embeddings)
            assert np.abs(gradient - wanted).max() <= 1e-6 * np.abs(wanted).max()
            assert method.memory.bank.dtype == torch.float64
            assert np.allclose(method.memory.bank.numpy(), expected.memory, rtol=0, atol=1e-12)
            assert lists(*method.label_memory.local_lists()) == [
                sorted(labels) for labels in expected.label_memory
            ]

            for i, labels, near in zip(rows, expected.labels, expected.neighbours, strict=True):
                assert len(labels) <= n // 2
                seen["several"] += len(labels) > 1
                seen["stopped"] += (
                    1 < len(labels) < reference.count_above(memory, i, settings.threshold)
                )
                seen["of others"] += any(expected.label_memory[e] != labels for e in near)
                seen["in the batch"] += any(e in rows for e in near)
                seen["up to date"] += any(expected.label_memory[e] != label_memory[e] for e in near)
            memory, label_memory = expected.memory, expected.label_memory
    # The run has met what it is to tell apart.
    assert all(seen[what] > 0 for what in (seen if k else ("several", "stopped"))), seen


def test_the_reference_s_gradient_is_its_difference_quotient() -> None:
    random = np.random.default_rng(0)
    memory = clustered_features(40, 5, dim=8, spread=0.6, seed=3)
    embeddings = 1.7 * (memory[:3] + 0.1 * random.normal(size=(3, 8)))
    label_memory = [{i, (i + 7) % 40} for i in range(40)]

    def loss(x: np.ndarray) -> float:
        settings = Settings(single_label=0, hard_ratio=0.1)
        return reference.step(memory, label_memory, unit(x), [0, 1, 2], 3, 4, 2, settings).loss

    whole = reference.step(
        memory,
        label_memory,
        unit(embeddings),
        [0, 1, 2],
        3,
        4,
        2,
        Settings(single_label=0, hard_ratio=0.1),
    )
    got = reference.before_normalisation(whole.gradient, embeddings)
    for place in np.ndindex(3, 8):
        nudge = np.zeros((3, 8))
        nudge[place] = 1e-6
        quotient = (loss(embeddings + nudge) - loss(embeddings - nudge)) / 2e-6
        assert got[place] == pytest.approx(quotient, abs=1e-7)


def test_an_epoch_of_one_label_leaves_the_label_memory_and_looks_at_no_neighbour() -> None:
    memory = circle(0, 10, 20, 30, 180, 190)
    method = planted(memory, k=2, single_label=6, epochs=60)
    for epoch in (1, 5):
        begin(method, epoch)
        # (1 - 1)^2 of itself, and (1 + cos 10)^2 of the nearest other.
        assert loss_of(method, memory[[0, 3]], [0, 3]) == pytest.approx(
            (1 + np.cos(np.deg2rad(10))) ** 2
        )
        assert lists(*method.label_memory.local_lists()) == [[i] for i in range(6)]
    begin(method, 6)
    loss_of(method, memory[[0, 3]], [0, 3])
    assert lists(*method.label_memory.local_lists()) == [
        [0, 1, 2, 3],
        [1],
        [2],
        [0, 1, 2, 3],
        [4],
        [5],
    ]


# MPLP: labels worked by hand.


def test_the_walk_stops_at_the_first_candidate_that_fails() -> None:
    # Image 2, at 50 degrees, has 6 images and itself nearer than image 0, more than K = 4. Image 3
    # would pass again.
    memory = circle(0, 10, -50, 52, -54, -56, -58, -60, -62, -64)
    check_labels(memory, 0, {0, 1}, at_least=1)
    check_labels(np.delete(memory, range(4, 10), axis=0), 0, {0, 1, 2, 3}, at_least=1)


def test_a_candidate_in_whose_list_the_image_has_rank_k_passes_and_the_next_fails() -> None:
    # k_t = K = 3. Nearer to image 2 than image 0: itself and the images behind it.
    check_labels(circle(0, 10, -50, -54, -56), 0, {0, 1, 2}, at_least=1)
    check_labels(circle(0, 10, -50, -54, -56, -58), 0, {0, 1}, at_least=1)


def test_labels_are_the_candidates_above_the_threshold_alone() -> None:
    # All ten candidates pass, three are above t.
    check_labels(circle(0, 10, 20, *range(55, 95, 5)), 0, {0, 1, 2})


def test_an_image_has_ten_candidates_at_least() -> None:
    # Image 0 has rank 7 in the list of image 2: above k_t = 3, not above 10.
    memory = circle(0, 10, -50, -54, -56, -58, -60, -62, -64, 150, 160, 170, 180)
    check_labels(memory, 0, {0, 1}, at_least=1)
    check_labels(memory, 0, {0, 1, 2}, at_least=10)


def test_a_set_smaller_than_the_least_number_of_candidates_is_walked_whole() -> None:
    check_labels(circle(0, 10, 20, 180), 0, {0, 1, 2}, at_least=10)


@pytest.mark.parametrize(("threshold", "expected"), [(0.25, {0, 1}), (0.5, {0}), (0.75, {0})])
def test_the_first_neighbour_is_accepted_though_it_fails_if_it_is_above_the_threshold(
    threshold: float, expected: set[int]
) -> None:
    # Image 1 has similarity 0.5, and 5 images are more similar to it than image 0 is, above K = 2
    # or 1.
    check_labels(np.array([FIRST, X, *CROWD_OF_X]), 0, expected, threshold, at_least=1)


def test_the_second_neighbour_is_not_accepted_when_the_first_fails() -> None:
    # Image 1 fails, image 2 would pass.
    check_labels(circle(0, 48, -50, 54, 56, 58, 60, 62), 0, {0, 1}, at_least=1)


def test_equal_candidates_are_walked_from_the_lowest_index() -> None:
    # Images 1 and 2 have similarity 0.5; image 0 has rank 5 in the list of X, above K = 3, and 1 in
    # that of the other.
    other = [0.5, 0, 0, 0, 0.5, 0.5, 0.5, 0]
    check_labels(np.array([FIRST, X, other, *CROWD_OF_X]), 0, {0, 1}, 0.25, at_least=1)
    check_labels(np.array([FIRST, other, X, *CROWD_OF_X]), 0, {0, 1}, 0.25, at_least=1)


def test_images_as_similar_as_the_image_do_not_count_in_a_candidate_s_list() -> None:
    # In the list of X image 3 comes behind X and the image before it, in one with images 0 to 2; K
    # = 3.
    axes = np.eye(8)[[1, 2, 3, 0]]
    check_labels(np.array([*axes, [0.75, *[0.25] * 7], X]), 3, {3, 4, 5}, 0.25, at_least=1)


def test_an_image_with_nothing_above_the_threshold_is_its_own_only_label() -> None:
    check_labels(circle(0, 54, 120, 180, 270), 0, {0})


def test_an_image_not_seen_yet_is_its_own_only_label() -> None:
    memory = np.zeros((6, 4))
    memory[3:5, 0] = 1
    for i in (0, 2, 5):
        assert reference.predict_labels(memory, i, 0.6, 10) == {i}
    assert reference.predict_labels(memory, 3, 0.6, 10) == {3, 4}
    method = nnct(6, size=2, single_label=0)
    begin(method, 0)
    iterate(method, memory[3:5], [3, 4])
    assert lists(*method.label_memory.local_lists()) == [[i] for i in range(6)]
    loss_of(method, memory[[3, 3, 4, 4]], [2, 3, 4, 5])
    assert lists(*method.label_memory.local_lists()) == [[0], [1], [2], [3, 4], [3, 4], [5]]


def test_labels_come_from_the_memory_before_the_batch_updates_it() -> None:
    memory = circle(0, 10, 180, 190)
    expected = reference.step(
        memory, [{i} for i in range(4)], circle(180, 10), [0, 1], 1, 10, 0, Settings(single_label=1)
    )
    assert expected.labels == [{0, 1}, {0, 1}]
    method = planted(memory)
    # The new feature of image 0 lies at the other side.
    iterate(method, circle(180, 10), [0, 1])
    assert lists(*method.label_memory.local_lists()) == [[0, 1], [0, 1], [2], [3]]
    # Now it lies there in the memory as well.
    iterate(method, circle(180, 10), [0, 1])
    assert lists(*method.label_memory.local_lists()) == [[0, 2, 3], [1], [2], [3]]


# MMCL, and the flow of the neighbours: losses worked by hand.

#: s of the first image: 1, 0.8, -1, 0; of the second: 0.8, 1, -0.8, -0.6. The two are each other's
#: labels.
FOUR = np.array([[1, 0], [0.8, 0.6], [-1, 0], [0, -1]])


def check_loss(
    method: NNCT,
    label_memory: list[set[int]],
    features: np.ndarray,
    rows: list[int],
    k: int,
    expected: float,
) -> None:
    """The loss of a batch by the reference, which goes by the method's feature memory, and by NNCT,
    in epoch 1 of 10.
    """
    memory, settings = method.memory.bank.numpy(), Settings(single_label=1)
    got = reference.step(memory, label_memory, features, rows, 1, 10, k, settings)
    assert got.loss == pytest.approx(expected, abs=1e-12)
    assert loss_of(method, features, rows) == pytest.approx(expected, abs=1e-12)


def identity(n: int) -> list[set[int]]:
    return [{i} for i in range(n)]


def test_the_loss_of_the_image_flow_is_worked_by_hand() -> None:
    # 5 (0 + 0.04) / 2 + (1 + 0)^2, and 5 (0.04 + 0) / 2 + (1 - 0.6)^2.
    check_loss(planted(FOUR), identity(4), FOUR[[0]], [0], 0, 1.1)
    check_loss(planted(FOUR), identity(4), FOUR[[0, 1]], [0, 1], 0, (1.1 + 0.26) / 2)


def test_a_neighbour_in_the_batch_has_the_labels_of_this_iteration() -> None:
    # Alone, image 0 finds its neighbour with itself as only label: 5 (0.2)^2 + (1 + 1)^2.
    check_loss(planted(FOUR, 1), identity(4), FOUR[[0]], [0], 1, 1.1 + 0.5 * 4.2)
    # Together they have the same labels.
    check_loss(planted(FOUR, 1), identity(4), FOUR[[0, 1]], [0, 1], 1, 1.5 * (1.1 + 0.26) / 2)
    check_loss(planted(FOUR, 1), identity(4), FOUR[[1, 0]], [1, 0], 1, 1.5 * (1.1 + 0.26) / 2)


def test_a_neighbour_of_an_earlier_batch_has_the_labels_it_got_there() -> None:
    method = planted(FOUR, 1)
    check_loss(method, identity(4), FOUR[[1]], [1], 1, 0.26 + 0.5 * (5 * 0.04 + 4))
    check_loss(method, [{0}, {0, 1}, {2}, {3}], FOUR[[0]], [0], 1, 1.5 * 1.1)


def test_the_neighbours_losses_are_summed() -> None:
    # Behind image 1 comes image 3, of similarity 0: 5 (1 - 0)^2 + (1 + 1)^2.
    check_loss(planted(FOUR, 2), identity(4), FOUR[[0]], [0], 2, 1.1 + 0.5 * (4.2 + 9))
    # And image 2: 5 (1 + 1)^2 + (1 + 1)^2.
    check_loss(planted(FOUR, 3), identity(4), FOUR[[0]], [0], 3, 1.1 + 0.5 * (4.2 + 9 + 24))


def test_an_image_is_never_its_own_neighbour() -> None:
    # The new feature of image 0 is least similar to its own vector: s = -1, -0.8, 1, 0, and its
    # neighbours are 2 and 3.
    own = 5 * (2**2 + 1.8**2) / 2 + 2**2
    features = -FOUR[[0]]
    assert reference.nearest(reference.similarities(FOUR, features[0]), 0, 3) == [2, 3, 1]
    check_loss(planted(FOUR, 2), identity(4), features, [0], 2, own + 0.5 * ((0 + 1) + (5 + 4)))
    # All the others are: 5 (1.8)^2 + 4 for image 1.
    check_loss(planted(FOUR, 3), identity(4), features, [0], 3, own + 0.5 * (1 + 9 + 20.2))


def test_neighbours_are_those_of_the_new_feature() -> None:
    # In the memory image 1 is nearest to image 0; its feature now lies upon image 3, s = 0, -0.6,
    # 0, 1.
    own = 5 * (1**2 + 1.6**2) / 2 + 2**2
    check_loss(planted(FOUR, 1), identity(4), FOUR[[3]], [0], 1, own + 0.5 * (0 + 1))


def test_equal_neighbours_are_taken_from_the_lowest_index() -> None:
    # Images 1, 2 and 3 have similarity 0 to image 0, whose label memories differ: image 1 is image
    # 4 as well, s = -1.
    memory = np.array([[1.0, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [-1, 0, 0]])
    label_memory = [{0}, {1, 4}, {2}, {3}, {4}]
    for k, expected in ((1, 1 + 0.5 * (5 * (1 + 4) / 2 + 4)), (2, 1 + 0.5 * (12.5 + 4 + 5 + 4))):
        method = planted(memory, k)
        remember(method, {1: [1, 4]})
        check_loss(method, label_memory, memory[[0]], [0], k, expected)


@pytest.mark.parametrize(
    ("negatives", "hard"), [(1, 1), (99, 1), (199, 1), (200, 2), (299, 2), (300, 3)]
)
def test_one_in_a_hundred_negatives_is_hard_and_one_at_least(negatives: int, hard: int) -> None:
    # The hardest negatives have similarity 0.5, 0 and 0, the others -1.
    n = negatives + 1
    memory = circle(0, 60, 90, -90, *[180] * n)[:n]
    expected = sum([2.25, 1.0, 1.0][:hard]) / hard
    assert reference.mmcl(memory @ memory[0], {0}, 5.0, 0.01) == pytest.approx(expected)
    assert loss_of(planted(memory, single_label=2), memory[[0]], [0]) == pytest.approx(expected)


def test_without_negatives_the_positives_are_the_whole_loss() -> None:
    memory = circle(0, 10, 20)
    expected = 5 * sum((1 - np.cos(np.deg2rad(angle))) ** 2 for angle in (10, 20)) / 3
    check_loss(planted(memory), identity(3), memory[[0]], [0], 0, expected)


def test_embeddings_of_any_length_give_the_loss_of_their_unit_vectors() -> None:
    method = planted(FOUR, 1)
    long, short = (
        loss_of(method, 1e3 * FOUR[[0, 1]], [0, 1]),
        loss_of(method, 1e-3 * FOUR[[0, 1]], [0, 1]),
    )
    assert long == pytest.approx(1.5 * (1.1 + 0.26) / 2) == short
    before = method.memory.bank.clone()
    method.update(torch.from_numpy(np.array([[0, 7.0]])), torch.tensor([2]))
    moved = 0.05 * before[2] + 0.95 * torch.tensor([0, 1.0], dtype=torch.float64)
    assert torch.allclose(method.memory.bank[2], moved / moved.norm(), rtol=0, atol=1e-15)


# The feature memory.


def test_the_feature_memory_starts_at_zero_and_is_as_the_embeddings_are() -> None:
    for dtype in (torch.float32, torch.float64):
        method = nnct(6, size=2)
        begin(method, 0)
        method.loss(torch.randn(2, 5, dtype=dtype), torch.tensor([4, 1]))
        assert method.memory.bank.shape == (6, 5) and method.memory.bank.dtype == dtype
        assert not method.memory.bank.any() and not method.memory.bank.requires_grad


def test_the_first_epoch_keeps_the_new_feature_alone() -> None:
    method = nnct(4, size=2)
    begin(method, 0)
    for features in (FOUR[[0, 1]], FOUR[[3, 2]]):
        iterate(method, 2 * features, [0, 1])
        assert np.allclose(
            method.memory.bank.numpy(), [*features, [0, 0], [0, 0]], rtol=0, atol=1e-15
        )


@pytest.mark.parametrize(("epochs", "expected"), [(60, 0.5 * 4 / 60), (8, 0.25)])
def test_the_memory_s_momentum_grows_with_the_share_of_the_run(
    epochs: int, expected: float
) -> None:
    method = planted(FOUR, epochs=epochs)
    begin(method, 4)
    assert method.momentum == pytest.approx(expected)
    iterate(method, FOUR[[3]], [0])
    moved = np.array([expected, expected - 1])
    assert np.allclose(
        method.memory.bank[0].numpy(), moved / np.linalg.norm(moved), rtol=0, atol=1e-14
    )


def test_an_image_named_twice_updates_the_memory_in_batch_order_and_has_one_set_of_labels() -> None:
    method = planted(FOUR, epochs=8)
    begin(method, 4)
    features = FOUR[[3, 2, 2, 1]]
    iterate(method, features, [0, 1, 0, 0])
    moved: np.ndarray = FOUR[0]
    for feature in features[[0, 2, 3]]:
        moved = 0.25 * moved + 0.75 * feature
        moved = moved / np.linalg.norm(moved)
    assert np.allclose(method.memory.bank[0].numpy(), moved, rtol=0, atol=1e-14)
    assert lists(*method.label_memory.local_lists()) == [[0, 1], [0, 1], [2], [3]]
    expected = reference.step(
        FOUR, identity(4), features, [0, 1, 0, 0], 4, 8, 0, Settings(single_label=1)
    )
    assert np.allclose(method.memory.bank.numpy(), expected.memory, rtol=0, atol=1e-14)
    assert expected.label_memory == [{0, 1}, {0, 1}, {2}, {3}]


def test_a_later_batch_replaces_the_labels_of_an_earlier_one() -> None:
    method = planted(circle(0, 10, 90, 100))
    loss_of(method, circle(0), [0])
    assert lists(*method.label_memory.local_lists()) == [[0, 1], [1], [2], [3]]
    method.update(torch.from_numpy(circle(90)), torch.tensor([0]))
    loss_of(method, circle(0), [0])
    assert lists(*method.label_memory.local_lists()) == [[0, 2, 3], [1], [2], [3]]
    method.update(torch.from_numpy(circle(-90)), torch.tensor([0]))
    loss_of(method, circle(0), [0])
    assert lists(*method.label_memory.local_lists()) == [[0], [1], [2], [3]]


# Batches, state, refusals.


@pytest.mark.parametrize(("iterations", "expected"), [(0, 5), (3, 3), (12, 12)])
def test_batches_are_random_images_without_repetition_in_a_pass(
    iterations: int, expected: int
) -> None:
    method = nnct(30, size=6, iterations=iterations)
    batches = list(method.batches(2))
    assert method.iterations == len(batches) == expected
    assert all(rows.shape == (6,) and rows.dtype == torch.int64 for rows in batches)
    passes = [torch.cat(batches[start : start + 5]).tolist() for start in range(0, expected, 5)]
    for one in passes:
        assert len(set(one)) == len(one) and set(one) <= set(range(30))
    if len(passes) > 1:
        assert sorted(passes[0]) == list(range(30)) and passes[0] != passes[1]


def test_a_pass_has_no_batch_that_is_not_full() -> None:
    method = nnct(31, size=6)
    rows = torch.cat(list(method.batches(0)))
    assert method.iterations == 5 and len(rows) == 30 == len(rows.unique())


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    def drawn(seed: int, epoch: int) -> list[list[int]]:
        return [rows.tolist() for rows in nnct(30, size=6, seed=seed).batches(epoch)]

    torch.manual_seed(1)
    first = drawn(0, 1)
    torch.manual_seed(2)
    assert drawn(0, 1) == first
    assert drawn(0, 2) != first != drawn(1, 1)
    method = nnct(30, size=6)
    begin(method, 0)
    for rows in method.batches(0):
        iterate(method, unit(np.random.default_rng(0).normal(size=(6, 3))), rows.tolist())
    begin(method, 1)
    assert [rows.tolist() for rows in method.batches(1)] == first


def trained(n: int, k: int, layout: str) -> tuple[NNCT, Iterator[Tensor]]:
    """NNCT in the middle of epoch 2, and the batches that are left of it."""
    method = nnct(n, k, size=8, epochs=4, single_label=1, layout=layout)
    for epoch in range(3):
        begin(method, epoch)
        batches = method.batches(epoch)
        for step, rows in enumerate(batches):
            iterate(method, images_of(n)[rows] + 0.01 * (epoch + 1), rows.tolist())
            if (epoch, step) == (2, 1):
                return method, batches
    raise AssertionError


def images_of(n: int) -> np.ndarray:
    return clustered_features(n, 6, dim=8, spread=0.6, seed=1)


@pytest.mark.parametrize("layout", ["bits", "sparse"])
def test_a_state_continues_bit_for_bit_from_the_middle_of_an_epoch(layout: str) -> None:
    first, batches = trained(48, 2, layout)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    other = nnct(48, 2, size=8, epochs=4, single_label=1, layout=layout)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.momentum == first.momentum == 0.25
    rest = list(batches)
    assert len(rest) == 4
    for epoch, left in ((2, rest), (3, list(first.batches(3)))):
        if epoch == 3:
            assert begin(first, 3) == begin(other, 3)
        for rows in left:
            embeddings = 1.1 * images_of(48)[rows]
            loss, gradient = iterate(first, embeddings, rows.tolist())
            assert loss == (again := iterate(other, embeddings, rows.tolist()))[0]
            assert np.array_equal(gradient, again[1])
            assert torch.equal(first.memory.bank, other.memory.bank)
            assert lists(*first.label_memory.local_lists()) == lists(
                *other.label_memory.local_lists()
            )
    assert any(len(labels) > 1 for labels in lists(*first.label_memory.local_lists()))


def test_a_state_from_before_the_first_batch_is_restored() -> None:
    first, other = nnct(12), nnct(12)
    begin(first, 0)
    other.load_state_dict(first.state_dict())
    rows = next(first.batches(0)).tolist()
    embeddings = clustered_features(4, 2, dim=5)
    assert iterate(first, embeddings, rows)[0] == iterate(other, embeddings, rows)[0]
    assert torch.equal(first.memory.bank, other.memory.bank)


def test_the_state_of_another_image_set_is_refused() -> None:
    state = trained(48, 1, "bits")[0].state_dict()
    for n in (47, 60):
        with pytest.raises((ValueError, CheckpointError)) as refused:
            nnct(n, 1, size=8, epochs=4, single_label=1, layout="bits").load_state_dict(state)
        assert "\n" not in str(refused.value) and str(n) in str(refused.value)


@pytest.mark.parametrize(
    ("n", "k", "size", "what"),
    [(7, 1, 8, "batch"), (8, 8, 4, "neighbours"), (8, 9, 8, "neighbours")],
)
def test_more_images_or_neighbours_than_there_are_is_refused_in_one_line(
    n: int, k: int, size: int, what: str
) -> None:
    with pytest.raises(SettingError, match=what) as refused:
        nnct(n, k, size)
    assert "\n" not in str(refused.value)


def test_a_batch_of_all_images_and_all_the_others_as_neighbours_are_accepted() -> None:
    method = nnct(8, 7, size=8, single_label=0)
    begin(method, 0)
    rows = next(method.batches(0)).tolist()
    assert np.isfinite(iterate(method, clustered_features(8, 2), rows)[0])


# Domain adaptation.


def test_the_references_of_domain_adaptation_are_worked_by_hand() -> None:
    logits = np.array([[0, 0], [0, np.log(3)], [1000, 0]])
    assert reference.cross_entropy(logits[:2], [0, 1]) == pytest.approx(
        (np.log(2) + np.log(4 / 3)) / 2
    )
    assert reference.cross_entropy(logits[2:], [1]) == pytest.approx(1000)
    assert reference.adapted_loss(2.0, 10.0) == pytest.approx(0.7 * 2 + 0.3 * 10)
    assert reference.adapted_loss(2.0, 10.0, weight=0.5) == pytest.approx(6)


def test_lists_of_more_labels_than_an_id_can_count_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity: got"):
        NNCT(64, 1, NNCTConfig(), BatchConfig(8), 3, 0, layout="sparse", capacity=2**40)


@pytest.mark.parametrize("n", [9, 1500])
def test_an_automatic_threshold_is_the_usual_similarity_of_near_images(n: int) -> None:
    memory = clustered_features(n, 3, 8, 0.4, 1)
    method = planted(memory, threshold="auto", at_least=4)
    rows = range(0, n, -(-n // 1024))
    similarity = memory @ memory.T
    np.fill_diagonal(similarity, -np.inf)
    fourth = np.sort(similarity[rows], axis=1)[:, -4]
    median = np.sort(fourth)[(len(fourth) - 1) // 2]
    expected = (median + fourth[fourth > median + 1e-5].min()) / 2
    assert begin(method, 1)["label_threshold"] == pytest.approx(expected, abs=1e-12)
    fixed = planted(memory, threshold=float(method.threshold), at_least=4)
    chosen = torch.arange(5)
    assert lists(*method.predict(chosen)) == lists(*fixed.predict(chosen))


def test_an_automatic_threshold_is_part_of_the_state_and_waits_for_the_first_prediction() -> None:
    memory = clustered_features(12, 3, 8, 0.4, 1)
    settings: dict[str, Any] = {"threshold": "auto", "at_least": 2, "single_label": 1}
    method = nnct(12, size=12, **settings)
    assert begin(method, 0)["label_threshold"] == 0.6
    iterate(method, memory, list(range(12)))
    assert begin(method, 1)["label_threshold"] > 0
    other = nnct(12, size=12, **settings)
    other.load_state_dict(method.state_dict())
    assert other.threshold == method.threshold
    old = {key: value for key, value in method.state_dict().items() if key != "threshold"}
    usual = nnct(12, size=12, single_label=1)
    usual.load_state_dict(old)
    assert usual.threshold == 0.6


def test_a_single_image_has_no_usual_similarity() -> None:
    method = planted(unit(np.ones((1, 4))), threshold="auto")
    assert method.threshold == 0


def test_an_automatic_threshold_is_not_the_similarity_of_two_nearest_images() -> None:
    angles = np.array([0, 0.1, 2, 2.4, 4, 4.9])
    memory = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    method = planted(memory, threshold="auto", at_least=1)
    # The nearest images are 0.1, 0.4 and 0.9 apart, each for two of them.
    assert method.threshold == pytest.approx((np.cos(0.4) + np.cos(0.1)) / 2, abs=1e-12)


def test_an_automatic_threshold_takes_any_number_of_candidates() -> None:
    memory = clustered_features(1200, 3, 4, 0.4, 1)
    method = planted(memory, threshold="auto", at_least=1100)
    fixed = planted(memory, threshold="auto", at_least=1024)
    assert method.threshold == fixed.threshold
