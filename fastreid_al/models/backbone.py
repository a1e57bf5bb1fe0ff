"""The protocol of a backbone, and what the function that builds one receives.

`build_model` finds the function by name: the built-in ones are listed in `fastreid_al.plugins`,
those of other packages are entry points of the group `fastreid_al.models`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn


@dataclass(frozen=True)
class BackboneOptions:
    """What the function that builds a backbone receives; it may ignore all of it.

    Args:
        name: Name of the model that was asked for, where a function builds several.
        pool: "avg" or "gem", for backbones whose pooling can be chosen.
        osnet_fc: Keep the fully connected layer above OSNet's pooling.
    """

    name: str
    pool: str = "avg"
    osnet_fc: bool = True


class BackboneBuilder(Protocol):
    """Builds a backbone.

    A backbone is an `nn.Module` whose forward takes normalised images (B, 3, H, W) float32 and
    returns features (B, D), and whose attribute `features` is D. It may have a method
    `imagenet_weights()` that returns a state dictionary for the setting `weights` imagenet. If that
    may download a file, a method `imagenet_download()` returns its path where the file is not on
    disk yet, and None where it is: a dry run downloads nothing.
    """

    def __call__(self, options: BackboneOptions) -> nn.Module:
        """Build the backbone with random weights.

        Raises:
            ValueError: The options do not fit the backbone.
        """
        ...
