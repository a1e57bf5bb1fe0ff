"""The pseudo-label memory bank over several ranks: each keeps the labels of its own images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import as_ids, as_integer, as_lists, as_world
from ..distributed.world import SINGLE_PROCESS, Sharded, World
from .label_bank import PseudoLabelMemoryBank, bit_rows, checked_most, label_lists


class ShardedLabelBank:
    """A `PseudoLabelMemoryBank` of n images, sharded over the ranks by `World.local_slice`.

    A rank holds 1 / W of the bytes. A single process holds the whole bank and works on it directly.
    All methods are collective, with batches that are the same on all ranks.

    Args:
        n: Number of images.
        layout: "bits", "sparse", or "auto": bits up to n = 200,000.
        capacity: Most labels that a row of "sparse" holds.
        world: The ranks.

    Raises:
        ValueError: As for `PseudoLabelMemoryBank`.
    """

    def __init__(
        self, n: int, layout: str = "auto", capacity: int = 64, world: World = SINGLE_PROCESS
    ) -> None:
        self._n = n = as_integer("n", n, 1)
        self._world = as_world(world)
        #: The labels of this rank's images.
        self.local = PseudoLabelMemoryBank(n, layout, capacity, own=world.local_slice(n))
        self.layout = self.local.layout
        self.capacity = capacity

    def __len__(self) -> int:
        return self._n

    @property
    def device(self) -> torch.device:
        """The device of the bank."""
        return self.local.device

    @property
    def nbytes(self) -> int:
        """Bytes that the bank takes on this rank."""
        return self.local.nbytes

    @property
    def dropped(self) -> int:
        """Labels that did not fit into full lists, in all updates so far, on all ranks.

        Waits for the device.
        """
        return sum(self._world.all_gather_counts(self.local.dropped))

    def update(self, rows: Tensor, indptr: Tensor, indices: Tensor) -> None:
        """Replace the labels of some images, in batch order. Each rank updates its own images.

        Nothing is sent.

        Args:
            rows: (B,) int64, the images.
            indptr: (B + 1,) int64; the labels of rows[b] are indices[indptr[b]:indptr[b + 1]].
            indices: (labels,) int64.
        """
        rows = as_ids("rows", rows, low=0, high=self._n, per="image of the batch")
        own = self.local.own
        if rows.is_cpu and own.stop - own.start < self._n:
            indptr, indices = as_lists(indptr, indices, len(rows), self._n)
            # On a CPU a bank refuses images that it does not keep. On a GPU it leaves them out, and
            # nothing waits.
            kept = (rows >= own.start) & (rows < own.stop)
            counts = indptr.diff()
            indices = indices[kept.repeat_interleave(counts)]
            rows = rows[kept]
            indptr = F.pad(counts[kept].cumsum(0), (1, 0))
        self.local.update(rows, indptr, indices)

    def lookup(self, rows: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
        """The labels of images of any rank.

        Args:
            rows: (B,) int64, in any order, repeated or not.
            most: Room for labels, so that a GPU is not waited for; see
                `PseudoLabelMemoryBank.lookup`.

        Returns:
            `indptr` (B + 1,) and `indices`, int64, on all ranks: the labels of rows[b], ascending,
            are indices[indptr[b]:indptr[b + 1]]. With `most`, indices (most,), -1 behind the last
            label.

        Raises:
            ValueError: On a CPU, more than `most` labels.
        """
        most = checked_most(most)
        state, places = self._fetch(rows)
        return label_lists(state, places, self._n, most)

    def lookup_bits(self, rows: Tensor) -> Tensor:
        """The labels of images of any rank as bit rows; the device is not waited for.

        B bit rows are sent (0.26 MB at B = 64 and n = 32,621), or with "sparse" B lists (17 KB at a
        capacity of 64).

        Args:
            rows: (B,) int64, in any order, repeated or not.

        Returns:
            (B, ceil(n / 32)) int32 on all ranks; bit j % 32 of word j // 32 tells whether j is a
            label.
        """
        state, places = self._fetch(rows)
        return bit_rows(state, places, self._n)

    def local_lists(self) -> tuple[Tensor, Tensor]:
        """The labels of this rank's images as CSR lists, ascending, on the CPU: 8 bytes a label."""
        own = self.local.own
        indptr, indices = self.local.lookup(torch.arange(own.start, own.stop, device=self.device))
        return indptr.cpu(), indices.cpu()

    def to(self, device: torch.device | str) -> ShardedLabelBank:
        """Move the bank to a device. Returns the bank."""
        self.local.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor | Sharded]:
        """The tensors of the whole bank, each rank with its rows of them."""
        return {
            name: self._world.shard(x, self._n) if x.ndim else self._world.all_reduce_sum(x)
            for name, x in self.local.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor | Sharded]) -> None:
        """Copy what `state_dict` returned, whole or this rank's rows.

        What one rank refuses, all refuse.

        Raises:
            ValueError: The state of another layout, n or capacity, or values that no bank has, on
                any rank.
        """
        self._world.raise_together(lambda: self._load(state))

    def _load(self, state: Mapping[str, Tensor | Sharded]) -> None:
        own = {}
        for name, x in state.items():
            if isinstance(x, Tensor) and not x.ndim:
                own[name] = x
                continue
            count = x.n if isinstance(x, Sharded) else len(x)
            if count != self._n:
                raise ValueError(f"state[{name!r}]: got {count:,} rows, expected {self._n:,}")
            own[name] = self._world.local_rows(x).to(self.device)
        if "dropped" in own and self.local.own.start > 0:
            # The count of all ranks goes on at the rank of the first image, so that it enters their
            # sum once.
            own["dropped"] = torch.zeros_like(own["dropped"])
        self.local.load_state_dict(own)

    def _fetch(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Tensors like those of the state with the labels of `rows`, and the places in them."""
        rows = as_ids("rows", rows, low=0, high=self._n, per="image")
        state: dict[str, Tensor] = {}
        places = rows
        for name, x in self.local.state_dict().items():
            if x.ndim:
                state[name], places = self._world.replicate_rows(x, rows, self._n)
        return state, places
