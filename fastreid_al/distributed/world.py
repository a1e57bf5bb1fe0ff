"""The processes of a run (ranks), and what they tell each other. A process alone is one rank, to which nothing is sent.

Tensors of n rows are sharded like `torch.chunk` cuts them: ceil(n / W) rows to each of W ranks, fewer or none to the last. What
sends is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

#: Values of a part of the rows that are moved between ranks.
_MOVED = 2**24


class Sharded(NamedTuple):
    """This rank's rows of a tensor of n rows, in a state dictionary."""

    rows: Tensor
    n: int


class World:
    """The ranks of a run.

    Args:
        group: Their process group; None for a process alone.
        store: Key-value store that the ranks share, for what may take hours; needed by `share`.
        control: A group of gloo over the same ranks, for signals that must not wait for a device; `group` when not given.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        store: dist.Store | None = None,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        self._group, self._store, self._control = group, store, control or group
        self.rank, self.size = (
            (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        )
        self._shared = 0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files, prints and asks."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group; None for a process alone."""
        return self._group

    @property
    def control(self) -> dist.ProcessGroup | None:
        """The group for what must not wait for a device."""
        return self._control

    def local_slice(self, n: int, rank: int | None = None) -> slice:
        """The rows of n that lie on a rank, on this one when none is named."""
        step = -(-n // self.size)
        start = min(n, step * (self.rank if rank is None else rank))
        return slice(start, min(n, start + step))

    def owner_ranks(self, rows: Tensor, n: int) -> Tensor:
        """The ranks on which rows (R,) int64 of n lie."""
        return rows // max(1, -(-n // self.size))

    def local_rows(self, value: Tensor | Sharded) -> Tensor:
        """This rank's rows of what a state dictionary holds, whole or sharded."""
        if isinstance(value, Sharded):
            return value.rows
        # A copy, so that the whole can be freed.
        return value if self.size == 1 else value[self.local_slice(len(value))].clone()

    def shard(self, rows: Tensor, n: int) -> Tensor | Sharded:
        """This rank's rows of n, as a state dictionary takes them: the tensor itself where it is whole."""
        return rows if self.size == 1 else Sharded(rows, n)

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor of one shape over the ranks; the same bits on all of them."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """Likewise the greatest."""
        return self._reduced(x, dist.ReduceOp.MAX)

    def all_reduce_min(self, x: Tensor) -> Tensor:
        """Likewise the least."""
        return self._reduced(x, dist.ReduceOp.MIN)

    def _reduced(self, x: Tensor, how: Any) -> Tensor:
        if self.size == 1:
            return x
        x = x.contiguous().clone()
        # What lies on the host, NCCL does not take.
        dist.all_reduce(x, how, group=self._control if x.is_cpu else self._group)
        return x

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """Rows (any number, ...) of all ranks, one rank's after the other's."""
        if self.size == 1:
            return rows
        counts = self.all_gather_counts(len(rows))
        most = max(counts)
        padded = rows.new_empty((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        out = rows.new_empty((self.size * most, *rows.shape[1:]))
        dist.all_gather_into_tensor(_plain(out), _plain(padded), group=self._group)
        if min(counts) == most:
            return out
        return torch.cat(
            [part[:count] for part, count in zip(out.split(most), counts, strict=True)]
        )

    def all_gather(self, rows: Tensor) -> Tensor:
        """Likewise where each rank has as many, which is not looked at: nothing waits for the device."""
        if self.size == 1:
            return rows
        out = rows.new_empty((self.size * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(_plain(out), _plain(rows.contiguous()), group=self._group)
        return out

    def gather_rows_to_first(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, one rank's after the other's, on the first alone; others get none, of the same width."""
        return self.all_to_all_rows(rows, [len(rows)] + [0] * (self.size - 1))[0]

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """This rank's part, of W equal ones, of the sum over the ranks of a tensor of one shape (W b, ...)."""
        if self.size == 1:
            return x
        part = len(x) // self.size
        if dist.get_backend(self._group) == "gloo":
            # Not every version of PyTorch has gloo scatter what it reduces.
            return self.all_reduce_sum(x)[self.rank * part : (self.rank + 1) * part]
        out = x.new_empty((part, *x.shape[1:]))
        dist.reduce_scatter_tensor(out, x.contiguous(), group=self._group)
        return out

    def all_gather_counts(self, count: int) -> list[int]:
        """One number of each rank. Waits for the device."""
        if self.size == 1:
            return [count]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, count, group=self._control)
        return out

    def all_to_all_rows(
        self, rows: Tensor, counts: list[int], came: list[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Send the first counts[0] rows to rank 0, the next counts[1] to rank 1, and so on.

        Args:
            rows: What is sent.
            counts: How many rows each rank is sent.
            came: How many each sends here; asked for when not given. All ranks give it, or none.

        Returns:
            What came: rows, one rank's after the other's, and how many of each.
        """
        if self.size == 1:
            return rows, counts
        if came is None:
            table: list[Any] = [None] * self.size
            dist.all_gather_object(table, counts, group=self._control)
            came = [row[self.rank] for row in table]
        out = rows.new_empty((sum(came), *rows.shape[1:]))
        dist.all_to_all_single(
            _plain(out), _plain(rows.contiguous()), came, counts, group=self._group
        )
        return out, came

    def redistribute_rows(
        self, rows: Tensor, before: Tensor, after: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """Take rows of a tensor (n, D) from the ranks where they lie to others, some columns at a time.

        Args:
            rows: This rank's, by their number in the whole.
            before: (n,) int64, the rank on which each row lies; on a CPU, the same on all ranks, as `after`.
            after: (n,) int64, the rank that it goes to; -1 for rows that are left behind.

        Yields:
            Columns, and these of the rows that have come to this rank, by their number in the whole. A part holds some 64 MB a
            rank where the rows are spread evenly.
        """
        if self.size == 1:
            yield (
                slice(0, rows.shape[1]),
                rows if bool((after == 0).all()) else rows[(after == 0).to(rows.device)],
            )
            return
        goes, comes = after[before == self.rank], before[after == self.rank]
        counts = torch.bincount(goes[goes >= 0], minlength=self.size).tolist()
        order = goes.argsort(stable=True)[int((goes < 0).sum()) :].to(rows.device)
        places = comes.argsort(stable=True).to(rows.device)
        step = max(1, _MOVED // max(1, -(-len(before) // self.size)))
        for first in range(0, rows.shape[1], step):
            columns = slice(first, min(first + step, rows.shape[1]))
            came, _ = self.all_to_all_rows(rows[:, columns][order], counts)
            out = torch.empty_like(came)
            out[places] = came
            yield columns, out

    def fetch_rows(self, shard: Tensor, rows: Tensor, n: int) -> Tensor:
        """Rows (R,) int64, of any ranks and in any order, of a tensor of n rows of which each rank holds its own."""
        if self.size == 1:
            return shard[rows]
        owner, order = self.owner_ranks(rows, n).sort(stable=True)
        counts = torch.bincount(owner, minlength=self.size).tolist()
        wanted, came = self.all_to_all_rows(rows[order], counts)
        answer, _ = self.all_to_all_rows(shard[wanted - self.local_slice(n).start], came, counts)
        out = torch.empty_like(answer)
        out[order] = answer
        return out

    def broadcast_each(self, shard: Tensor, n: int) -> Iterator[tuple[slice, Tensor]]:
        """Every rank's rows of a tensor of n rows, one rank after the other: which rows, and they. One shard at a time."""
        if self.size == 1:
            yield slice(0, n), shard
            return
        for rank in range(self.size):
            where = self.local_slice(n, rank)
            shape = (where.stop - where.start, *shard.shape[1:])
            rows = shard.contiguous() if rank == self.rank else shard.new_empty(shape)
            if len(rows):
                dist.broadcast(_plain(rows), group=self._group, group_src=rank)
            yield where, rows

    def any_true(self, flag: bool) -> bool:
        """Whether any rank says so. The device is not waited for."""
        if self.size == 1:
            return flag
        said = torch.tensor([int(flag)])
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self._control)
        return bool(said)

    def raise_together(self, check: Callable[[], T]) -> T:
        """What a check of this rank's share gives; the first ValueError, in the order of the ranks, is raised on all."""
        if self.size == 1:
            return check()
        error, given = None, None
        try:
            given = check()
        except ValueError as found:
            error = str(found)
        for said in self.all_gather_objects(error):
            if said is not None:
                raise ValueError(said)
        return given  # type: ignore[return-value]  # no rank has an error

    def all_gather_objects(self, own: T) -> list[T]:
        """One picklable object of each rank."""
        if self.size == 1:
            return [own]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, own, group=self._control)
        return out

    def compute_on_first(self, make: Callable[[], T], watch: Callable[[], None] | None = None) -> T:
        """What the first rank makes, however long it takes; the others wait at the store, idle. What it raises, all raise.

        Args:
            make: Called on the first rank; gives a picklable object.
            watch: Called about once a second on the others; what it raises ends the waiting.
        """
        if self.size == 1:
            return make()
        assert self._store is not None
        self._shared += 1
        key = f"shared-{self._shared}"
        if not self.is_first:
            return self._waited(key, watch)
        try:
            made = make()
        except BaseException as error:
            self._store.set(key, _pickled((None, error)))  # type: ignore[arg-type]  # bytes are taken as they are
            raise
        self._store.set(key, _pickled((made, None)))  # type: ignore[arg-type]
        return made

    def report_once(self, text: str) -> bool:
        """Whether what this rank has to say, before it ends, is not what the first says. It waits five seconds for that one."""
        if self._store is None:
            return True
        if self.is_first:
            self._store.set("said", text)
            return True
        for _ in range(50):
            if self._store.check(["said"]):
                return self._store.get("said").decode() != text
            time.sleep(0.1)
        return True

    def first_then_rest(self, make: Callable[[], T]) -> T:
        """What each rank makes for itself, the others after the first, so that they find what it has put on the disk."""
        made: list[T] = []
        self.compute_on_first(lambda: made.append(make()))
        return made[0] if made else make()

    def _waited(self, key: str, watch: Callable[[], None] | None) -> Any:
        assert self._store is not None
        # Asked from time to time: a wait that runs out fills the screen with warnings.
        pause = 0.01
        while not self._store.check([key]):
            if watch is not None:
                watch()
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
        made, raised = pickle.loads(self._store.get(key))
        if raised is not None:
            raise raised
        return made


#: A process alone.
SINGLE_PROCESS = World()


def _plain(x: Tensor) -> Tensor:
    """The same bytes as numbers that every backend sends."""
    if x.dtype in (torch.bool, torch.float16, torch.bfloat16, torch.int16):
        return (x[:, None] if x.ndim == 1 else x).view(torch.uint8)
    return x


def _pickled(what: tuple[Any, BaseException | None]) -> bytes:
    file = io.BytesIO()
    try:
        pickle.dump(what, file)
    except Exception:
        return pickle.dumps((None, RuntimeError(f"the first rank failed: {what[1]!r}")))
    return file.getvalue()
