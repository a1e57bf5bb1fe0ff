"""What stands above a backbone: pooling, and the head that makes unit features."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import Domain, DomainSwitch

Stage = Literal["bn", "raw", "pool5"]


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
        #: Of `split_batchnorm`; None where both domains share the BatchNorms.
        self.switch: DomainSwitch | None = None

    def forward(self, images: Tensor, stage: Stage = "bn", domain: Domain = "target") -> Tensor:
        """Features (B, D) of normalised images (B, 3, H, W) float32.

        Args:
            images: The images.
            stage: Which features: unit vectors after the last BatchNorm (bn), the same before they are brought to length one
                (raw), or unit vectors before that BatchNorm (pool5, which NNCT tests with).
            domain: Whose images they are, where each domain has BatchNorms of its own.
        """
        if self.switch is not None:
            self.switch.domain = domain
        pooled = self.backbone(images)
        if pooled.dtype in (torch.bfloat16, torch.float16):
            # What is compared is compared in float32.
            pooled = pooled.float()
        if stage == "pool5":
            return F.normalize(pooled)
        raw = self.neck(pooled)
        return raw if stage == "raw" else F.normalize(raw)
