"""Batches of P identities x K images, from other cameras first."""

from __future__ import annotations

import pytest
import torch

from fastreid_al.data.samplers import IdentitySampler


def sampler(
    classes: list[int], cameras: list[int], size: int, k: int, iterations: int = 5
) -> IdentitySampler:
    return IdentitySampler(torch.tensor(classes), torch.tensor(cameras), size, k, iterations)


def test_batches_are_p_identities_of_k_images() -> None:
    classes = [i // 6 for i in range(60)]
    made = list(sampler(classes, [i % 3 for i in range(60)], 16, 4, 7).batches(0, 0))
    assert len(made) == 7
    for rows in made:
        assert rows.shape == (16,)
        groups = torch.tensor(classes)[rows].view(4, 4)
        assert (groups == groups[:, :1]).all()
        assert len(groups[:, 0].unique()) == 4


def test_all_classes_are_visited_before_any_again() -> None:
    classes = torch.arange(60) // 6
    rows = torch.cat(list(sampler(classes.tolist(), [0] * 60, 8, 4, 5).batches(1, 2)))
    assert sorted(classes[rows[::4]].tolist()) == list(range(10))


def test_other_images_come_from_other_cameras_without_replacement() -> None:
    cameras = [0, 0, 0, 1, 2, 3]
    for rows in sampler([0] * 6, cameras, 4, 4, 50).batches(0, 0):
        first, *others = torch.tensor(cameras)[rows].tolist()
        assert first not in others
        if first == 0:
            assert sorted(others) == [1, 2, 3]


def test_too_few_other_cameras_are_drawn_with_replacement() -> None:
    for rows in sampler([0] * 4, [0, 0, 0, 1], 4, 4, 30).batches(0, 0):
        first, *others = rows.tolist()
        assert set(others) == {3} if first != 3 else set(others) <= {0, 1, 2}


@pytest.mark.parametrize("camera", [5, -1])
def test_with_one_or_unknown_cameras_images_come_from_the_whole_class(camera: int) -> None:
    seen = set()
    for rows in sampler([0] * 4 + [1] * 4, [camera] * 8, 4, 4, 40).batches(0, 0):
        assert len(set(rows.tolist())) == 4
        seen |= set(rows.tolist())
    assert seen == set(range(8))


def test_a_class_of_one_image_contributes_it_once() -> None:
    rows = torch.cat(list(sampler([0, 1, 2, 3], [0, 1, 0, 1], 4, 4, 3).batches(0, 0)))
    assert rows.bincount().tolist() == [3, 3, 3, 3]


def test_images_of_no_class_are_never_drawn() -> None:
    rows = torch.cat(list(sampler([-1, 0, 0, -1, 4, 4], [0, 1, 2, 3, 4, 5], 4, 2, 9).batches(0, 0)))
    assert set(rows.tolist()) == {1, 2, 4, 5}


def test_fewer_images_than_a_batch_repeat() -> None:
    assert next(sampler([0, 0, 1], [0, 1, 0], 16, 4).batches(0, 0)).shape == (16,)


def test_batches_depend_only_on_seed_and_epoch() -> None:
    made = sampler([i // 6 for i in range(60)], [i % 3 for i in range(60)], 16, 4)
    first = torch.stack(list(made.batches(3, 1)))
    assert torch.equal(first, torch.stack(list(made.batches(3, 1))))
    assert not torch.equal(first, torch.stack(list(made.batches(3, 2))))
    assert not torch.equal(first, torch.stack(list(made.batches(4, 1))))


def test_images_without_any_class_are_refused() -> None:
    with pytest.raises(ValueError, match="no image has a class"):
        sampler([-1, -1], [0, 0], 4, 2)
