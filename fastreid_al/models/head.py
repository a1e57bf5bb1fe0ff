"""What stands above a backbone: pooling, and the head that makes unit features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GeM(nn.Module):
    """Generalised mean pooling (Radenovic et al., TPAMI 2019), p learned from 3."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)."""
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(self.p), 1).pow(1 / self.p)


class ReIdNet(nn.Module):
    """Backbone, 1-D BatchNorm with frozen bias, L2 normalisation (UCAL Sec. 4.2).

    Args:
        name: The backbone's name, kept for checkpoints.
        backbone: (B, 3, H, W) -> (B, features).
        features: D.
    """

    def __init__(self, name: str, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.name, self.features = name, features
        self.backbone = backbone
        self.neck = nn.BatchNorm1d(features)
        self.neck.bias.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) float32 -> unit features (B, D)."""
        return F.normalize(self.neck(self.backbone(images)))
