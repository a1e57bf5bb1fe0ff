"""Feature memories, contrasted with by UCAL's Eq. 1. The arithmetic is in `reid_kernels`, the state is here.

A memory is a buffer: no gradient flows into it. With a source (SpCL's form of domain adaptation) it also holds a centroid for
each of the source's identities, behind the vectors of the target and moved like them. Rows of the source's images are numbered
after the n of the target, its classes after those of the target.

Over several ranks each holds the vectors of some classes, whole classes always: then a rank's part of Eq. 1 for the whole batch
is a log-sum-exp and a weighted mean of its own vectors, and nothing as long as the number of classes is sent. In a step of W
ranks, B features of D float32 values in all, a rank receives (W - 1) / W of so many bytes:

    features and rows of the batch, before the loss and again before the update    2 B (4 D + 8)
    loss and log-sum-exp against each part, and whether the target is in it        12 B W
    gradients, summed where they belong                                            4 B D
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from reid_kernels import (
    ClassIndex,
    NotFiniteError,
    bank_contrast_loss,
    class_index,
    class_means,
    hardest_rows,
    partial_contrast,
    update_bank_,
)
from reid_kernels.sharded import with_gradient
from torch import Tensor

from ..distributed.world import SINGLE_PROCESS, Sharded, World


class FeatureMemory:
    """What the two memories share: a bank of unit vectors, the class of each image, Eq. 1 over the class centroids.

    What starts a memory, begins an epoch, or saves and restores it is collective, and so are loss and update.

    Args:
        momentum: Share of the old vector that an update keeps.
        temperature: tau of Eq. 1.
        source: (m,) int64 identity of each of the source's images, numbered without gaps; None without a source.
        world: The ranks that share the memory.
    """

    def __init__(
        self,
        momentum: float,
        temperature: float,
        source: Tensor | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.momentum, self.temperature, self.world = momentum, temperature, world
        self.source = torch.zeros(0, dtype=torch.int64) if source is None else source
        #: Number of the source's identities, each a class.
        self.source_count = int(self.source.max()) + 1 if len(self.source) else 0
        #: This rank's vectors, by their number in the whole memory.
        self.bank = torch.zeros(0, 0)
        #: (n + m,) int64, the class of each image, on every rank.
        self.classes = torch.zeros(0, dtype=torch.int64)
        #: Number of the target's classes.
        self.count = 0
        #: The rows of the bank by class, where a class has several.
        self._index: ClassIndex | None = None
        #: Of several ranks: the one on which each vector lies, on the CPU; None before the first epoch.
        self._lies: Tensor | None = None
        #: Of several ranks: the number of each class among this rank's, -1 on other ranks and, at the end, for no class.
        self._local = torch.full((1,), -1)

    def start(self, features: Tensor) -> None:
        """Take the features of all images (n, D), this rank's rows of them, extracted before the first epoch."""
        raise NotImplementedError

    def start_source(self, features: Tensor) -> None:
        """Take the features of the source's images (m, D), likewise, after `start` and before the first epoch."""
        centroids = self._centroids(features, self.source, self.source_count)
        self.bank = torch.cat([self.bank, centroids]) if len(self.bank) else centroids

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:
        """Take the epoch's features (n, D), this rank's rows, and all classes (n,), without gaps, -1 for images of none."""
        self.count = int(classes.max()) + 1 if len(classes) else 0
        self.classes = torch.cat(
            [classes.to(features.device), self.count + self.source.to(features.device)]
        )

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """Eq. 1 for the features (B, D) of the images at `rows`, mean over those that have a class.

        Of several ranks each gives its part of the batch, parts of one size, and gets the mean over it. Where images have no
        class, it is divided by the count of the whole batch over W instead: the mean of the ranks' losses, and of their
        gradients, is that of the batch always.
        """
        if self.world.size > 1:
            return self._loss_over_ranks(features, rows)
        return bank_contrast_loss(
            features, self.bank, self.classes[rows], self.temperature, classes=self._index
        )

    def update(self, features: Tensor, rows: Tensor) -> None:
        """Move the memory towards the batch's features, after the loss was taken.

        Of several ranks each gives its part; the bank is that of one process to the bit.
        """
        if self.world.size > 1:
            features, rows = self._whole_batch(features, rows)
            if features.is_cpu and not bool(torch.isfinite(features).all()):
                raise NotFiniteError(
                    "features: got a row that is not finite in the batch, expected finite values"
                )
            if not len(self.bank):
                return
        self._update(features, rows)

    def state_dict(self) -> dict[str, Any]:
        """The vectors, by their number, and the classes; of several ranks each its rows of the former, `Sharded`."""
        if self.world.size == 1:
            return {"bank": self.bank, "classes": self.classes}
        if self._lies is None:
            return {"bank": Sharded(self.bank[:0], 0), "classes": self.classes}
        n = len(self._lies)
        return {
            "bank": self.world.shard(self._moved(_home(self.world, n)), n),
            "classes": self.classes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, on as many ranks as there may be."""
        bank: Tensor | Sharded = state["bank"]
        self.bank = self.world.local_rows(bank)
        self.classes = state["classes"]
        self.count = int(self.classes.max()) + 1 - self.source_count if len(self.classes) else 0
        if self.world.size > 1:
            # No view of a whole bank, which would stay in memory.
            self.bank = self.bank.clone()
            self._lies = (
                _home(self.world, bank.n if isinstance(bank, Sharded) else len(bank))
                if self.count
                else None
            )
        if self.count:
            self._arrange()

    def _arrange(self) -> None:
        """Bring the vectors of each class together on one rank, and number them there."""
        raise NotImplementedError

    def _update(self, features: Tensor, rows: Tensor) -> None:
        raise NotImplementedError

    def _moved(self, after: Tensor) -> Tensor:
        """This rank's vectors when each lies on the rank that `after` (rows of the memory,) names."""
        assert self._lies is not None
        out = self.bank.new_empty(int((after == self.world.rank).sum()), self.bank.shape[1])
        for columns, rows in self.world.redistribute_rows(self.bank, self._lies, after):
            out[:, columns] = rows
        return out

    def _number(self, owners: Tensor) -> None:
        """Note which classes are this rank's, of the rank (classes,) of each."""
        self._local = F.pad(_places(owners, self.world.rank), (0, 1), value=-1).to(self.bank.device)

    def _centroids(self, features: Tensor, classes: Tensor, count: int) -> Tensor:
        """Unit means (C, D) of the images of each class, of several ranks this rank's `ranks.own` of them.

        The images go to the rank of their class, some columns at a time, and are summed there in their own order: the bits do
        not depend on the number of ranks.
        """
        world = self.world
        if world.size == 1:
            return F.normalize(class_means(features, classes.to(features.device), count))
        classes, own = classes.cpu(), world.local_slice(count)
        after = torch.where(classes < 0, -1, world.owner_ranks(classes, count))
        members = class_index((classes[after == world.rank] - own.start).to(features.device))
        out = features.new_empty(own.stop - own.start, features.shape[1])
        for columns, rows in world.redistribute_rows(features, _home(world, len(classes)), after):
            out[:, columns] = class_means(rows, members, len(out))
        return F.normalize(out)

    def _whole_batch(self, features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features and rows of all ranks. Images of one class come in the order of the batch, with a source too."""
        return self.world.all_gather(features.detach()), self.world.all_gather(
            rows.to(features.device)
        )

    def _loss_over_ranks(self, features: Tensor, rows: Tensor) -> Tensor:
        world, tau = self.world, self.temperature
        batch, rows = self._whole_batch(features, rows)
        classes = self.classes[rows]
        targets = self._local[classes]
        wanted = features.requires_grad and torch.is_grad_enabled()
        partial = partial_contrast(
            batch, self.bank, targets, tau, classes=self._index, gradient=wanted
        )
        told = torch.stack(
            [partial.losses, partial.log_sum_exp, (targets >= 0).to(partial.losses.dtype)]
        )
        losses, log_sums, here = world.all_gather(told[None]).unbind(1)
        counted = classes >= 0
        # The loss against the target's own part, which keeps what is small, and what the other parts add to its sum.
        others = log_sums.masked_fill(here > 0, -torch.inf).logsumexp(0)
        own_sum = log_sums.where(here > 0, 0.0).sum(0)
        loss = (losses.sum(0) + torch.logaddexp(torch.zeros_like(others), others - own_sum)).where(
            counted, 0.0
        )
        if loss.is_cpu and not bool(torch.isfinite(loss).all()):
            raise NotFiniteError(
                "features or bank: got rows whose products are not finite, expected finite values"
            )
        first = world.rank * len(features)
        loss = loss[first : first + len(features)]
        if wanted:
            weights = (partial.log_sum_exp - log_sums.logsumexp(0)).exp()[:, None]
            slopes = (
                (partial.softmax_means.mul_(weights) - partial.target_vectors)
                .div_(tau)
                .masked_fill_(~counted[:, None], 0.0)
            )
            loss = with_gradient(features, loss, world.reduce_scatter(slopes))
        return loss.sum() * world.size / counted.sum().clamp(min=1)


class InstanceMemory(FeatureMemory):
    """One unit vector per image (SpCL, Ge et al., NeurIPS 2020); a class is the mean of its members' vectors.

    267 MB at n = 32,621 and 8.2 GB at 1e6 images for D = 2,048 in float32. The vector of an identity of the source is row
    n + identity, and a class of its own.

    Over W ranks a class is whole on one, so at each epoch the vectors move: a rank holds ceil(n / W) of them and up to the rest
    of one class more, 1 GB at 1e6 and W = 8, and both the old and the new ones while they move. A class of more than n / W
    images makes its rank hold it all the same, in the worst case as much as one process. Numbers of images and classes, some
    40 bytes an image, are on every rank. Sums of B x C logits over the ranks would spare the moves, but C can be n.
    """

    def __init__(
        self,
        momentum: float,
        temperature: float,
        source: Tensor | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        super().__init__(momentum, temperature, source, world)
        #: Of several ranks: the place of each vector in this rank's bank, -1 on other ranks.
        self._slots = torch.zeros(0, dtype=torch.int64)

    def start(self, features: Tensor) -> None:  # noqa: D102
        self.bank, self._lies = features.clone(), None

    def features(self, n: int) -> Tensor:
        """The vectors of the n images, of several ranks each its rows of them.

        The vectors then lie by image: `begin_epoch` comes before the next loss.
        """
        if self._lies is not None:
            by_image = self._by_image(n)
            self.bank, self._lies = self._moved(by_image), by_image
        own = self.world.local_slice(n)
        return self.bank[: own.stop - own.start]

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:  # noqa: D102
        super().begin_epoch(features, classes)
        if self.world.size > 1 and self._lies is None:
            self._lies = self._by_image(len(classes))
        self._arrange()

    def _update(self, features: Tensor, rows: Tensor) -> None:
        if self.source_count:
            n = len(self.classes) - len(self.source)
            rows = torch.where(rows < n, rows, n + self.classes[rows] - self.count)
        update_bank_(
            self.bank, features, rows if self.world.size == 1 else self._slots[rows], self.momentum
        )

    def _by_image(self, n: int) -> Tensor:
        return torch.cat([_home(self.world, n), _home(self.world, self.source_count)])

    def _arrange(self) -> None:
        n = len(self.classes) - len(self.source)
        centroids = torch.arange(
            self.count, self.count + self.source_count, device=self.classes.device
        )
        classes = torch.cat([self.classes[:n], centroids])
        if self.world.size > 1:
            classes = self._split(classes.cpu())
        self._index = class_index(classes)

    def _split(self, classes: Tensor) -> Tensor:
        """Move the vectors, of classes (n,), so that each class is on one rank; gives this rank's own numbers of its classes.

        Classes follow one another by number, vectors of no class behind them, and a class goes where an even cut of that
        sequence puts its first vector.
        """
        rank, step = self.world.rank, max(1, -(-len(classes) // self.world.size))
        has_class = classes >= 0
        sizes = torch.bincount(classes[has_class], minlength=self.count + self.source_count)
        owners = (sizes.cumsum(0) - sizes) // step
        after = (sizes.sum() + (~has_class).cumsum(0) - 1) // step
        after[has_class] = owners[classes[has_class]]
        self.bank, self._lies = self._moved(after), after
        self._slots = _places(after, rank).to(self.bank.device)
        self._number(owners)
        return self._local[classes[after == rank].to(self.bank.device)]


class ClusterMemory(FeatureMemory):
    """One unit vector per cluster (Cluster Contrast, Dai et al., ACCV 2022), made anew at each epoch.

    Some 12 MB for MSMT17's 1,500 clusters and D = 2,048 in float32; each of W ranks holds ceil(C / W) of C clusters. The
    vectors of the source's identities stay. While the centroids are made, a rank holds some columns of the features of its
    clusters' images.

    Args:
        momentum: Share of the old vector that an update keeps.
        temperature: tau of Eq. 1.
        hardest: Update a cluster only by its batch image least similar to it.
        source: (m,) int64 identity of each of the source's images, numbered without gaps; None without a source.
        world: The ranks that share the memory.
    """

    def __init__(
        self,
        momentum: float,
        temperature: float,
        hardest: bool = False,
        source: Tensor | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        super().__init__(momentum, temperature, source, world)
        self.hardest = hardest

    def start(self, features: Tensor) -> None:  # noqa: D102
        self.bank, self._lies = features.new_zeros(0, features.shape[1]), None

    def begin_epoch(self, features: Tensor, classes: Tensor) -> None:  # noqa: D102
        super().begin_epoch(features, classes)
        centroids = self._centroids(features, self.classes[: len(classes)], self.count)
        own = self.world.local_slice(self.source_count)
        kept = len(self.bank) - (own.stop - own.start)
        self.bank = torch.cat([centroids, self.bank[kept:]]) if self.source_count else centroids
        if self.world.size > 1:
            self._lies = self._by_class()
            self._number(self._lies)

    def _update(self, features: Tensor, rows: Tensor) -> None:
        targets = self.classes[rows]
        if self.world.size > 1:
            targets = self._local[targets]
        if self.hardest:
            hard = hardest_rows(features, self.bank, targets)
            features, targets = features[hard], targets[hard]
        update_bank_(self.bank, features, targets, self.momentum)

    def _by_class(self) -> Tensor:
        return torch.cat([_home(self.world, self.count), _home(self.world, self.source_count)])

    def _arrange(self) -> None:
        if self.world.size > 1:
            after = self._by_class()
            self.bank, self._lies = self._moved(after), after
            self._number(after)


def _home(world: World, n: int) -> Tensor:
    """The rank on which each of n rows lies that are cut evenly."""
    return world.owner_ranks(torch.arange(n), n)


def _places(owners: Tensor, rank: int) -> Tensor:
    """The place of each row among those of a rank, of the rank (n,) of each; -1 for those of others."""
    here = owners == rank
    return torch.where(here, here.cumsum(0) - 1, -1)
