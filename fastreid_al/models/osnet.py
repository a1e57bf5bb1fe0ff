"""OSNet (Zhou et al., Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019).

Parameter names are those of the published checkpoints of the authors' library, so that these load
strictly.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from .backbone import BackboneOptions
from .weights import read_state_dict

#: Channels of the stem and of the three stages.
WIDTHS = {
    "osnet_x1_0": (64, 256, 384, 512),
    "osnet_x0_75": (48, 192, 288, 384),
    "osnet_x0_5": (32, 128, 192, 256),
    "osnet_x0_25": (16, 64, 96, 128),
}
#: Width of the fully connected layer.
FEATURES = 512


class ConvLayer(nn.Module):
    """Convolution, BatchNorm and, unless linear, ReLU.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        kernel: Edge of the kernel.
        stride: Stride of the convolution.
        linear: Leave out the ReLU.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.Identity() if linear else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        return self.relu(self.bn(self.conv(x)))


class LightConv3x3(nn.Module):
    """Linear 1x1 convolution, depthwise 3x3, BatchNorm, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class ChannelGate(nn.Module):
    """Weighs channels by a bottleneck over their means; all streams of a block use one gate."""

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(width, width // reduction, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(width // reduction, width, 1)
        self.gate_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x * self.gate_activation(self.fc2(self.relu(self.fc1(self.global_avgpool(x)))))


class OSBlock(nn.Module):
    """Four streams of one to four light convolutions, gated and summed around a residual."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = ConvLayer(inputs, width)
        self.conv2a = LightConv3x3(width)
        self.conv2b = nn.Sequential(*(LightConv3x3(width) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LightConv3x3(width) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LightConv3x3(width) for _ in range(4)))
        self.gate = ChannelGate(width)
        self.conv3 = ConvLayer(width, outputs, linear=True)
        self.downsample = ConvLayer(inputs, outputs, linear=True) if inputs != outputs else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        residual = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)  # (B, outputs / 4, H, W)
        streams = (self.conv2a(x), self.conv2b(x), self.conv2c(x), self.conv2d(x))
        gated = sum((self.gate(s) for s in streams[1:]), self.gate(streams[0]))
        return self.relu(self.conv3(gated) + residual)


class OSNet(nn.Module):
    """OSNet up to its features, without the classifier; D = 512 with the fully connected layer.

    Args:
        name: A name in `WIDTHS`.
        fc: Keep the fully connected layer above the pooling.
    """

    def __init__(self, name: str, fc: bool = True) -> None:
        super().__init__()
        stem, first, second, third = WIDTHS[name]
        self.name = name
        self.conv1 = ConvLayer(3, stem, kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(stem, first, shrink=True)
        self.conv3 = _stage(first, second, shrink=True)
        self.conv4 = _stage(second, third, shrink=False)
        self.conv5 = ConvLayer(third, third)
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.features = FEATURES if fc else third
        if fc:
            self.fc = nn.Sequential(nn.Linear(third, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU())
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        pooled: Tensor = self.global_avgpool(x).flatten(1)  # (B, C)
        return self.fc(pooled) if hasattr(self, "fc") else pooled

    def imagenet_weights(self) -> dict[str, Tensor]:
        """Return the authors' weights, from torch's hub folder.

        Raises:
            WeightsError: The file is not there; the message says where to get it and where to put
                it.
        """
        file = Path(torch.hub.get_dir()) / "checkpoints" / f"{self.name}_imagenet.pth"
        if not file.is_file():
            raise WeightsError(
                f"ImageNet weights of {self.name} are published for download by hand: "
                f"put {file.name} of the deep-person-reid model zoo at {file}, "
                "or train from random weights with `weights` none"
            )
        return read_state_dict(file)


def osnet(options: BackboneOptions) -> OSNet:
    """Build an OSNet.

    Raises:
        ValueError: Another pooling than "avg" was asked for.
    """
    if options.pool != "avg":
        raise ValueError(
            f"pool: {options.pool} is for a ResNet, {options.name} has a pooling of its own; "
            "leave it at avg"
        )
    return OSNet(options.name, options.osnet_fc)


def _stage(inputs: int, outputs: int, shrink: bool) -> nn.Sequential:
    """Two blocks and, where it shrinks, a transition that halves the resolution."""
    blocks: list[nn.Module] = [OSBlock(inputs, outputs), OSBlock(outputs, outputs)]
    if shrink:
        blocks.append(nn.Sequential(ConvLayer(outputs, outputs), nn.AvgPool2d(2, stride=2)))
    return nn.Sequential(*blocks)


def _initialise(module: nn.Module) -> None:
    """Initialise a layer as the authors do."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
