"""The clusters that a report shows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.records import Record
from ..engine.extract import identities_and_cameras
from ..methods.cluster_images import cluster_images
from .trained import RunFiles


def labels_of_run(run: RunFiles, features: Tensor, records: list[Record]) -> Tensor:
    """Cluster the training images of a run by its settings of `cluster`.

    Args:
        run: The run.
        features: (n, D) float32, unit-norm, under its last weights.
        records: The n images.

    Returns:
        (n,) int64 on the CPU, -1 outside every cluster.

    Raises:
        ValueError: The features cannot be clustered.
    """
    if len(records) < 2:
        return torch.full((len(records),), -1)
    cameras = identities_and_cameras(records)[1]
    return cluster_images(features, cameras, run.config.cluster).labels
