"""The pseudo-label memory bank on the ranks of a run: each keeps the labels of its own images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed.world import Sharded, World
from .label_bank import PseudoLabelMemoryBank, as_bits, listed


class ShardedLabelMemory:
    """A `PseudoLabelMemoryBank` of n images of which each rank keeps `ranks.own(n)`: 1 / W of its bytes.

    Batches are the same on all ranks, and all ranks call the same.

    Args:
        n: Number of images.
        layout: "bits", "sparse", or "auto": bits up to n = 200,000.
        capacity: Labels that a row of "sparse" has room for.
        world: The ranks.

    Raises:
        ValueError: As for `PseudoLabelMemoryBank`.
    """

    def __init__(self, n: int, layout: str, capacity: int, world: World) -> None:
        self._n, self._world = n, world
        #: The labels of this rank's images.
        self.local = PseudoLabelMemoryBank(n, layout, capacity, own=world.local_slice(n))
        self.layout, self.capacity = self.local.layout, capacity

    def __len__(self) -> int:
        return self._n

    @property
    def device(self) -> torch.device:
        """Where the bank is."""
        return self.local.device

    @property
    def nbytes(self) -> int:
        """Bytes that the bank takes on this rank."""
        return self.local.nbytes

    @property
    def dropped(self) -> int:
        """Labels that lists had no room for, in all updates so far, on all ranks."""
        return sum(self._world.all_gather_counts(self.local.dropped))

    def update(self, rows: Tensor, indptr: Tensor, indices: Tensor) -> None:
        """Replace the labels of some images, in batch order; each rank those of its own. Nothing is sent.

        Args:
            rows: (B,) int64, the images.
            indptr: (B + 1,) int64; the labels of rows[b] are indices[indptr[b]:indptr[b + 1]].
            indices: (labels,) int64.
        """
        if rows.is_cpu:
            # There a bank refuses what is not its own; elsewhere it leaves it out, and nothing is waited for.
            mine = (rows >= self.local.own.start) & (rows < self.local.own.stop)
            counts = indptr.diff()
            indices = indices[mine.repeat_interleave(counts)]
            rows, indptr = rows[mine], F.pad(counts[mine].cumsum(0), (1, 0))
        self.local.update(rows, indptr, indices)

    def lookup(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The labels of images (B,) int64 of any ranks, as `PseudoLabelMemoryBank.lookup` gives them."""
        state = self._fetch(rows)
        return listed(state, torch.arange(len(rows), device=rows.device), self._n)

    def lookup_bits(self, rows: Tensor) -> Tensor:
        """The labels of images (B,) int64 of any ranks as bit rows (B, ceil(n / 32)) int32; the device is not waited for.

        What travels are B bit rows (0.26 MB at B = 64 and n = 32,621), or with "sparse" B lists (17 KB at a capacity of 64).
        """
        state = self._fetch(rows)
        return as_bits(state, torch.arange(len(rows), device=rows.device), self._n)

    def _fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows of the state of the whole bank: of each, one rank's alone is not zero."""
        own = self.local.own
        inside = (rows >= own.start) & (rows < own.stop)
        place = torch.where(inside, rows - own.start, 0)
        found = {}
        for name, x in self.local.state_dict().items():
            if x.ndim:
                taken = x[place] if len(x) else x.new_zeros(len(rows), *x.shape[1:])
                found[name] = self._world.all_reduce_sum(
                    taken.masked_fill(~inside.view(-1, *[1] * (x.ndim - 1)), 0)
                )
        return found

    def to(self, device: torch.device | str) -> ShardedLabelMemory:
        """Move the bank to a device; gives the bank."""
        self.local.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor | Sharded]:
        """That of a whole bank, each rank with its rows."""
        return {
            name: self._world.shard(x, self._n) if x.ndim else self._world.all_reduce_sum(x)
            for name, x in self.local.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor | Sharded]) -> None:
        """Copy what `state_dict` gave, whole or this rank's rows.

        Raises:
            ValueError: The state of another layout, n or capacity, or, on this rank alone perhaps, values that no bank has.
        """
        for name, x in state.items():
            found = x.n if isinstance(x, Sharded) else len(x) if x.ndim else self._n
            if found != self._n:
                raise ValueError(f"state[{name!r}]: got {found:,} rows, expected {self._n:,}")
        own = {
            name: x
            if isinstance(x, Tensor) and not x.ndim
            else self._world.local_rows(x).to(self.device)
            for name, x in state.items()
        }
        if "dropped" in own and not self._world.is_first:
            # Counted once.
            own["dropped"] = torch.zeros_like(own["dropped"])
        self.local.load_state_dict(own)
