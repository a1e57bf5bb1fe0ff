"""Weights files for programs that have the networks themselves: torchreid, and the tracker BoxMOT.

Both find a tensor by its name and shape, remove `module.` before a name, and skip without an error
what does not fit. torchreid: `load_pretrained_weights` in torchreid/utils/torchtools.py. BoxMOT:
`load_pretrained_weights` in boxmot/reid/core/registry.py.

Their networks end in a ReLU: no feature is negative. After this project's last BatchNorm a feature
is as often negative as positive. No weights can make the one compute the other, so both get the
features before that BatchNorm (pool5).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError, printable
from ..models import ReIdNet
from ..models.head import GeM
from ..models.osnet import FEATURES, WIDTHS, OSNet
from ..models.resnet import ResNet
from ..models.weights import read_tensors

#: Parts of a file name by which BoxMOT chooses an architecture. Older versions take the first that
#: the name contains, so it may contain one only.
_BOXMOT_NAMES = (
    *("resnet50", "resnet101", "mlfn", "hacnn", "mobilenetv2_x1_0", "mobilenetv2_x1_4"),
    *("osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25", "osnet_ibn_x1_0"),
    *("osnet_ain_x1_0", "lmbn_n", "lmbn_ain_n", "clip", "vit_nano", "vit_tiny"),
)
#: Parts of a file name that make BoxMOT resize to 256 x 256 in place of 256 x 128.
_BOXMOT_SQUARE = ("veri", "vehicleid")


def check_torchreid(model: ReIdNet) -> None:
    """Refuse a network that torchreid does not have.

    Raises:
        UserError: The message says what torchreid has.
    """
    if isinstance(model.backbone, ResNet) and isinstance(model.backbone.avgpool, GeM):
        raise UserError(
            f"torchreid's {model.name} has average pooling, this network generalised mean pooling "
            "(`network.pool` gem); export it as onnx or torchscript"
        )
    if not isinstance(model.backbone, ResNet | OSNet):
        raise UserError(
            f"torchreid has no network {printable(model.name)}, only resnet18 to resnet101 and "
            "osnet_x1_0 to osnet_x0_25; export it as onnx or torchscript"
        )


def check_tracker(model: ReIdNet, height: int, width: int, name: str) -> None:
    """Refuse a network, an image size or a file name with which BoxMOT computes something else.

    Args:
        model: The network.
        height: Height of its images in pixels.
        width: Width of its images in pixels.
        name: Name of the file.

    Raises:
        UserError: The message says what BoxMOT would do.
    """
    if isinstance(model.backbone, ResNet):
        raise UserError(
            f"BoxMOT's ResNets halve the resolution in their last stage, this {model.name} does "
            "not: with the same weights it computes other features; export it as onnx, or train "
            f"one of {', '.join(WIDTHS)}"
        )
    if not isinstance(model.backbone, OSNet):
        raise UserError(
            f"BoxMOT has no network {printable(model.name)}: it takes one of {', '.join(WIDTHS)}"
        )
    square = any(part in name for part in _BOXMOT_SQUARE)
    taken = (256, 256 if square else 128)
    if (height, width) != taken:
        why = f" because {printable(name)} contains {' or '.join(_BOXMOT_SQUARE)}" if square else ""
        raise UserError(
            f"BoxMOT resizes images to {taken[0]} x {taken[1]}{why}, this network was trained with "
            f"{height} x {width}: train with `image.height` {taken[0]} and `image.width` {taken[1]}"
        )
    found = [part for part in _BOXMOT_NAMES if part in name.lower()]
    if found != [model.name]:
        what = " and ".join(found) or "no architecture"
        raise UserError(
            f"BoxMOT takes the architecture from the name of the file, and {printable(name)} names "
            f"{what}: name it {model.name}_NAME.pt"
        )


def torchreid_state(model: ReIdNet) -> dict[str, Tensor]:
    """Return the weights of a backbone by torchreid's names, which are those of this project.

    The classifier is left out: no feature depends on it. An OSNet without the fully connected layer
    gets one that is the identity. It has 512 outputs, the first of which are the features, and the
    others 0.

    Args:
        model: The network, whose backbone is a ResNet or an OSNet.
    """
    state = {name: value.detach().clone() for name, value in model.backbone.state_dict().items()}
    if isinstance(model.backbone, OSNet) and not hasattr(model.backbone, "fc"):
        state |= _identity_layer(model.features)
    return state


def _identity_layer(inputs: int) -> dict[str, Tensor]:
    """Weights of Linear, BatchNorm and ReLU that leave what is not negative as it is."""
    norm = nn.BatchNorm1d(FEATURES)
    return {
        "fc.0.weight": torch.eye(FEATURES, inputs),
        "fc.0.bias": torch.zeros(FEATURES),
        "fc.1.weight": torch.full((FEATURES,), (1 + norm.eps) ** 0.5),
        "fc.1.bias": torch.zeros(FEATURES),
        "fc.1.running_mean": torch.zeros(FEATURES),
        "fc.1.running_var": torch.ones(FEATURES),
        "fc.1.num_batches_tracked": torch.tensor(0),
    }


def load_by_name(path: Path, backbone: nn.Module) -> list[str]:
    """Load a file as torchreid and BoxMOT do.

    Args:
        path: The file.
        backbone: Gets the tensors of the file that it has under the same name and shape.

    Returns:
        The backbone's names that the file has not.

    Raises:
        WeightsError: The file cannot be read.
    """
    content = read_tensors(path)
    saved = content.get("state_dict", content)
    own = backbone.state_dict()
    taken = {}
    for name, value in saved.items():
        plain = name.removeprefix("module.")
        if plain in own and own[plain].shape == value.shape:
            taken[plain] = value
    backbone.load_state_dict({**own, **taken})
    return [name for name in own if name not in taken]
