"""Features of images in memory, for other programs: `Embedder(path)(images)`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from .config import EngineConfig, TestFeatures
from .data.cache import threads
from .data.pixels import image_to_rgb, read_image, reason_of, resized
from .engine.console import Reporter
from .errors import DataError, DivergedError, printable
from .models import BackboneBuilder
from .runs.checks import pick_device, working_on
from .runs.trained import find_run, load_trained
from .settings import validate

Color = Literal["rgb", "bgr"]
#: One image: a path, an image of Pillow, or an array (H, W, 3) or (H, W) uint8.
OneImage = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_EXPECTED = (
    "a path, a PIL image, an array (H, W, 3) or (H, W) uint8, a list of these, or an array "
    "(n, H, W, 3) uint8"
)


class Embedder:
    """A trained network that turns images into unit-norm features.

        embedder = Embedder("runs/mine")
        features = embedder(["a.jpg", "b.jpg"])
        similarity = features @ features.T

    An image is decoded, turned, resized and normalised as for training and evaluation, so that the
    features are those of `fastreid-al extract`. Several threads may call one embedder; they decode
    at the same time, and the network runs one batch at a time.

    Args:
        path: Folder of a run, a checkpoint, or a bare weights file.
        device: "auto" (CUDA where there is a GPU), "cpu", "cuda" or "cuda:N".
        batch: Images that the network gets at a time.
        flip: Whether a feature is the mean of those of the image and of its mirror image.
        model: Backbone of a bare weights file, by name or as the function that builds it.
        test_features: Which features, "bn" or "pool5"; those of the checkpoint when not given.
        height: Height of the network's images; that of the checkpoint when not given, else 256.
        width: Width of the network's images; that of the checkpoint when not given, else 128.
        precision: "float32", "bf16", or "auto": bf16 on a GPU, as in `engine.precision`. On a CPU
            features are float32.
        inference: What runs the network on a CPU, as in `engine.inference`: "auto", "torch" or
            "openvino".

    Attributes:
        dim: D, the number of values of a feature.
        height: Height in pixels that images are resized to.
        width: Width in pixels that images are resized to.
        digest: SHA-256, in hex, of all that features depend on; that of `extract`'s files.

    Raises:
        UserError: The file cannot be read, or the arguments do not fit it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        batch: int = 256,
        flip: bool = False,
        model: str | BackboneBuilder | None = None,
        test_features: TestFeatures | None = None,
        height: int | None = None,
        width: int | None = None,
        precision: Literal["auto", "float32", "bf16"] = "auto",
        inference: Literal["auto", "torch", "openvino"] = "auto",
    ) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch: got {batch!r}, expected a whole number from 1")
        # Batches of any size: a compiled network would be compiled anew for each.
        engine = EngineConfig(precision=precision, compile="none", inference=inference)
        validate(engine)
        reporter = Reporter(Console(quiet=True))
        file = Path(path)
        trained = load_trained(
            find_run(file).checkpoint if os.path.isdir(file) else file,
            reporter,
            model=model,
            test_features=test_features,
            height=height,
            width=width,
        )
        self._device = pick_device(device)
        self._batch = batch
        self._flip = flip
        self._stage = trained.stage
        self._origin = trained.origin
        self.dim: int = trained.model.features
        self.height: int = trained.image.height
        self.width: int = trained.image.width
        self.digest: str = trained.digest(flip)
        with working_on(self._device):
            self._network = trained.on(self._device, engine, reporter)
        self._running = threading.Lock()
        self._loading = threading.Lock()

    def __call__(self, images: OneImage | Sequence[OneImage], color: Color = "rgb") -> Tensor:
        """Return the features of images.

        Args:
            images: One image or n: paths, images of Pillow, or arrays (H, W, 3) uint8; grey arrays
                (H, W) too; or one array (n, H, W, 3). Images may have any size.
            color: Order of the channels of arrays, "rgb" or "bgr" (as OpenCV reads them). Paths and
                images of Pillow do not depend on it.

        Returns:
            (n, D) float32 on the CPU, unit-norm; one row for a single image.

        Raises:
            ValueError: An argument has another type, shape or dtype.
            DataError: An image file cannot be read.
            DivergedError: Features are not finite.
        """
        if color not in get_args(Color):
            raise ValueError(f"color: got {color!r}, expected rgb or bgr")
        listed = _as_list(images)
        features = torch.empty(len(listed), self.dim)
        for start in range(0, len(listed), self._batch):
            part = listed[start : start + self._batch]
            pixels = self._pixels(part, start, color)
            features[start : start + len(part)] = self._features(pixels, len(listed))
        return features

    def _pixels(self, images: Sequence[Any], start: int, color: Color) -> Tensor:
        """The pixels of a batch: (B, 3, height, width) uint8."""
        out = np.empty((len(images), 3, self.height, self.width), np.uint8)

        def fill(index: int) -> None:
            name = f"image {start + index}"
            out[index] = resized(self._rgb(images[index], name, color), self.height, self.width)

        if len(images) == 1:
            fill(0)
        else:
            with threads() as pool:
                for _ in pool.map(fill, range(len(images))):
                    pass
        return torch.from_numpy(out)

    def _rgb(self, image: Any, name: str, color: Color) -> Image.Image:
        """One image in RGB."""
        if isinstance(image, str | os.PathLike):
            try:
                return read_image(Path(image))
            except Exception as error:  # Pillow raises a wide range of types on damaged files.
                raise DataError(
                    f"{printable(os.fspath(image))} cannot be read as an image ({reason_of(error)})"
                ) from error
        if isinstance(image, Image.Image):
            try:
                with self._loading:  # Pillow reads a file at the first use, in one thread only.
                    image.load()
                return image_to_rgb(image)
            except Exception as error:
                raise DataError(f"{name} cannot be read ({reason_of(error)})") from error
        return image_to_rgb(Image.fromarray(_as_array(image, name, color)))

    def _features(self, pixels: Tensor, count: int) -> Tensor:
        """Features (B, D) of a batch of a call with `count` images."""
        with self._running, working_on(self._device), torch.inference_mode():
            compute = self._network.feature_pass(count, self._stage, flip=self._flip)
            features = compute(pixels.to(self._device)).cpu()
        if not bool(torch.isfinite(features).all()):
            raise DivergedError(
                f"features of {self._origin} are not finite: the network has diverged; name an "
                "earlier checkpoint"
            )
        return features


def _as_list(images: Any) -> Sequence[Any]:
    """The images as a sequence, of one where a single one was given."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, bytes | dict) or not isinstance(images, Iterable):
        raise ValueError(f"images: got {type(images).__name__}, expected {_EXPECTED}")
    return list(images)


def _as_array(image: Any, name: str, color: Color) -> np.ndarray:
    """An image as (H, W, 3) uint8 in RGB, or as (H, W) uint8.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"{name}: got {type(image).__name__}, expected {_EXPECTED}")
    # NumPy has no bfloat16.
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(
            f"{name}: got dtype {image.dtype}, expected uint8 with values from 0 to 255"
        )
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    right = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if not right or 0 in image.shape:
        raise ValueError(f"{name}: got shape {image.shape}, expected (H, W, 3) or (H, W)")
    return np.ascontiguousarray(image[..., ::-1] if color == "bgr" and image.ndim == 3 else image)
