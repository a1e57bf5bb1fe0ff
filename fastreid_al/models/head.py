"""The embedding head above a backbone, which makes unit-norm features."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import Domain, DomainSwitch

Stage = Literal["bn", "raw", "pool5"]


class GeM(nn.Module):
    """Generalised mean pooling (Radenovic et al., TPAMI 2019); p is learned and begins at 3."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1), at least float32."""
        # Autocast raises to a power in float32 on a GPU, but not on a CPU.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(self.p), 1).pow(1 / self.p)


class ReIdNet(nn.Module):
    """Backbone, 1-D BatchNorm with frozen bias, L2 normalisation (UCAL Sec. 4.2).

    Args:
        name: The backbone's name, kept for checkpoints.
        backbone: (B, 3, H, W) -> (B, D).
        features: D.
    """

    def __init__(self, name: str, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.name = name
        self.features = features
        self.backbone = backbone
        self.neck = nn.BatchNorm1d(features)
        self.neck.bias.requires_grad_(False)
        #: Made by `split_batchnorm`; None where both domains use the same BatchNorms.
        self.switch: DomainSwitch | None = None

    def forward(self, images: Tensor, stage: Stage = "bn", domain: Domain = "target") -> Tensor:
        """Compute features (B, D) of images.

        Args:
            images: (B, 3, H, W) float32, normalised.
            stage: "bn": unit-norm features after the last BatchNorm; "raw": the same before they
                are normalised; "pool5": unit-norm features before that BatchNorm, with which NNCT
                is evaluated.
            domain: The images' domain, where each domain has BatchNorms of its own.
        """
        if self.switch is not None:
            self.switch.domain = domain
        pooled = self.backbone(images)  # (B, D)
        if pooled.dtype in (torch.bfloat16, torch.float16):
            # Features are normalised and compared in float32.
            pooled = pooled.float()
        if stage == "pool5":
            return F.normalize(pooled)
        raw = self.neck(pooled)
        return raw if stage == "raw" else F.normalize(raw)
