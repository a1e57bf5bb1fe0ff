"""Augmentation of whole batches, on the batch's device (CPU or GPU).

Each transform is a function of the batch and of explicit draws, one for each image, so that it can
be compared with torchvision's on the same draws; `Augment` makes the draws. They come from one
generator on the CPU, whatever the device, so that a run is repeatable across devices and its state
takes a few kilobytes in a checkpoint. Processes that train on one batch all draw for the whole of
it and apply their part, so that the generators stay equal and the images do not depend on the
number of processes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import (
    as_ids,
    as_instance,
    as_integer,
    as_number,
    as_tensor,
    check_finite,
    described,
)
from ..config import ImageConfig
from .camera_style import CameraStyle, Styles
from .loader import device_constant, to_device_async

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: Least and greatest height / width of a resized crop, and of an erased box.
CROP_ASPECT = (2.0, 3.0)
ERASE_ASPECT = (0.3, 3.33)
#: Weights of red, green and blue in the luminance.
_LUMINANCE = (0.2989, 0.587, 0.114)
#: Boxes that are drawn for each image, of which the first that fits is taken.
_TRIES = 10


def normalize(images: Tensor) -> Tensor:
    """Normalise images with ImageNet's mean and standard deviation.

    Args:
        images: (B, 3, H, W) uint8 or floating, in [0, 255].

    Returns:
        (B, 3, H, W) float32.
    """
    images = _as_images(images)
    mean = _by_channel(IMAGENET_MEAN, images)
    std = _by_channel(IMAGENET_STD, images)
    return (images / 255).sub_(mean).div_(std)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images (B, 3, H, W) whose entry of `flipped` (B,) bool is set."""
    images = _as_images(images)
    flipped = _as_draws("flipped", flipped, images, (torch.bool,))
    if flipped.dtype != torch.bool:
        raise ValueError(f"flipped: got dtype {flipped.dtype}, expected torch.bool")
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Enlarge a box of each image to the whole, bilinearly.

    Pixels outside the box have no part in the result: at its border the last row or column is
    repeated, as if the box were cut out first and resized after.

    Args:
        images: (B, 3, H, W), uint8 or floating.
        boxes: (B, 4) int64: top, left, height, width.

    Returns:
        (B, 3, H, W) float32.
    """
    images = _as_images(images)
    boxes = _as_boxes(boxes, images)
    top, left, height, width = boxes.unbind(1)
    _check_boxes(boxes, images.shape[-2], images.shape[-1])
    batch = torch.arange(len(images), device=images.device)[:, None]  # (B, 1)
    # Rows are mixed before columns, because each is one weighted sum of two.
    first, second, weight = _neighbours(top, height, images.shape[-2])  # (B, H) each
    # Advanced indices around a slice put the channel axis last but one.
    upper = images[batch, :, first].float()  # (B, H, 3, W)
    lower = images[batch, :, second].float()
    images = torch.lerp(upper, lower, weight[:, :, None, None])
    first, second, weight = (
        x[:, None, None].expand_as(images) for x in _neighbours(left, width, images.shape[-1])
    )
    mixed = torch.lerp(images.gather(-1, first), images.gather(-1, second), weight)
    return mixed.movedim(2, 1)


def _neighbours(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where `size` pixels fall between the lines of an interval, when it is resized.

    Args:
        start: (B,) int64, first line of the interval.
        length: (B,) int64, number of its lines.
        size: Number of pixels.

    Returns:
        The two neighbouring lines (int64) and the weight of the second (float32), (B, size) each.
    """
    centres = torch.arange(size, device=start.device) + 0.5
    last = (length - 1)[:, None]
    position = (centres * (length / size)[:, None] - 0.5).clamp_min(0).minimum(last)
    first = position.long()
    second = (first + 1).minimum(last)
    return start[:, None] + first, start[:, None] + second, position - first


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre, bilinearly, with black beyond the border.

    Args:
        images: (B, 3, H, W), uint8 or floating.
        degrees: (B,), counter-clockwise.

    Returns:
        (B, 3, H, W) float32.
    """
    images = _as_images(images)
    degrees = _as_draws("degrees", degrees, images)
    check_finite("degrees", degrees)
    height, width = images.shape[-2:]
    angles = torch.deg2rad(degrees.float())
    cos = angles.cos()
    sin = angles.sin()
    zero = torch.zeros_like(angles)
    # grid_sample measures both axes in half-lengths, hence the ratio of the two.
    entries = (cos, -sin * (height / width), zero, sin * (width / height), cos, zero)
    matrices = torch.stack(entries, 1).view(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(
        matrices, [len(images), 3, height, width], align_corners=False
    )
    return torch.nn.functional.grid_sample(
        images.float(), grid, "bilinear", "zeros", align_corners=False
    )


def pad_crop(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Pad with black pixels on every side and crop back to the original size.

    Args:
        images: (B, 3, H, W).
        top: (B,) int64 in [0, 2 pad].
        left: (B,) int64 in [0, 2 pad].
        pad: Pixels of the border.

    Returns:
        The same shape and dtype.
    """
    images = _as_images(images)
    pad = as_integer("pad", pad, 0)
    top = _as_places("top", top, images, 2 * pad)
    left = _as_places("left", left, images, 2 * pad)
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    rows = top[:, None] + torch.arange(height, device=images.device)  # (B, H)
    columns = left[:, None] + torch.arange(width, device=images.device)  # (B, W)
    batch = torch.arange(len(images), device=images.device)
    # Advanced indices around a slice put the channel axis last.
    return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, in this order.

    Args:
        images: (B, 3, H, W) float32 in [0, 255].
        brightness: (B,), a factor around 1.
        contrast: (B,), a factor around 1.
        saturation: (B,), a factor around 1.

    Returns:
        (B, 3, H, W) float32 in [0, 255].
    """
    images = _as_images(images).float()
    brightness = _as_draws("brightness", brightness, images).float()
    contrast = _as_draws("contrast", contrast, images).float()
    saturation = _as_draws("saturation", saturation, images).float()
    images = (images * brightness.view(-1, 1, 1, 1)).clamp_(0, 255)
    mean = _luminance(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast.view(-1, 1, 1, 1)).clamp_(0, 255)
    return torch.lerp(_luminance(images), images, saturation.view(-1, 1, 1, 1)).clamp_(0, 255)


def erase(images: Tensor, boxes: Tensor, value: float = 0.0) -> Tensor:
    """Fill a box of each image.

    Args:
        images: (B, 3, H, W).
        boxes: (B, 4) int64: top, left, height, width; an empty box erases nothing.
        value: What the box is filled with; after `normalize`, 0 is the mean colour.
    """
    images = _as_images(images)
    boxes = _as_boxes(boxes, images)
    info = torch.finfo if images.is_floating_point() else torch.iinfo
    limits = info(images.dtype)
    value = as_number("value", value, limits.min, limits.max)
    top, left, height, width = boxes.unbind(1)
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])  # (B, W)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    return images.masked_fill(inside[:, None], value)


class Draws(NamedTuple):
    """The draws for a batch of n images, on the CPU; None for transforms that are left out.

    They take some 100 bytes for each image.
    """

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
        """Return the draws for a part of the batch."""
        styles = None if self.styles is None else self.styles.part(rows)
        tensors = [None if x is None else x[rows] for x in self[1:]]
        return Draws._make([styles, *tensors])

    def to(self, device: torch.device) -> Draws:
        """Copy all but the styles to a device, by one copy that the host does not wait for."""
        if device.type == "cpu":
            return self
        # Every number is a float32 or a whole number below 2^24, so that nothing is rounded.
        columns = [x.reshape(len(self.flipped), -1).float() for x in self[1:] if x is not None]
        packed = to_device_async(torch.cat(columns, 1), device)
        parts = iter(packed.split([x.shape[1] for x in columns], 1))
        moved = []
        for x in self[1:]:
            moved.append(None if x is None else next(parts).reshape(x.shape).to(x.dtype))
        return Draws._make([self.styles, *moved])


class Augment:
    """Augments batches by the transforms that the settings choose.

    In this order: camera style, resized crop, flip, rotation, pad and crop, jitter, normalisation,
    random erasing. A transform that is left out draws no numbers, so that it does not change the
    draws of the others.

    Args:
        config: The settings.
        seed: Seed of the draws.
        style: Camera styles; none when not given.
        crop_aspect: Least and greatest height / width of a resized crop.
        erase_aspect: Least and greatest height / width of an erased box.
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
        self.config = as_instance("config", config, ImageConfig)
        self.generator = torch.Generator().manual_seed(as_integer("seed", seed))
        self.style = style if style is None else as_instance("style", style, CameraStyle)
        self._crop_aspect = _as_aspects("crop_aspect", crop_aspect)
        self._erase_aspect = _as_aspects("erase_aspect", erase_aspect)

    def __call__(self, pixels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Draw for a batch and augment it.

        Args:
            pixels: (B, 3, H, W) uint8.
            rows: (B,) int64, the images' rows in the training store, for their cameras; None for
                images of another set, which keep their own camera's style.

        Returns:
            (B, 3, H, W) float32, normalised.
        """
        pixels = _as_images(pixels)
        return self.apply(pixels, self.draw(len(pixels), pixels.shape[-2], pixels.shape[-1], rows))

    def draw(self, n: int, height: int, width: int, rows: Tensor | None = None) -> Draws:
        """Draw for a whole batch, of which this process may augment a part.

        Args:
            n: Images in the batch.
            height: Their height.
            width: Their width.
            rows: (n,) int64, the images' rows in the training store, for their cameras; None for
                images of another set, which keep their own camera's style.
        """
        n = as_integer("n", n, 0)
        height = as_integer("height", height, 1)
        width = as_integer("width", width, 1)
        if rows is not None:
            rows = as_ids("rows", rows, n, low=0, per="image")
        config = self.config
        # The order of the draws is part of a run's results.
        styles = None
        if self.style is not None and rows is not None:
            styles = self.style.draw(rows, self.generator)
        crops = self._crops(n, height, width) if config.crop_area != (1.0, 1.0) else None
        flipped = self._uniform(n) < config.flip
        degrees = config.rotate * (2 * self._uniform(n) - 1) if config.rotate else None
        offsets = None
        if config.pad:
            offsets = torch.randint(2 * config.pad + 1, (2, n), generator=self.generator).T
        factors = (1 + config.jitter * (2 * self._uniform(3, n) - 1)).T if config.jitter else None
        boxes = self._boxes(n, height, width) if config.erase else None
        return Draws(styles, crops, flipped, degrees, offsets, factors, boxes)

    def apply(self, pixels: Tensor, draws: Draws) -> Tensor:
        """Augment images by their draws; the host waits for no device.

        It reads and writes 4 MB for each image of 256 x 128 with UCAL's settings, 43 MB with NNCT's
        and colour styles: 1.5 and 17 microseconds at 2.5 TB/s.

        Args:
            pixels: (B, 3, H, W) uint8.
            draws: Of B images.

        Returns:
            (B, 3, H, W) float32, normalised.
        """
        pixels = _as_images(pixels)
        as_instance("draws", draws, Draws)
        if len(draws.flipped) != len(pixels):
            raise ValueError(
                f"draws: got those of {len(draws.flipped)} images, expected {len(pixels)}"
            )
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
        """Boxes of the resized crop, (n, 4) int64.

        Area and aspect are uniform; the first box that fits is taken, and the whole image where
        none does.
        """
        low, high = self.config.crop_area
        least, greatest = self._crop_aspect
        area = height * width * (low + (high - low) * self._uniform(n, _TRIES))
        aspect = least + (greatest - least) * self._uniform(n, _TRIES)
        h = (area * aspect).sqrt().round().long()
        w = (area / aspect).sqrt().round().long()
        h, w, fits = _first_fit(h, w, (h <= height) & (w <= width) & (h > 0) & (w > 0))
        return self._placed(h.where(fits, height), w.where(fits, width), height, width)

    def _boxes(self, n: int, height: int, width: int) -> Tensor:
        """Boxes of random erasing, (n, 4) int64; empty where nothing is erased.

        Area and log aspect are uniform; the first box that fits is taken.
        """
        low, high = self.config.erase_area
        least, greatest = (math.log(aspect) for aspect in self._erase_aspect)
        area = height * width * (low + (high - low) * self._uniform(n, _TRIES))
        aspect = torch.exp(least + (greatest - least) * self._uniform(n, _TRIES))
        h = (area * aspect).sqrt().round().long()
        w = (area / aspect).sqrt().round().long()
        h, w, fits = _first_fit(h, w, (h < height) & (w < width))
        erased = (self._uniform(n) < self.config.erase) & fits
        return self._placed(h, w, height, width) * erased[:, None]

    def _placed(self, h: Tensor, w: Tensor, height: int, width: int) -> Tensor:
        """Boxes (top, left, h, w) at uniform positions in the image, (n, 4) int64."""
        top = (self._uniform(len(h)) * (height - h + 1)).long()
        left = (self._uniform(len(w)) * (width - w + 1)).long()
        return torch.stack([top, left, h, w], 1)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)


def _as_images(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), uint8 or floating."""
    images = as_tensor("images", images, 4, "(B, 3, H, W)")
    if images.shape[1] != 3:
        raise ValueError(f"images: got shape {tuple(images.shape)}, expected (B, 3, H, W)")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images: got dtype {images.dtype}, expected torch.uint8 or floating")
    return images


def _as_draws(name: str, x: Tensor, images: Tensor, dtypes: tuple[torch.dtype, ...] = ()) -> Tensor:
    """Draws (B,) for images, floating or of these dtypes, on their device."""
    x = as_tensor(name, x, 1, f"({len(images)},), one for each image")
    if len(x) != len(images) or not (x.is_floating_point() or x.dtype in dtypes):
        got = described(x)
        raise ValueError(f"{name}: got {got}, expected ({len(images)},), one for each image")
    if x.device != images.device:
        raise ValueError(f"{name}: got device {x.device}, expected {images.device}")
    return x


def _as_places(name: str, x: Tensor, images: Tensor, last: int) -> Tensor:
    """Rows or columns (B,) int64 of padded images, 0 to `last`."""
    x = as_ids(name, x, len(images), low=0, high=last + 1, per="image")
    if x.device != images.device:
        raise ValueError(f"{name}: got device {x.device}, expected {images.device}")
    return x


def _as_boxes(boxes: Tensor, images: Tensor) -> Tensor:
    """Boxes (B, 4) int64 of images, on their device."""
    boxes = as_tensor("boxes", boxes, 2, f"({len(images)}, 4)")
    if boxes.shape[0] != len(images) or boxes.shape[1] != 4 or boxes.dtype != torch.int64:
        raise ValueError(
            f"boxes: got {described(boxes)}, expected ({len(images)}, 4) torch.int64: top, left, "
            "height, width of each image"
        )
    if boxes.device != images.device:
        raise ValueError(f"boxes: got device {boxes.device}, expected {images.device}")
    return boxes


def _check_boxes(boxes: Tensor, height: int, width: int) -> None:
    """Refuse boxes that are empty or not inside images. They are read on a CPU only."""
    if not boxes.is_cpu:
        return
    begin, size = boxes[:, :2], boxes[:, 2:]
    inside = (begin >= 0) & (size >= 1) & (begin + size <= torch.tensor([height, width]))
    if not bool(inside.all()):
        row = int((~inside.all(1)).nonzero()[0, 0])
        raise ValueError(
            f"boxes: got {boxes[row].tolist()} at index {row}, expected top, left, height, width "
            f"of a box inside {height} x {width} pixels"
        )


def _as_aspects(name: str, aspects: tuple[float, float]) -> tuple[float, float]:
    """Least and greatest height / width."""
    if not isinstance(aspects, tuple | list) or len(aspects) != 2:
        raise ValueError(f"{name}: got {described(aspects)}, expected two numbers")
    least, greatest = (as_number(name, aspect, 1e-6, 1e6) for aspect in aspects)
    if least > greatest:
        raise ValueError(f"{name}: got {least} to {greatest}, expected the least one first")
    return least, greatest


def _first_fit(h: Tensor, w: Tensor, fits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first of the tries (n, tries) that fits, and whether one does: three (n,) tensors."""
    first = fits.long().argmax(1, keepdim=True)
    return h.gather(1, first)[:, 0], w.gather(1, first)[:, 0], fits.any(1)


def _luminance(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return (images * _by_channel(_LUMINANCE, images)).sum(1, keepdim=True)


def _by_channel(values: tuple[float, float, float], like: Tensor) -> Tensor:
    """Values of the three channels on a tensor's device, (1, 3, 1, 1)."""
    return device_constant(values, like.device).view(1, 3, 1, 1)
