"""Whether an exported file computes the features of the network, and what is wrong where not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TestFeatures
from ..data.augment import IMAGENET_MEAN, IMAGENET_STD, normalize
from ..metrics.parity import Parity, compare_features
from ..models import ReIdNet
from .packages import quiet
from .runtimes import Runtime

#: Images of the parts that are run one after the other: a file must take any number of them.
_PARTS = (1, 31)
#: Mean cosine of features with those of a usual mistake from which the mistake explains them.
_EXPLAINS = 0.99
#: Largest number of half precision (float16).
_LARGEST_HALF = 65504
#: How far the length of a feature may be from 1.
_UNIT = 1e-3
#: Sizes of images that re-identification networks are trained with.
_SIZES = ((256, 128), (384, 128), (128, 64), (256, 256), (224, 224), (160, 64))
#: Edge of the smallest image, in pixels, that a backbone is tried with.
_SMALLEST = 8


class Reference(NamedTuple):
    """What an exported file must compute.

    Args:
        model: The network, in evaluation mode, on the CPU.
        stage: Which features.
        pixels: (m, 3, H, W) uint8, images of the run as its pipeline decodes them.
        features: (m, D) float32, unit-norm, the network's own features of them.
    """

    model: ReIdNet
    stage: TestFeatures
    pixels: Tensor
    features: Tensor

    @classmethod
    def of(cls, model: ReIdNet, stage: TestFeatures, pixels: Tensor) -> Reference:
        """Compute the features of images with PyTorch.

        Args:
            model: The network, in evaluation mode, on the CPU.
            stage: Which features.
            pixels: (m, 3, H, W) uint8, m of 2 or more.
        """
        return cls(model, stage, pixels, _features(model, stage, normalize(pixels)))


def _features(model: ReIdNet, stage: TestFeatures, images: Tensor) -> Tensor:
    """Features (m, D) of normalised images (m, 3, H, W)."""
    with torch.no_grad():
        return torch.cat([model(part, stage) for part in images.split(_PARTS[1])])


def check_file(reference: Reference, runtime: Runtime, unit_norm: bool) -> tuple[Parity, str]:
    """Compare the features of a file with the network's.

    Args:
        reference: What the file must compute.
        runtime: The file as its library runs it.
        unit_norm: Whether the file promises features of length 1.

    Returns:
        How far the features differ, and what is wrong, as a clause; empty where nothing is.
    """
    pixels = reference.pixels
    nothing = Parity(len(pixels), False, float("nan"), float("inf"), 0, 0)
    height, width = pixels.shape[-2:]
    if runtime.size not in (None, (height, width)):
        taken = "{} x {}".format(*runtime.size or ())
        return nothing, f"it takes images of {taken}, the run has {height} x {width}"
    try:
        with quiet():
            parts = pixels.split([*_PARTS, len(pixels) - sum(_PARTS)] if len(pixels) > 32 else 1)
            found = torch.cat([runtime.features(part).float() for part in parts])
    except Exception as error:  # each library has exceptions of its own
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        return nothing, f"it fails on images of {height} x {width} ({reason.strip()[:200]})"
    if found.shape != reference.features.shape:
        got, wanted = tuple(found.shape), tuple(reference.features.shape)
        return nothing, f"it computes features of shape {got}, expected {wanted}"
    parity = compare_features(reference.features, found)
    fault = "" if parity.holds else f"{parity}; {find_fault(reference, found)}"
    lengths = found.norm(dim=1)
    if not fault and unit_norm and bool(((lengths - 1).abs() > _UNIT).any()):
        low, high = float(lengths.min()), float(lengths.max())
        fault = f"its features are not unit-norm: their lengths are {low:.3g} to {high:.3g}"
    return parity, fault


def find_fault(reference: Reference, found: Tensor) -> str:
    """Name the usual mistake that explains features which differ from the network's.

    Args:
        reference: What the features should be.
        found: (m, D) float32.

    Returns:
        A clause.
    """
    if not bool(torch.isfinite(found).all()):
        return _explain_overflow(reference, found)
    cosines = {
        clause: float(F.cosine_similarity(features, found).mean())
        for clause, features in _mistakes(reference)
    }
    clause = max(cosines, key=lambda one: cosines[one])
    plain = float(F.cosine_similarity(reference.features, found).mean())
    if cosines[clause] < _EXPLAINS or cosines[clause] <= plain:
        return "no common mistake explains it"
    return f"its features are those of {clause} (mean cosine {cosines[clause]:.4f})"


def _explain_overflow(reference: Reference, found: Tensor) -> str:
    count = int((~torch.isfinite(found)).any(1).sum())
    line = f"the features of {count} of {len(found)} images are not finite"
    largest = _largest_value(reference)
    if largest <= _LARGEST_HALF:
        return line
    return (
        f"{line}: values inside the network reach {largest:,.0f}, beyond the "
        f"{_LARGEST_HALF:,} of half precision; compute in float32"
    )


def _largest_value(reference: Reference) -> float:
    """Largest absolute weight, or output of a layer, for the reference's images."""
    values = [float(p.detach().abs().max()) for p in reference.model.parameters() if p.numel()]

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            values.append(float(output.detach().abs().max()))

    hooks = [module.register_forward_hook(note) for module in reference.model.modules()]
    try:
        _features(reference.model, reference.stage, normalize(reference.pixels))
    finally:
        for hook in hooks:
            hook.remove()
    return max(values)


def _mistakes(reference: Reference) -> Iterator[tuple[str, Tensor]]:
    """Yield what features would be those of, and these features, for the usual mistakes."""
    model, stage = reference.model, reference.stage
    for clause, images in _wrong_images(reference.pixels):
        found = []
        # Some backbones take images of one size only.
        with contextlib.suppress(Exception):
            found = [(clause, _features(model, stage, images))]
        yield from found
    other: TestFeatures = "pool5" if stage == "bn" else "bn"
    place = "before" if stage == "bn" else "after"
    right = normalize(reference.pixels)
    yield f"the stage {other}, {place} the last BatchNorm", _features(model, other, right)


def _wrong_images(pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield usual mistakes, and the images (m, 3, h, w) that a network gets by them."""
    raw = pixels.float()
    right = normalize(pixels)
    yield "images with red and blue exchanged", normalize(raw.flip(1))
    yield "images that were normalised twice", normalize(right * 255)
    yield "images that were normalised and divided by 255 twice", normalize(right)
    yield "images that were divided by 255 twice", normalize(raw / 255)
    yield "images that were normalised without division by 255", normalize(raw * 255)
    yield "images that were divided by 255 and not normalised", raw / 255
    yield "images that were neither divided by 255 nor normalised", raw
    mean = torch.tensor(IMAGENET_MEAN[::-1]).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD[::-1]).view(1, 3, 1, 1)
    yield "images normalised by mean and deviation in BGR order", (raw / 255 - mean) / std
    yield "images mirrored left to right", right.flip(-1)
    height, width = pixels.shape[-2:]
    yield "images with height and width exchanged", right.transpose(2, 3).contiguous()
    half = (height // 2, width // 2)
    for size in ((width, height), half, (2 * height, 2 * width), *_SIZES):
        if size != (height, width) and min(size) >= _SMALLEST:
            resized = F.interpolate(raw, size, mode="bilinear", antialias=True)
            yield f"images resized to {size[0]} x {size[1]}", normalize(resized)
