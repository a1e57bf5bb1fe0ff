"""Where the vectors of a feature memory are, if it is sharded over several processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reid_kernels import class_index, class_means
from torch import Tensor

from ..distributed.world import World


def even_owners(world: World, *counts: int) -> Tensor:
    """The rank of each row of tensors that `World.local_slice` cuts, int64 on the CPU.

    Args:
        world: The ranks.
        counts: Rows of each tensor.
    """
    return torch.cat([world.owner_ranks(torch.arange(n), n) for n in counts])


def places_on(owners: Tensor, rank: int) -> Tensor:
    """The place of each row among the rows of one rank.

    Args:
        owners: (rows,) int64, the rank that holds each row.
        rank: The rank to number the rows of.

    Returns:
        (rows + 1,) int64: -1 for rows of other ranks, and -1 at the end, so that an index of -1
            reads -1.
    """
    here = owners == rank
    return F.pad(torch.where(here, here.cumsum(0) - 1, -1), (0, 1), value=-1)


def class_centroids(features: Tensor, classes: Tensor, count: int, world: World) -> Tensor:
    """Unit means of the images of each class.

    Each rank returns those of its even share of the classes.

    The images go to the rank of their class, some columns at a time, and are summed there in their
    own order. The bits therefore do not depend on the number of ranks.

    Args:
        features: This rank's rows of (n, D), cut evenly.
        classes: (n,) int64, the class of each image, without gaps; -1 for no class.
        count: C, the number of classes.
        world: The ranks.

    Returns:
        (C / W, D) float.
    """
    classes = classes.cpu()
    own = world.local_slice(count)
    homes = even_owners(world, len(classes))
    # An image of no class stays where it is.
    owners = torch.where(classes < 0, homes, world.owner_ranks(classes, count))
    here = owners == world.rank
    local = torch.where(classes < 0, -1, classes - own.start)[here]
    members = class_index(local.to(features.device))
    means = [
        class_means(rows, members, own.stop - own.start)
        for _, rows in world.redistribute_rows(features, homes, owners)
    ]
    return F.normalize(means[0] if len(means) == 1 else torch.cat(means, 1))
