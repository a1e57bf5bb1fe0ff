"""The network as other programs run it: pixels in, unit-norm features out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..data.augment import IMAGENET_MEAN, IMAGENET_STD
from ..models import ReIdNet, Stage
from ..models.head import GeM
from ..models.osnet import OSNet

#: How `data.pixels.decode` resizes an image, which a program that decodes by itself must do too.
RESIZE = "bicubic, antialiased: PIL.Image.resize((width, height), PIL.Image.Resampling.BICUBIC)"


class DeployedNet(nn.Module):
    """A network with everything that stands between decoded pixels and features that are compared.

    It divides by 255, normalises with ImageNet's mean and standard deviation, computes the features
    of one stage, and scales them to unit length. Results equal those of `data.augment.normalize`
    and `ReIdNet` bit for bit.

    Args:
        model: The network, in evaluation mode, without BatchNorms of a source.
        stage: "bn" or "pool5".
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ReIdNet, stage: Stage) -> None:
        super().__init__()
        self.model = model
        self.stage: Stage = stage
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: (B, 3, H, W) uint8, RGB, of the size that the network was trained with.

        Returns:
            (B, D) float32, unit-norm.
        """
        normalised = (images.float() / 255 - self.mean) / self.std
        features: Tensor = self.model(normalised, self.stage)
        return features


def describe(
    model: ReIdNet, stage: Stage, height: int, width: int, digest: str, form: str
) -> dict[str, str]:
    """Return what a user of a file must know, as its metadata.

    Args:
        model: The network.
        stage: Which features the file computes.
        height: Height of its images in pixels.
        width: Width of its images in pixels.
        digest: SHA-256 of the weights and of what decides the features, in hex.
        form: What the file is, such as "onnx".
    """
    return {
        "model": model.name,
        "stage": stage,
        "feature_dimension": str(model.features),
        "height": str(height),
        "width": str(width),
        "colour_order": "RGB",
        "layout": "NCHW",
        "resize": RESIZE,
        "weights_digest": digest,
        "project": f"fastreid_al {__version__}",
        "form": form,
        **(_GRAPH_INPUT if form in GRAPHS else _WEIGHTS_INPUT),
    }


#: Forms that hold a graph, whose input is pixels.
GRAPHS = ("onnx", "openvino", "torchscript", "torch-export")
_GRAPH_INPUT = {
    "input": "uint8",
    "value_range": "0..255; division by 255 and ImageNet normalisation are in the graph",
    "output": "float32, unit-norm",
}
_WEIGHTS_INPUT = {
    "input": "float32",
    "value_range": "0..1 after division by 255, then normalised with ImageNet's mean and deviation",
    "output": "float32, not normalised to unit length",
}


def layout(model: ReIdNet, stage: Stage, height: int, width: int) -> dict[str, Any]:
    """Return what decides the shape of a network and of its input, as a checkpoint holds it."""
    backbone = model.backbone
    return {
        "name": model.name,
        "pool": "gem" if isinstance(getattr(backbone, "avgpool", None), GeM) else "avg",
        "test_features": stage,
        "osnet_fc": not isinstance(backbone, OSNet) or hasattr(backbone, "fc"),
        "height": height,
        "width": width,
    }
