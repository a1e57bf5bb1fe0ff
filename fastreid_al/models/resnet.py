"""ResNet (He et al., Deep Residual Learning for Image Recognition, CVPR 2016) for re-id.

Parameter names are those of torchvision, so that its weights load strictly.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..errors import WeightsError
from .backbone import BackboneOptions
from .head import GeM
from .narrow_conv import narrow_convolutions

#: Block and number of blocks of each stage.
_STAGES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}


class ResNet(torchvision.models.ResNet):
    """torchvision's ResNet without its classifier, the last stage at stride 1.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101.
        pool: "avg" or "gem".
    """

    def __init__(self, name: str, pool: str = "avg") -> None:
        block, layers = _STAGES[name]
        super().__init__(block, layers)
        self.name = name
        self.features = 512 * block.expansion
        self.fc: nn.Module = nn.Identity()
        # The last stage keeps its resolution, as re-id networks do since Sun et al. (PCB, ECCV
        # 2018).
        for module in self.layer4[0].modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
        narrow_convolutions(self)
        if pool == "gem":
            self.avgpool = GeM()

    def imagenet_weights(self) -> dict[str, Tensor]:
        """Return torchvision's weights, from torch's hub folder or by download.

        Raises:
            WeightsError: They are not on disk and cannot be downloaded; the message has the name of
                the file and its folder.
        """
        weights = torchvision.models.get_model_weights(self.name).DEFAULT
        file = self._imagenet_file()
        try:
            # The hash is that of a download; a file that lies in the folder already is not checked,
            # and must not be unpickled.
            return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except pickle.UnpicklingError as error:
            raise WeightsError(
                f"{file} is not a plain weights file (it is damaged, or holds pickled "
                "code, which is never run); delete it, so that it is downloaded again"
            ) from error
        except (URLError, OSError, RuntimeError, EOFError) as error:
            raise WeightsError(
                f"ImageNet weights of {self.name} could not be downloaded ({error}); "
                f"put {file.name} at {file}, or train from random weights with `weights` none"
            ) from error

    def imagenet_download(self) -> Path | None:
        """Return the file that `imagenet_weights` would download; None where it is on disk."""
        file = self._imagenet_file()
        return None if file.exists() else file

    def _imagenet_file(self) -> Path:
        url = torchvision.models.get_model_weights(self.name).DEFAULT.url
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def resnet(options: BackboneOptions) -> ResNet:
    """Build a ResNet; D = 512 for resnet18 and resnet34, 2,048 for resnet50 and resnet101."""
    return ResNet(options.name, options.pool)
