"""Augmentation of whole batches, where the batch lies (CPU or GPU).

Each transform is a function of the batch and of explicit draws, one an image, so that it can be held against torchvision's
own on the same draws; `Augment` makes the draws. They come from one generator on the CPU, whatever the device, so that a run
is repeatable across devices and its state is a few kilobytes in a checkpoint. Ranks that share a batch all draw for the whole
of it and apply their part, so that the generators stay equal and the images do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import ImageConfig
from .camera_style import CameraStyle, Styles
from .loader import device_constant, to_device_async

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_GREY = (0.2989, 0.587, 0.114)
_TRIES = 10
#: Smallest and largest height / width of a random crop, and of an erased box.
CROP_ASPECT = (2.0, 3.0)
ERASE_ASPECT = (0.3, 3.33)


def normalize(images: Tensor) -> Tensor:
    """uint8 or float in [0, 255], (B, 3, H, W) -> float32 with ImageNet's mean and standard deviation."""
    mean, std = (_channels(values, images) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255).sub_(mean).div_(std)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images whose entry of `flipped` (B,) bool is set."""
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Enlarge a box (top, left, height, width), (B, 4) int64, of each image to the whole, bilinearly: float32.

    Pixels outside the box have no part in the result: at its border the last row or column is repeated, as where an image is
    cut out first and resized after. Rows are mixed before columns, because each is one weighted sum of two.
    """
    top, left, height, width = boxes.unbind(1)
    batch = torch.arange(len(images), device=images.device)[:, None]
    first, second, weight = _between(top, height, images.shape[-2])
    # Advanced indices around a slice put the channel axis last but one: (B, H, 3, W).
    images = torch.lerp(
        images[batch, :, first].float(), images[batch, :, second].float(), weight[:, :, None, None]
    )
    first, second, weight = (
        x[:, None, None].expand_as(images) for x in _between(left, width, images.shape[-1])
    )
    return torch.lerp(images.gather(-1, first), images.gather(-1, second), weight).movedim(2, 1)


def _between(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where `size` pixels lie on lines [start, start + length): the two neighbours and the weight of the second, (B, size)."""
    centres = torch.arange(size, device=start.device) + 0.5
    last = (length - 1)[:, None]
    places = (centres * (length / size)[:, None] - 0.5).clamp_min(0).minimum(last)
    first = places.long()
    return start[:, None] + first, start[:, None] + (first + 1).minimum(last), places - first


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image about its centre, counter-clockwise by `degrees` (B,), bilinearly, black beyond the border: float32."""
    height, width = images.shape[-2:]
    angles = torch.deg2rad(degrees.float())
    cos, sin, none = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # grid_sample measures both axes in half-lengths, hence the ratio of the two.
    rows = cos, -sin * (height / width), none, sin * (width / height), cos, none
    grid = torch.nn.functional.affine_grid(
        torch.stack(rows, 1).view(-1, 2, 3), [len(images), 3, height, width], align_corners=False
    )
    return torch.nn.functional.grid_sample(
        images.float(), grid, "bilinear", "zeros", align_corners=False
    )


def pad_crop(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Pad with `pad` black pixels on every side and crop back to H x W at (top, left), (B,) int64 in [0, 2 pad]."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)
    # Advanced indices around a slice put the channel axis last.
    return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Change brightness, contrast, saturation of float images in [0, 255], in this order, by factors (B,) around 1."""
    images = (images * brightness.view(-1, 1, 1, 1)).clamp_(0, 255)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast.view(-1, 1, 1, 1)).clamp_(0, 255)
    return torch.lerp(_grey(images), images, saturation.view(-1, 1, 1, 1)).clamp_(0, 255)


def erase(images: Tensor, boxes: Tensor, value: float = 0.0) -> Tensor:
    """Fill a box (top, left, height, width), (B, 4) int64, of each image; after `normalize`, 0 is the mean colour."""
    top, left, height, width = boxes.unbind(1)
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], value)


class Draws(NamedTuple):
    """What was drawn for a batch of n images, on the CPU; None for what the settings leave out. Some 100 bytes an image."""

    styles: Styles | None
    #: (n, 4) int64: top, left, height, width.
    crops: Tensor | None
    #: (n,) bool.
    flipped: Tensor
    #: (n,) float32.
    degrees: Tensor | None
    #: (n, 2) int64: top, left.
    offsets: Tensor | None
    #: (n, 3) float32: brightness, contrast, saturation.
    factors: Tensor | None
    #: (n, 4) int64: top, left, height, width.
    boxes: Tensor | None

    def part(self, rows: slice) -> Draws:
        """Those of a part of the batch."""
        styles = None if self.styles is None else self.styles.part(rows)
        return Draws._make([styles, *(None if x is None else x[rows] for x in self[1:])])

    def to(self, device: torch.device) -> Draws:
        """All but the styles on a device, by one copy that the host does not wait for."""
        if device.type == "cpu":
            return self
        # Every number is a float32 or a whole number below 2^24, so that nothing is rounded.
        packed = [x.reshape(len(self.flipped), -1).float() for x in self[1:] if x is not None]
        parts = iter(
            to_device_async(torch.cat(packed, 1), device).split([x.shape[1] for x in packed], 1)
        )
        moved = (None if x is None else next(parts).reshape(x.shape).to(x.dtype) for x in self[1:])
        return Draws._make([self.styles, *moved])


class Augment:
    """Camera style, resized crop, flip, rotation, pad and crop, jitter, normalise, random erasing: what the settings leave in.

    What is left out draws nothing, so that it does not change the draws of the rest.

    Args:
        config: The settings.
        seed: Seed of the draws.
        style: Camera styles drawn first; none when not given.
        crop_aspect: Smallest and largest height / width of a random crop.
        erase_aspect: Smallest and largest height / width of an erased box.
    """

    def __init__(
        self,
        config: ImageConfig,
        seed: int,
        style: CameraStyle | None = None,
        *,
        crop_aspect: tuple[float, float] = CROP_ASPECT,
        erase_aspect: tuple[float, float] = ERASE_ASPECT,
    ) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.style = style
        self.crop_aspect = crop_aspect
        self.erase_aspect = erase_aspect

    def __call__(self, pixels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Draw for a batch and apply it: uint8 (B, 3, H, W) into normalised float32 of the same shape.

        Args:
            pixels: The images.
            rows: As for `draw`.
        """
        return self.apply(pixels, self.draw(len(pixels), pixels.shape[-2], pixels.shape[-1], rows))

    def draw(self, n: int, height: int, width: int, rows: Tensor | None = None) -> Draws:
        """Draw for a batch of n images, whatever part of it is this rank's.

        Args:
            n: Images of the batch.
            height: Their height.
            width: Their width.
            rows: (n,) int64, their rows in the training store, by which their cameras are known. Images of another set have
                none, and keep their own camera's style.
        """
        config = self.config
        styled = self.style is not None and rows is not None
        return Draws(
            self.style.draw(rows, self.generator) if styled else None,  # type: ignore[union-attr, arg-type]
            self._crops(n, height, width) if config.crop_area != (1.0, 1.0) else None,
            self._uniform(n) < config.flip,
            config.rotate * (2 * self._uniform(n) - 1) if config.rotate else None,
            torch.randint(2 * config.pad + 1, (2, n), generator=self.generator).T
            if config.pad
            else None,
            (1 + config.jitter * (2 * self._uniform(3, n) - 1)).T if config.jitter else None,
            self._boxes(n, height, width) if config.erase else None,
        )

    def apply(self, pixels: Tensor, draws: Draws) -> Tensor:
        """Augment uint8 (B, 3, H, W) by B draws into normalised float32 of the same shape. Waits for no device.

        It reads and writes 4 MB an image of 256 x 128 with UCAL's settings, 43 MB with NNCT's and colour styles: 1.5 and 17
        microseconds at 2.5 TB/s.
        """
        if not len(pixels):
            return normalize(pixels)
        images = pixels
        if draws.styles is not None:
            assert self.style is not None
            images = self.style.apply(images, draws.styles)
        _, crops, flipped, degrees, offsets, factors, boxes = draws.to(pixels.device)
        if crops is not None:
            images = resized_crop(images, crops)
        images = flip(images, flipped)
        if degrees is not None:
            images = rotate(images, degrees)
        if offsets is not None:
            images = pad_crop(images, offsets[:, 0], offsets[:, 1], self.config.pad)
        if factors is not None:
            images = jitter(images.float(), *factors.unbind(1))
        images = normalize(images)
        return images if boxes is None else erase(images, boxes)

    def _crops(self, n: int, height: int, width: int) -> Tensor:
        """Boxes of the resized crop: area and aspect, both uniform, until one fits; the whole image where none does."""
        (low, high), (flat, steep) = self.config.crop_area, self.crop_aspect
        area = height * width * (low + (high - low) * self._uniform(n, _TRIES))
        aspect = flat + (steep - flat) * self._uniform(n, _TRIES)
        h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        h, w, some = _first(h, w, (h <= height) & (w <= width) & (h > 0) & (w > 0))
        return self._placed(h.where(some, height), w.where(some, width), height, width)

    def _boxes(self, n: int, height: int, width: int) -> Tensor:
        """Boxes as random erasing draws them: area and log aspect until one fits; an empty box where none is erased."""
        low, high = self.config.erase_area
        area = height * width * (low + (high - low) * self._uniform(n, _TRIES))
        log_aspect = [math.log(a) for a in self.erase_aspect]
        aspect = torch.exp(
            log_aspect[0] + (log_aspect[1] - log_aspect[0]) * self._uniform(n, _TRIES)
        )
        h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        h, w, some = _first(h, w, (h < height) & (w < width))
        keep = (self._uniform(n) < self.config.erase) & some
        return self._placed(h, w, height, width) * keep[:, None]

    def _placed(self, h: Tensor, w: Tensor, height: int, width: int) -> Tensor:
        """Boxes (top, left, h, w) at uniform places of the image."""
        top = (self._uniform(len(h)) * (height - h + 1)).long()
        left = (self._uniform(len(w)) * (width - w + 1)).long()
        return torch.stack([top, left, h, w], 1)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)


def _first(h: Tensor, w: Tensor, fits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first of the tries (n, tries) that fits, and whether one does: three (n,) tensors."""
    first = fits.long().argmax(1, keepdim=True)
    return h.gather(1, first)[:, 0], w.gather(1, first)[:, 0], fits.any(1)


def _grey(images: Tensor) -> Tensor:
    return (images * _channels(_GREY, images)).sum(1, keepdim=True)


def _channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return device_constant(values, like.device).view(1, 3, 1, 1)
