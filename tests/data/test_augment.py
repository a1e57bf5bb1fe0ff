"""Batched augmentation against torchvision's own transforms on the same draws."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as tv

from fastreid_al.config import ImageConfig
from fastreid_al.data.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, erase, flip, jitter, normalize, pad_crop


def batch(n: int = 9, height: int = 32, width: int = 16) -> torch.Tensor:
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8)


def test_flip_equals_torchvision() -> None:
    images, flipped = batch(), torch.rand(9) < 0.5
    expected = [tv.hflip(i) if f else i for i, f in zip(images, flipped, strict=True)]
    assert torch.equal(flip(images, flipped), torch.stack(expected))


def test_pad_and_crop_equal_torchvision() -> None:
    images, top, left = batch(), torch.randint(21, (9,)), torch.randint(21, (9,))
    top[0], left[0], top[1], left[1] = 0, 0, 20, 20
    expected = [tv.crop(tv.pad(i, [10]), int(t), int(x), 32, 16) for i, t, x in zip(images, top, left, strict=True)]
    assert torch.equal(pad_crop(images, top, left, 10), torch.stack(expected))


def test_normalize_equals_torchvision() -> None:
    images = batch()
    expected = tv.normalize(images.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert torch.allclose(normalize(images), expected, atol=1e-6)


def test_jitter_equals_torchvision() -> None:
    images, factors = batch(), 0.5 + torch.rand(3, 9)
    expected = []
    for image, b, c, s in zip(images.float() / 255, *factors.tolist(), strict=True):
        changed = tv.adjust_contrast(tv.adjust_brightness(image, b), c)
        expected.append(tv.adjust_saturation(changed, s))
    found = jitter(images.float(), *factors) / 255
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)


def test_erase_equals_torchvision() -> None:
    images = normalize(batch())
    boxes = torch.tensor([[0, 0, 32, 16], [5, 3, 7, 2], [31, 15, 1, 1], [4, 4, 0, 0]]).repeat(3, 1)[:9]
    expected = [tv.erase(i, *box, v=torch.zeros(1)) for i, box in zip(images, boxes.tolist(), strict=True)]
    assert torch.equal(erase(images, boxes), torch.stack(expected))


def test_drawn_boxes_keep_to_area_aspect_and_image() -> None:
    config = ImageConfig(erase=1.0)
    boxes = Augment(config, seed=1)._boxes(4000, 64, 32).float()
    top, left, height, width = boxes.unbind(1)
    assert (height > 0).float().mean() > 0.99
    some = height > 0
    assert ((top + height)[some] <= 64).all()
    assert ((left + width)[some] <= 32).all()
    share = (height * width / (64 * 32))[some]
    assert share.min() > 0.01
    assert share.max() < 0.45
    assert 0.15 < share.mean() < 0.25
    assert ((top + height / 2)[some].mean() / 64 - 0.5).abs() < 0.02


def test_probabilities_are_respected() -> None:
    boxes = Augment(ImageConfig(erase=0.5), seed=1)._boxes(4000, 64, 32)
    assert 0.45 < (boxes[:, 2] > 0).float().mean() < 0.55


def test_everything_off_is_normalisation_alone() -> None:
    images = batch()
    config = ImageConfig(flip=0, pad=0, erase=0, jitter=0)
    assert torch.equal(Augment(config, seed=0)(images), normalize(images))


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_state_of_the_generator_repeats_the_draws(strength: float) -> None:
    images, augment = batch(), Augment(ImageConfig(jitter=strength), seed=3)
    augment(images)
    state = augment.generator.get_state()
    first = augment(images)
    other = Augment(ImageConfig(jitter=strength), seed=99)
    other.generator.set_state(state)
    assert torch.equal(first, other(images))
    assert not torch.equal(first, augment(images))
