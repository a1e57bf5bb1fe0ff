"""Camera styles from the means and covariances of the cameras' colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..loader import device_constant, to_device_async
from ..pixels import PixelStore
from ..records import Record
from .style import CameraStyle, Progress, samples_by_camera

#: Rows and columns between two pixels of the statistics.
_STRIDE = 2

#: Variance that is added to both cameras' colours before they are matched: squared grey levels, and
#: squared units of CIELAB.
_FLOOR = {"rgb": 200.0, "lab": 30.0}

Matrix = tuple[tuple[float, ...], ...]


class ColourStyle(CameraStyle):
    """Moves colours by the linear map between two cameras' colour distributions.

    Both distributions are taken as Gaussian, in CIELAB. The map is Monge and Kantorovich's, which
    moves colours least (Pitie and Kokaram, CVMP 2007): with covariances S of the image's own camera
    and D of the drawn one, S^-1/2 (S^1/2 D S^1/2)^1/2 S^-1/2. Both get a little variance more,
    because cameras also differ in what they look at. On rendered people under simulated casts (mean
    distance in CIELAB between an image moved from camera a to b and the same scene under b's cast;
    each camera's statistics are of its own people and place):

        cast                                        none moved    CIELAB    RGB
        synthetic set's, strength 1                            8.3       3.9    3.5
        synthetic set's, strength 4                           26.4       5.7    4.3
        strength 1, channels mixed by up to 0.15           9.6       4.3    4.3
        strength 1, channels mixed by up to 0.3           11.0       4.8    4.6

    The pixels' own RGB costs less, and is nearer where the rendered gains differ much.

    Up to 400 images of a camera are sampled, every 2nd row and column; the maps take 36 bytes for
    each pair of cameras.

    Args:
        records: The n training images.
        store: Their pixels, n rows.
        probability: Probability of another camera; when not given, every camera is equally
            probable.
        space: "lab" or "rgb".
        on_progress: Called with (images read, images in all).
    """

    def __init__(
        self,
        records: Sequence[Record],
        store: PixelStore,
        probability: float | None = None,
        space: Literal["lab", "rgb"] = "lab",
        on_progress: Progress | None = None,
    ) -> None:
        super().__init__(records, probability)
        self.space = space
        #: Number of images that were sampled.
        self.read = 0
        count = len(self.numbers)
        pixels = torch.zeros(count, dtype=torch.float64)  # (C,)
        total = torch.zeros(count, 3, dtype=torch.float64)  # (C, 3)
        square = torch.zeros(count, 3, 3, dtype=torch.float64)  # (C, 3, 3)
        for camera, images in samples_by_camera(self.cameras, count, store, on_progress):
            sampled = images[:, :, ::_STRIDE, ::_STRIDE].flatten(2).double()
            if space == "lab":
                sampled = rgb_to_lab(sampled)
            colours = sampled.transpose(0, 1).flatten(1)  # (3, pixels)
            pixels[camera] += colours.shape[1]
            total[camera] += colours.sum(1)
            square[camera] += colours @ colours.T
            self.read += len(images)
        mean = total / pixels[:, None]
        covariance = square / pixels[:, None, None] - mean[:, :, None] * mean[:, None]
        floor = _FLOOR[space] * torch.eye(3, dtype=torch.float64)
        self.means = mean.float()
        #: (C, C, 3, 3) float32, from the first camera to the second.
        self.maps = _monge_kantorovich(covariance + floor).float()

    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        maps = self.maps[own, drawn]  # (B, 3, 3)
        shift = self.means[drawn, :, None] - maps @ self.means[own, :, None]  # (B, 3, 1)
        colours = pixels.flatten(2).float()  # (B, 3, pixels)
        # One copy to the device for both.
        both = to_device_async(torch.cat([shift, maps], 2), pixels.device)
        shift, maps = both.split([1, 3], 2)
        if self.space == "lab":
            moved = lab_to_rgb(torch.baddbmm(shift, maps, rgb_to_lab(colours)))
        else:
            moved = torch.baddbmm(shift, maps, colours)
        return moved.clamp_(0, 255).view(pixels.shape)

    def describe(self) -> str:
        """Describe the styles in one line for the log."""
        return f"camera styles: colours of {len(self.numbers)} cameras, from {self.read:,} images"


def _inverse(matrix: Matrix) -> Matrix:
    rows = torch.linalg.inv(torch.tensor(matrix, dtype=torch.float64)).tolist()
    return tuple(tuple(row) for row in rows)


#: Linear sRGB to CIE XYZ, divided by the white point of D65.
_RGB_TO_XYZ: Matrix = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)
#: Cube roots of XYZ to L + 16, a, b.
_ROOT_TO_LAB: Matrix = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
_XYZ_TO_RGB = _inverse(_RGB_TO_XYZ)
_LAB_TO_ROOT = _inverse(_ROOT_TO_LAB)


def rgb_to_lab(colours: Tensor) -> Tensor:
    """Convert sRGB in [0, 255] to CIELAB under D65.

    Args:
        colours: (B, 3, pixels) floating.

    Returns:
        The same shape and dtype, L in [0, 100].
    """
    x = colours / 255
    linear = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055).clamp_min(0) ** 2.4)
    xyz = device_constant(_RGB_TO_XYZ, x.device, x.dtype) @ linear
    root = torch.where(
        xyz > (6 / 29) ** 3, xyz.clamp_min(0) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29
    )
    lab: Tensor = device_constant(_ROOT_TO_LAB, x.device, x.dtype) @ root
    lab[:, 0] -= 16
    return lab


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert CIELAB under D65 to sRGB; colours outside sRGB's range are below 0 or above 255.

    Args:
        lab: (B, 3, pixels) floating.

    Returns:
        The same shape and dtype.
    """
    shifted = torch.cat([lab[:, :1] + 16, lab[:, 1:]], 1)
    root = device_constant(_LAB_TO_ROOT, lab.device, lab.dtype) @ shifted
    xyz = torch.where(root > 6 / 29, root**3, (root - 4 / 29) * 3 * (6 / 29) ** 2)
    linear = device_constant(_XYZ_TO_RGB, lab.device, lab.dtype) @ xyz
    curved = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return 255 * torch.where(linear <= 0.0031308, 12.92 * linear, curved)


def _monge_kantorovich(covariance: Tensor) -> Tensor:
    """Maps between zero-mean Gaussians: (C, 3, 3) float64, positive definite -> (C, C, 3, 3)."""
    root = _square_root(covariance)  # (C, 3, 3)
    inverse = torch.linalg.inv(root)
    middle = _square_root(root[:, None] @ covariance @ root[:, None])  # (C, C, 3, 3)
    maps: Tensor = inverse[:, None] @ middle @ inverse[:, None]
    return maps


def _square_root(matrices: Tensor) -> Tensor:
    """The positive square root of symmetric positive definite matrices (..., 3, 3)."""
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
