"""Batched augmentation against torchvision's own transforms on the same draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

from fastreid_al.config import ImageConfig, recipe
from fastreid_al.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    erase,
    flip,
    jitter,
    normalize,
    pad_crop,
    resized_crop,
    rotate,
)
from fastreid_al.data.camera_style import CameraStyle
from fastreid_al.data.records import Record

#: Off but for what a test sets.
NOTHING = ImageConfig(flip=0, pad=0, erase=0)
#: Of seed 5 and images of 256 x 128.
PINNED_BOXES = [[118, 19, 116, 95], [15, 22, 148, 56], [47, 7, 44, 88], [0, 0, 0, 0]]


def batch(n: int = 9, height: int = 32, width: int = 16) -> torch.Tensor:
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8)


def test_flip_equals_torchvision() -> None:
    images, flipped = batch(), torch.rand(9) < 0.5
    expected = [tv.hflip(i) if f else i for i, f in zip(images, flipped, strict=True)]
    assert torch.equal(flip(images, flipped), torch.stack(expected))


def test_pad_and_crop_equal_torchvision() -> None:
    images, top, left = batch(), torch.randint(21, (9,)), torch.randint(21, (9,))
    top[0], left[0], top[1], left[1] = 0, 0, 20, 20
    expected = [
        tv.crop(tv.pad(i, [10]), int(t), int(x), 32, 16)
        for i, t, x in zip(images, top, left, strict=True)
    ]
    assert torch.equal(pad_crop(images, top, left, 10), torch.stack(expected))


def test_resized_crop_equals_torchvision() -> None:
    images = batch()
    boxes = torch.tensor(
        [[0, 0, 32, 16], [5, 3, 17, 11], [31, 15, 1, 1], [0, 7, 32, 2], [9, 0, 23, 16]]
    ).repeat(2, 1)
    expected = [
        tv2.resized_crop(
            i.float(),
            *box,
            size=[32, 16],
            interpolation=InterpolationMode.BILINEAR,
            antialias=False,
        )
        for i, box in zip(images, boxes[:9].tolist(), strict=True)
    ]
    assert torch.allclose(resized_crop(images, boxes[:9]), torch.stack(expected), atol=1e-3)
    assert torch.equal(resized_crop(images, boxes[:1].expand(9, 4)), images.float())


def test_resized_crop_reads_nothing_outside_its_box() -> None:
    images = torch.full((3, 3, 32, 16), torch.nan)
    boxes = torch.tensor([[5, 3, 17, 11], [0, 0, 7, 16], [20, 9, 12, 7]])
    for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = torch.rand(3, height, width)
    assert resized_crop(images, boxes).isfinite().all()


def test_rotation_equals_torchvision() -> None:
    images = batch()
    degrees = torch.tensor([0.0, 10.0, -10.0, 3.3, -7.1, 45.0, 90.0, 180.0, -135.0])
    expected = [
        tv2.rotate(i.float(), float(d), interpolation=InterpolationMode.BILINEAR)
        for i, d in zip(images, degrees, strict=True)
    ]
    # At 90 degrees a border pixel lies half outside by rounding alone; hence not the border.
    got, wanted = (x[..., 1:-1, 1:-1] for x in (rotate(images, degrees), torch.stack(expected)))
    assert torch.allclose(got, wanted, atol=0.02)


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
    got = jitter(images.float(), *factors) / 255
    assert torch.allclose(got, torch.stack(expected), atol=1e-5)


def test_erase_equals_torchvision() -> None:
    images = normalize(batch())
    boxes = torch.tensor([[0, 0, 32, 16], [5, 3, 7, 2], [31, 15, 1, 1], [4, 4, 0, 0]]).repeat(3, 1)[
        :9
    ]
    expected = [
        tv.erase(i, *box, v=torch.zeros(1)) for i, box in zip(images, boxes.tolist(), strict=True)
    ]
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


def test_drawn_crops_keep_to_area_aspect_and_image() -> None:
    augment = Augment(ImageConfig(crop_area=(0.64, 1.0)), seed=1)
    top, left, height, width = augment._crops(4000, 256, 128).float().unbind(1)
    assert (
        min(top.min(), left.min()) >= 0
        and (top + height).max() <= 256
        and (left + width).max() <= 128
    )
    share, aspect = height * width / (256 * 128), height / width
    assert share.min() > 0.63 and share.max() <= 1
    assert (
        0.74 < share.mean() < 0.765
    )  # 0.7515 by the integral: the steeper a crop, the smaller it must be
    # An aspect past 2 fits only below some area, so that the whole image is rare.
    assert aspect.min() > 1.97 and aspect.max() < 3.03 and (share == 1).float().mean() < 0.02
    free = height < 250
    assert ((top / (256 - height))[free].mean() - 0.5).abs() < 0.03


def test_a_crop_that_never_fits_is_the_whole_image() -> None:
    augment = Augment(ImageConfig(crop_area=(0.9, 0.95)), seed=1, crop_aspect=(8.0, 9.0))
    assert torch.equal(augment._crops(5, 32, 16), torch.tensor([[0, 0, 32, 16]]).expand(5, 4))


def test_drawn_angles_are_uniform_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(
        "fastreid_al.data.augment.rotate", lambda images, degrees: drawn.append(degrees) or images
    )
    Augment(replace(NOTHING, rotate=10), seed=1)(batch(2000, 2, 2))
    assert (
        -10 <= drawn[0].min() < -9.9 and 9.9 < drawn[0].max() <= 10 and drawn[0].mean().abs() < 0.4
    )


def test_settings_left_out_change_no_draw() -> None:
    """The augmentation of old runs, written out: what was added since must not move their draws."""
    config, images = ImageConfig(jitter=0.3), batch()
    draws = torch.Generator().manual_seed(5)
    expected = flip(images, torch.rand(9, generator=draws) < 0.5)
    expected = pad_crop(expected, *torch.randint(21, (2, 9), generator=draws), 10)
    expected = normalize(
        jitter(expected.float(), *(1 + 0.3 * (2 * torch.rand(3, 9, generator=draws) - 1)))
    )
    augment = Augment(config, seed=5)
    augment.generator.set_state(draws.get_state())
    expected = erase(expected, augment._boxes(9, 32, 16))
    again = Augment(config, seed=5)
    assert torch.equal(again(images), expected)
    assert torch.equal(again.generator.get_state(), augment.generator.get_state())


def test_drawn_boxes_are_the_pinned_ones() -> None:
    boxes = Augment(ImageConfig(), seed=5)._boxes(4, 256, 128)
    assert boxes.tolist() == PINNED_BOXES


class Darker(CameraStyle):
    """Halves every image."""

    def _restyle(
        self, pixels: torch.Tensor, rows: torch.Tensor, own: torch.Tensor, drawn: torch.Tensor
    ) -> torch.Tensor:
        return pixels.float() / 2

    def describe(self) -> str:
        return "darker"


def test_styles_are_drawn_first_and_from_the_same_generator() -> None:
    images, style = batch(), Darker([Record(Path(f"{i}.jpg"), 0, i % 2) for i in range(20)], 0.5)
    augment = Augment(NOTHING, 4, style)
    rows = torch.arange(19, 10, -1)
    draws = torch.Generator().manual_seed(4)
    styled = style(images, rows, draws)
    assert 0 < (styled == images).all((1, 2, 3)).sum() < 9
    torch.rand(9, generator=draws)  # whether to flip
    assert torch.equal(augment(images, rows), normalize(styled))
    assert torch.equal(augment.generator.get_state(), draws.get_state())
    assert torch.equal(augment(images), normalize(images))


@pytest.mark.parametrize("styled", [False, True])
@pytest.mark.parametrize(
    "config", [ImageConfig(), ImageConfig(jitter=0.3), recipe("msmt17", method="nnct").image]
)
def test_parts_of_a_batch_are_augmented_as_the_whole(config: ImageConfig, styled: bool) -> None:
    images, rows = batch(), torch.arange(19, 10, -1)
    style = Darker([Record(Path(f"{i}.jpg"), 0, i % 2) for i in range(20)], 0.5) if styled else None
    whole = Augment(config, 3, style)
    expected = whole(images, rows)
    for size in (1, 2, 4):
        parts = [
            slice(start, start + -(-9 // size))
            for start in range(0, 9 + 3 * (size == 4), -(-9 // size))
        ]
        got = []
        for part in parts:
            augment = Augment(config, 3, style)
            got.append(augment.apply(images[part], augment.draw(9, 32, 16, rows).part(part)))
            assert torch.equal(augment.generator.get_state(), whole.generator.get_state())
        assert torch.allclose(torch.cat(got), expected, atol=1e-5)
    assert got[-1].shape == (0, 3, 32, 16)


def test_draws_of_another_set_have_no_style() -> None:
    style = Darker([Record(Path(f"{i}.jpg"), 0, i % 2) for i in range(20)], 1.0)
    here, there = Augment(ImageConfig(), 4, style), Augment(ImageConfig(), 4)
    assert here.draw(9, 32, 16).styles is None
    there.draw(9, 32, 16)
    assert torch.equal(here.generator.get_state(), there.generator.get_state())


def test_packed_draws_are_unpacked_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device nothing is kept, so that the copy is caught on its way there."""
    draws = Augment(recipe("msmt17", method="nnct").image, 3).draw(9, 256, 128)
    copies: list[torch.Tensor] = []
    monkeypatch.setattr(
        "fastreid_al.data.augment.to_device_async", lambda x, device: copies.append(x) or x
    )
    moved = draws.to(torch.device("meta"))
    assert len(copies) == 1
    for before, after in zip(draws[1:], moved[1:], strict=True):
        assert (before is None) == (after is None)
        assert before is None or (before.dtype == after.dtype and torch.equal(before, after))


def test_without_transforms_only_normalisation_is_left() -> None:
    images = batch()
    config = ImageConfig(flip=0, pad=0, erase=0, jitter=0)
    assert torch.equal(Augment(config, seed=0)(images), normalize(images))


@pytest.mark.parametrize(
    "config", [ImageConfig(), ImageConfig(jitter=0.3), recipe("msmt17", method="nnct").image]
)
def test_state_of_the_generator_repeats_the_draws(config: ImageConfig) -> None:
    images, augment = batch(), Augment(config, seed=3)
    augment(images)
    state = augment.generator.get_state()
    first = augment(images)
    other = Augment(config, seed=99)
    other.generator.set_state(state)
    assert torch.equal(first, other(images))
    assert not torch.equal(first, augment(images))
