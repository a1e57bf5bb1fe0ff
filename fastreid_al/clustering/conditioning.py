"""Features that are made comparable over cameras and over dimensions before they are clustered."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reid_kernels.numerics import full_precision
from torch import Tensor

from ..arguments import (
    SINGLE_AND_DOUBLE,
    as_features,
    as_flag,
    as_ids,
    as_labels,
    as_number,
    as_world,
)
from ..distributed.world import SINGLE_PROCESS, World
from .sharding import rounds, rows_of_all

#: A dimension whose deviation is below this share of the largest one carries no information; to
#: divide by it would magnify rounding.
_DEAD = 1e-4
#: The statistics of a camera are mixed with those of all cameras as if it had this many more
#: images. A camera of few images would otherwise be standardised by noise.
_BORROWED = 8
#: Variance inside clusters below which their images are copies; that of a whole set is near 1.
_COPIES = 1e-12
#: Most images that the within-cluster covariance is computed from.
_MOST = 65_536
#: Bytes of float64 rows that are held at a time.
_BLOCK = 2**26


def standardise_by_camera(
    features: Tensor, cameras: Tensor, scale: bool = True, world: World = SINGLE_PROCESS
) -> Tensor:
    """Subtract the mean of each camera, divide by its standard deviation, and normalise the rows.

    A camera shifts and scales the features of everybody that it sees, so that images of one camera
    are more similar than images of one identity. Dimensions whose deviation is below 1e-4 of the
    largest one become 0. The statistics of a camera are mixed with those of all cameras with the
    weight of 8 images, which matters for cameras with few images only.

    Args:
        features: (n, D) float32 or float64, unit-norm; this rank's rows.
        cameras: (n,) int64 camera of each image of all ranks, -1 where unknown; images of unknown
            camera are a camera of their own.
        scale: Divide by the standard deviation; False only subtracts the mean.
        world: The ranks that the features are sharded over.

    Returns:
        This rank's rows of (n, D), unit-norm, on the device and of the dtype of the features: 267
        MB at n = 32,621 and 8.2 GB at 1e6 for D = 2,048 in float32. In addition it takes 64 MiB and
        16 bytes for each camera and dimension.

    Raises:
        ValueError: Wrong shape or dtype, a value that is not finite, or other numbers of features
            and cameras. If it is so on one rank, all ranks raise.
    """
    as_world(world)
    features = world.raise_together(lambda: as_features("features", features, SINGLE_AND_DOUBLE))
    n = rows_of_all(features, world)
    cameras = world.raise_together(lambda: as_ids("cameras", cameras, n, low=-1, per="image").cpu())
    scale = as_flag("scale", scale)
    if n == 0 or features.shape[1] == 0:
        return features.clone()
    own = world.local_slice(n)
    groups = cameras.unique(return_inverse=True)[1]  # (n,)
    count = torch.bincount(groups).to(features.device, torch.float64)[:, None]  # (C, 1)
    groups = groups[own].to(features.device)

    sums = _sums_by_group(features, groups, len(count), world)  # (C, D)
    overall = sums.sum(0) / n  # (D,)
    mean = (sums + _BORROWED * overall) / (count + _BORROWED)  # (C, D)
    squares = _sums_by_group(features, groups, len(count), world, mean)  # (C, D)
    within = squares.sum(0) / n  # (D,)
    deviation = ((squares + _BORROWED * within) / (count + _BORROWED)).sqrt()  # (C, D)
    alive = within.sqrt() > _DEAD * within.max().sqrt()  # (D,)
    factor = alive / deviation.where(alive, 1.0) if scale else alive.expand_as(mean).double()

    conditioned = torch.empty_like(features)
    for block in _blocks(features):
        of_block = groups[block]
        rows = (features[block].double() - mean[of_block]) * factor[of_block]
        conditioned[block] = _unit_rows(rows, features[block])
    return conditioned


def whiten_within_clusters(
    features: Tensor, labels: Tensor, shrinkage: float = 0.1, world: World = SINGLE_PROCESS
) -> Tensor:
    """Divide out the variation inside clusters, and normalise the rows.

    W is the mean over the clusters of two or more images of their unbiased covariance: what changes
    from one image of a person to the next. It is shrunk, W <- (1 - s) W + s tr(W) / D I, and the
    result is the unit-norm rows of (X - mean) W^(-1/2). This is linear discriminant analysis by
    one's own clusters (within-class covariance normalisation: Hatch, Kajarekar and Stolcke,
    Interspeech 2006).

    Args:
        features: (n, D) float32 or float64, unit-norm; this rank's rows.
        labels: (n,) int64 cluster of each image of all ranks, -1 outside every cluster.
        shrinkage: s, the share of the identity matrix, above 0 and at most 1.
        world: The ranks that the features are sharded over.

    Returns:
        This rank's rows of (n, D), unit-norm, as the features; the features themselves if no
        cluster has two images that differ. Memory is that of the result, 64 MiB and 24 D^2 bytes
        (100 MB at D = 2,048). The covariance is that of at most 65,536 images, in whole clusters
        that are evenly spaced.

    Raises:
        ValueError: Wrong shape or dtype, a value that is not finite, other numbers of features and
            labels, or a shrinkage outside (0, 1]. If it is so on one rank, all ranks raise.
    """
    as_world(world)
    features = world.raise_together(lambda: as_features("features", features, SINGLE_AND_DOUBLE))
    n = rows_of_all(features, world)
    labels = world.raise_together(lambda: as_labels("labels", labels, n).cpu())
    shrinkage = as_number("shrinkage", shrinkage, 0, 1)
    if shrinkage == 0:
        raise ValueError("shrinkage: got 0, expected a number above 0")
    width = features.shape[1]
    covariance = _within_covariance(features, labels, n, world)  # (D, D)
    trace = float(covariance.trace())
    if trace < _COPIES:
        return features
    covariance = (1 - shrinkage) * covariance
    covariance.diagonal().add_(shrinkage * trace / width)
    values, vectors = torch.linalg.eigh(covariance)
    transform = (vectors * values.rsqrt()) @ vectors.T  # (D, D), W^(-1/2)
    mean = _sum_of_rows(features, world) / n  # (D,)

    whitened = torch.empty_like(features)
    transform = transform.to(features.dtype)
    with full_precision(features):
        for block in _blocks(features):
            rows = (features[block].double() - mean).to(features.dtype) @ transform
            whitened[block] = _unit_rows(rows.double(), features[block])
    return whitened


def _within_covariance(features: Tensor, labels: Tensor, n: int, world: World) -> Tensor:
    """The mean of the clusters' covariances, (D, D) float64 on the device of the features."""
    width = features.shape[1]
    total = features.new_zeros((width, width), dtype=torch.float64)
    rows, sizes = _clusters_to_use(labels)
    # Each rank takes every W-th cluster, in blocks.
    parts = list(rows.split(sizes.tolist()))[world.rank :: world.size]
    most = max(1, _BLOCK // (8 * max(width, 1)))
    blocks = _blocks_of_clusters([len(part) for part in parts], most)
    for block in rounds(blocks, world):
        own = parts[block]
        wanted = torch.cat([*own, rows[:0]])  # (b,)
        lengths = torch.tensor([len(part) for part in own], dtype=torch.int64)
        fetched = world.fetch_rows(features, wanted.to(features.device), n)
        total += _scatter_matrix(fetched.double(), lengths.to(features.device))
    total = world.all_reduce_sum(total)
    return total / max(len(sizes), 1)


def _clusters_to_use(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the clusters that the covariance is computed from, and the clusters' sizes."""
    ordered, order = labels.sort(stable=True)
    clusters, sizes = ordered.unique_consecutive(return_counts=True)
    usable = (clusters >= 0) & (sizes > 1)
    images = int(sizes[usable].sum())
    if images > _MOST:
        step = -(-images // _MOST)
        numbers = usable.nonzero()[:, 0]
        usable = torch.zeros_like(usable)
        usable[numbers[::step]] = True
    return order[usable.repeat_interleave(sizes)], sizes[usable]


def _blocks_of_clusters(sizes: list[int], most: int) -> list[slice]:
    """Slices of the list of clusters, each of at most `most` images, or of a single cluster."""
    blocks = []
    begin = 0
    images = 0
    for number, size in enumerate(sizes):
        if images and images + size > most:
            blocks.append(slice(begin, number))
            begin = number
            images = 0
        images += size
    if images:
        blocks.append(slice(begin, len(sizes)))
    return blocks


def _scatter_matrix(rows: Tensor, sizes: Tensor) -> Tensor:
    """The sum of the unbiased covariances of clusters.

    Args:
        rows: (b, D) float64, one cluster after the other.
        sizes: (c,) int64 images of each cluster, 2 or more.
    """
    if len(rows) == 0:
        return rows.new_zeros((rows.shape[1], rows.shape[1]))
    means = torch.segment_reduce(rows, "mean", lengths=sizes, axis=0)  # (c, D)
    residuals = rows - means.repeat_interleave(sizes, 0)
    weights = (sizes - 1).double().rsqrt().repeat_interleave(sizes)  # (b,)
    residuals *= weights[:, None]
    return residuals.T @ residuals


def _sums_by_group(
    features: Tensor, groups: Tensor, count: int, world: World, centre: Tensor | None = None
) -> Tensor:
    """Sums of rows, or of squared differences from a centre, by group, over all ranks.

    Args:
        features: This rank's rows of (n, D).
        groups: Group of each of these rows, int64.
        count: G, the number of groups.
        world: The ranks.
        centre: (G, D) float64, or None for sums of the rows themselves.

    Returns:
        (G, D) float64.
    """
    sums = features.new_zeros((count, features.shape[1]), dtype=torch.float64)
    for block in _blocks(features):
        rows = features[block].double()
        if centre is not None:
            rows = (rows - centre[groups[block]]).square_()
        # A product, because sums by index are not deterministic on a GPU.
        sums += F.one_hot(groups[block], count).T.double() @ rows
    return world.all_reduce_sum(sums)


def _sum_of_rows(features: Tensor, world: World) -> Tensor:
    """The sum of all ranks' rows, (D,) float64."""
    total = features.new_zeros(features.shape[1], dtype=torch.float64)
    for block in _blocks(features):
        total += features[block].double().sum(0)
    return world.all_reduce_sum(total)


def _blocks(features: Tensor) -> list[slice]:
    """Slices of rows whose float64 copy takes 64 MiB at most."""
    step = max(1, _BLOCK // (8 * max(features.shape[1], 1)))
    return [slice(begin, begin + step) for begin in range(0, len(features), step)]


def _unit_rows(rows: Tensor, otherwise: Tensor) -> Tensor:
    """Normalise float64 rows (b, D); a row of zeros becomes the row that it was made of."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = rows / norms.where(norms > 0, 1.0)
    return unit.to(otherwise.dtype).where(norms > 0, otherwise)
