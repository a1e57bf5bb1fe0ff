"""Augmentation of whole batches, where the batch lies (CPU or GPU).

Each transform is a function of the batch and of explicit draws, one an image, so that it can be held against torchvision's
own on the same draws; `Augment` makes the draws. They come from one generator on the CPU, whatever the device, so that a run
is repeatable across devices and its state is a few kilobytes in a checkpoint.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import ImageConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_GREY = (0.2989, 0.587, 0.114)
_ERASE_TRIES = 10


def normalize(images: Tensor) -> Tensor:
    """uint8 or float in [0, 255], (B, 3, H, W) -> float32 with ImageNet's mean and standard deviation."""
    mean, std = (_channels(values, images) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.float() / 255 - mean) / std


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images whose entry of `flipped` (B,) bool is set."""
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


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
    images = (images * brightness.view(-1, 1, 1, 1)).clamp(0, 255)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast.view(-1, 1, 1, 1)).clamp(0, 255)
    return torch.lerp(_grey(images), images, saturation.view(-1, 1, 1, 1)).clamp(0, 255)


def erase(images: Tensor, boxes: Tensor, value: float = 0.0) -> Tensor:
    """Fill a box (top, left, height, width), (B, 4) int64, of each image; after `normalize`, 0 is the mean colour."""
    top, left, height, width = boxes.unbind(1)
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], value)


class Augment:
    """UCAL's augmentation: flip, pad and crop, normalise, random erasing; colour jitter when set."""

    def __init__(self, config: ImageConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Augment uint8 (B, 3, H, W) into normalised float32 of the same shape."""
        config, n, device = self.config, len(pixels), pixels.device
        images = flip(pixels, (self._uniform(n) < config.flip).to(device))
        if config.pad:
            offsets = torch.randint(2 * config.pad + 1, (2, n), generator=self.generator).to(device)
            images = pad_crop(images, offsets[0], offsets[1], config.pad)
        if config.jitter:
            factors = (1 + config.jitter * (2 * self._uniform(3, n) - 1)).to(device)
            images = jitter(images.float(), factors[0], factors[1], factors[2])
        images = normalize(images)
        if config.erase:
            images = erase(images, self._boxes(n, *images.shape[-2:]).to(device))
        return images

    def _boxes(self, n: int, height: int, width: int) -> Tensor:
        """Boxes as random erasing draws them: area and log aspect until one fits; an empty box where none is erased."""
        low, high = self.config.erase_area
        area = height * width * (low + (high - low) * self._uniform(n, _ERASE_TRIES))
        log_aspect = [math.log(a) for a in self.config.erase_aspect]
        aspect = torch.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * self._uniform(n, _ERASE_TRIES))
        h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        fits = (h < height) & (w < width)
        first = fits.long().argmax(1, keepdim=True)
        h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
        keep = (self._uniform(n) < self.config.erase) & fits.any(1)
        top = (self._uniform(n) * (height - h + 1)).long()
        left = (self._uniform(n) * (width - w + 1)).long()
        return torch.stack([top, left, h, w], 1) * keep[:, None]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)


def _grey(images: Tensor) -> Tensor:
    return (images * _channels(_GREY, images)).sum(1, keepdim=True)


def _channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(1, 3, 1, 1)
