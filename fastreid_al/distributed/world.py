"""The processes of a run (ranks) and the collectives between them.

Tensors of n rows are sharded as `torch.chunk` splits them: each of W ranks holds ceil(n / W) rows,
the last ranks fewer or none. Methods that communicate are collective: all ranks call them in the
same order. With a single process nothing is sent, and they return its own tensors.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

#: Values a rank that `redistribute_rows` sends at a time: 64 MB of float32.
_MOVED = 2**24
#: Longest pause in seconds between two looks at the key-value store.
_LONGEST_PAUSE = 1.0
#: The collectives of one tensor, by the names of PyTorch 2.14 and later, or by those before.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or getattr(
    dist, "reduce_scatter_tensor", None
)


class Sharded(NamedTuple):
    """This rank's rows of a tensor of n rows, in a state dictionary."""

    rows: Tensor
    n: int


class World:
    """The ranks of a run, and the collectives between them.

    Args:
        group: Their process group; None for a single process.
        store: Key-value store of the ranks, for waits that may take hours; `compute_on_first` and
            `report_once` need it.
        control: A gloo group of the same ranks, for flags and objects, which then do not wait for a
            device; `group` when not given.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        store: dist.Store | None = None,
        control: dist.ProcessGroup | None = None,
    ) -> None:
        self._group = group
        self._store = store
        self._control = control or group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        #: Calls of `compute_on_first` so far, which number its keys in the store.
        self._computed = 0

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files, prints, and asks the annotator."""
        return self.rank == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group; None for a single process."""
        return self._group

    @property
    def control(self) -> dist.ProcessGroup | None:
        """The group for exchanges that must not wait for a device; None for a single process."""
        return self._control

    def local_slice(self, n: int, rank: int | None = None) -> slice:
        """Return which rows of a sharded tensor a rank holds.

        Args:
            n: Rows of the whole tensor.
            rank: The rank; this one when not given.
        """
        step = -(-n // self.size)
        start = min(n, step * (self.rank if rank is None else rank))
        return slice(start, min(n, start + step))

    def owner_ranks(self, rows: Tensor, n: int) -> Tensor:
        """Return the rank that holds each row of a sharded tensor.

        Args:
            rows: (R,) int64 rows of the whole tensor.
            n: Rows of the whole tensor.

        Returns:
            (R,) int64.
        """
        return rows // max(1, -(-n // self.size))

    def local_rows(self, value: Tensor | Sharded) -> Tensor:
        """Return this rank's rows of a tensor in a state dictionary, whether whole or sharded."""
        if isinstance(value, Sharded):
            return value.rows
        if self.size == 1:
            return value
        # A copy, so that the whole tensor can be freed.
        return value[self.local_slice(len(value))].clone()

    def shard(self, rows: Tensor, n: int) -> Tensor | Sharded:
        """Return this rank's rows in the form for a state dictionary.

        Args:
            rows: This rank's rows.
            n: Rows of the whole tensor.

        Returns:
            `Sharded`; the tensor itself with a single process.
        """
        return rows if self.size == 1 else Sharded(rows, n)

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks of a tensor of one shape; the same bits on all of them."""
        return self._all_reduce(x, dist.ReduceOp.SUM)

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum over the ranks of a tensor of one shape."""
        return self._all_reduce(x, dist.ReduceOp.MAX)

    def all_reduce_min(self, x: Tensor) -> Tensor:
        """Return the elementwise minimum over the ranks of a tensor of one shape."""
        return self._all_reduce(x, dist.ReduceOp.MIN)

    def _all_reduce(self, x: Tensor, op: Any) -> Tensor:
        if self.size == 1:
            return x
        out = x.contiguous().clone()
        # NCCL does not take tensors on the host.
        dist.all_reduce(out, op, group=self._control if out.is_cpu else self._group)
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum a tensor over the ranks and return this rank's part of the sum.

        Args:
            x: (W b, ...), of one shape on all ranks.

        Returns:
            (b, ...), the part number `rank` of W equal parts.
        """
        if self.size == 1:
            return x
        part = len(x) // self.size
        if dist.get_backend(self._group) == "gloo":
            # Not every version of PyTorch has a reduce-scatter for gloo.
            return self.all_reduce_sum(x)[self.rank * part : (self.rank + 1) * part]
        out = x.new_empty((part, *x.shape[1:]))
        _REDUCE_SCATTER(out, x.contiguous(), group=self._group)
        return out

    def any_true(self, flag: bool) -> bool:
        """Whether the flag is true on any rank. Does not wait for the device."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._control)
        return bool(flags)

    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, in rank order, where each rank has equally many.

        The counts are not checked, so that the host does not wait for the device.

        Args:
            rows: (b, ...), of one shape on all ranks.

        Returns:
            (W b, ...).
        """
        if self.size == 1:
            return rows
        out = rows.new_empty((self.size * len(rows), *rows.shape[1:]))
        _ALL_GATHER(_as_bytes(out), _as_bytes(rows.contiguous()), group=self._group)
        return out

    def all_gather_rows(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, in rank order; each rank may have any number.

        Args:
            rows: (r, ...), this rank's.

        Returns:
            (sum of r, ...).
        """
        if self.size == 1:
            return rows
        counts = self.all_gather_counts(len(rows))
        longest = max(counts)
        padded = rows.new_empty((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = self.all_gather(padded)
        if min(counts) == longest:
            return gathered
        parts = gathered.split(longest)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gather_rows_to_first(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, in rank order, on rank 0.

        Args:
            rows: (r, ...), this rank's; each rank may have any number.

        Returns:
            (sum of r, ...) on rank 0, (0, ...) on the others.
        """
        counts = [len(rows)] + [0] * (self.size - 1)
        return self.all_to_all_rows(rows, counts)[0]

    def all_gather_counts(self, count: int) -> list[int]:
        """Return the number that each rank gave, in rank order. Does not wait for the device."""
        return self.all_gather_objects(count)

    def all_gather_objects(self, own: T) -> list[T]:
        """Return the picklable object that each rank gave, in rank order."""
        if self.size == 1:
            return [own]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, own, group=self._control)
        return out

    def all_to_all_rows(
        self, rows: Tensor, counts: list[int], received: list[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Send the first counts[0] rows to rank 0, the next counts[1] rows to rank 1, and so on.

        Args:
            rows: (sum of counts, ...) rows to send.
            counts: How many rows to send to each rank.
            received: How many rows each rank sends to this one; exchanged first when not given.
                Either all ranks give it or none.

        Returns:
            The rows received, in rank order, and how many came from each rank.
        """
        if self.size == 1:
            return rows, counts
        if received is None:
            received = [row[self.rank] for row in self.all_gather_objects(counts)]
        out = rows.new_empty((sum(received), *rows.shape[1:]))
        sent = _as_bytes(rows.contiguous())
        dist.all_to_all_single(_as_bytes(out), sent, received, counts, group=self._group)
        return out, received

    def redistribute_rows(
        self, rows: Tensor, before: Tensor, after: Tensor
    ) -> Iterator[tuple[slice, Tensor]]:
        """Move rows of a tensor (n, D) between ranks, some columns at a time.

        Args:
            rows: (r, D), the rows on this rank, in ascending order of their numbers.
            before: (n,) int64 rank that holds each row, on the CPU; the same on all ranks.
            after: (n,) int64 rank that each row goes to, on the CPU; the same on all ranks. A row
                with -1 is dropped.

        Yields:
            A range of columns, and these columns of the rows that are on this rank afterwards, in
            ascending order of their numbers. About 64 MB a rank at a time where rows are spread
            evenly.
        """
        if self.size == 1:
            kept = after == 0
            yield slice(0, rows.shape[1]), rows if bool(kept.all()) else rows[kept.to(rows.device)]
            return
        goes_to = after[before == self.rank]
        comes_from = before[after == self.rank]
        counts = torch.bincount(goes_to[goes_to >= 0], minlength=self.size).tolist()
        # Rows to send in rank order, without the dropped ones, which sort first.
        order = goes_to.argsort(stable=True)[int((goes_to < 0).sum()) :].to(rows.device)
        # Rows arrive in rank order; `positions` is where they belong among this rank's rows.
        positions = comes_from.argsort(stable=True).to(rows.device)
        step = max(1, _MOVED // max(1, -(-len(before) // self.size)))
        for first in range(0, rows.shape[1], step):
            columns = slice(first, min(first + step, rows.shape[1]))
            received, _ = self.all_to_all_rows(rows[:, columns][order], counts)
            out = torch.empty_like(received)
            out[positions] = received
            yield columns, out

    def move_rows(self, rows: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Move the rows of a tensor (n, D) between ranks.

        Args:
            rows: (r, D), the rows on this rank, in ascending order of their numbers.
            before: (n,) int64 rank that holds each row, on the CPU; the same on all ranks.
            after: (n,) int64 rank that each row goes to, on the CPU; the same on all ranks.

        Returns:
            The rows that are on this rank afterwards, in ascending order of their numbers. A single
            process gets its own tensor back, without a copy.
        """
        if self.size == 1:
            return rows
        out = rows.new_empty(int((after == self.rank).sum()), rows.shape[1])
        for columns, part in self.redistribute_rows(rows, before, after):
            out[:, columns] = part
        return out

    def replicate_rows(self, shard: Tensor, rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Copy rows of a sharded tensor of integers to all ranks, without waiting for the device.

        Args:
            shard: (r, ...) integers, this rank's rows of the tensor.
            rows: (R,) int64 rows of the whole tensor; the same on all ranks.
            n: Rows of the whole tensor.

        Returns:
            A tensor, and the rows (R,) of that tensor which are the requested ones. A single
            process gets its own tensor and `rows` back, without a copy.
        """
        if self.size == 1:
            return shard, rows
        own = self.local_slice(n)
        held = (rows >= own.start) & (rows < own.stop)  # (R,)
        local = torch.where(held, rows - own.start, 0)
        picked = shard[local] if len(shard) else shard.new_zeros(len(rows), *shard.shape[1:])
        # The ranks that do not hold a row add 0 to it.
        elsewhere = ~held.view(-1, *[1] * (shard.ndim - 1))
        copies = self.all_reduce_sum(picked.masked_fill(elsewhere, 0))
        return copies, torch.arange(len(rows), device=rows.device)

    def fetch_rows(self, shard: Tensor, rows: Tensor, n: int) -> Tensor:
        """Fetch any rows of a sharded tensor, in any order, from the ranks that hold them.

        Args:
            shard: (r, ...), this rank's rows of the tensor.
            rows: (R,) int64 rows of the whole tensor that this rank wants; another number on each
                rank.
            n: Rows of the whole tensor.

        Returns:
            (R, ...).
        """
        if self.size == 1:
            return shard[rows]
        owner, order = self.owner_ranks(rows, n).sort(stable=True)
        counts = torch.bincount(owner, minlength=self.size).tolist()
        requested, received = self.all_to_all_rows(rows[order], counts)
        local = requested - self.local_slice(n).start
        answers, _ = self.all_to_all_rows(shard[local], received, counts)
        out = torch.empty_like(answers)
        out[order] = answers
        return out

    def broadcast_each(self, shard: Tensor, n: int) -> Iterator[tuple[slice, Tensor]]:
        """Broadcast the shards of a tensor one after the other, so that one at a time is in memory.

        Args:
            shard: (r, ...), this rank's rows of the tensor.
            n: Rows of the whole tensor.

        Yields:
            For each rank in turn the range of its rows, and these rows.
        """
        if self.size == 1:
            yield slice(0, n), shard
            return
        for rank in range(self.size):
            where = self.local_slice(n, rank)
            shape = (where.stop - where.start, *shard.shape[1:])
            rows = shard.contiguous() if rank == self.rank else shard.new_empty(shape)
            if len(rows):
                dist.broadcast(_as_bytes(rows), group=self._group, group_src=rank)
            yield where, rows

    def compute_on_first(self, make: Callable[[], T], watch: Callable[[], None] | None = None) -> T:
        """Compute an object on rank 0 and return it on all ranks, however long it takes.

        The other ranks wait idle, at the store. An exception of `make` is raised on all ranks.

        Args:
            make: Called on rank 0; returns a picklable object.
            watch: Called about once a second on the waiting ranks; an exception of it ends the
                wait.
        """
        if self.size == 1:
            return make()
        assert self._store is not None
        self._computed += 1
        key = f"computed-{self._computed}"
        if not self.is_first:
            return self._wait_for(key, watch)
        try:
            made = make()
        except BaseException as error:
            # The store takes bytes as they are, although its signature says str.
            self._store.set(key, _pickled(None, error))  # type: ignore[arg-type]
            raise
        self._store.set(key, _pickled(made, None))  # type: ignore[arg-type]
        return made

    def _wait_for(self, key: str, watch: Callable[[], None] | None) -> Any:
        assert self._store is not None
        # Polled, because a blocking wait that runs out of time fills the screen with warnings.
        pause = 0.01
        while not self._store.check([key]):
            if watch is not None:
                watch()
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 1.5 * pause)
        # From the first rank of the same job, as in torch.distributed's own object collectives.
        made, error = pickle.loads(self._store.get(key))  # noqa: S301
        if error is not None:
            raise error
        return made

    def first_then_rest(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0, then on the others, so that they find the files that it wrote.

        Returns:
            What `make` returned on this rank.
        """
        made: list[T] = []
        self.compute_on_first(lambda: made.append(make()))
        return made[0] if made else make()

    def raise_together(self, check: Callable[[], T]) -> T:
        """Call a check on every rank, and raise the first rank's ValueError on all of them.

        Args:
            check: The check of this rank's shard.

        Returns:
            What `check` returned on this rank.

        Raises:
            ValueError: The check failed on any rank.
        """
        if self.size == 1:
            return check()
        error = None
        result = None
        try:
            result = check()
        except ValueError as failed:
            error = str(failed)
        for message in self.all_gather_objects(error):
            if message is not None:
                raise ValueError(message)
        return result  # type: ignore[return-value]  # no rank has an error

    def report_once(self, text: str) -> bool:
        """Whether this rank should print its error: not when rank 0 prints the same one.

        Waits up to five seconds for rank 0's error.

        Args:
            text: This rank's error.
        """
        if self._store is None:
            return True
        if self.is_first:
            self._store.set("error", text)
            return True
        # Without torchrun the store ends with the process of rank 0.
        with suppress(dist.DistError):
            for _ in range(50):
                if self._store.check(["error"]):
                    return self._store.get("error").decode() != text
                time.sleep(0.1)
        return True


SINGLE_PROCESS = World()


def _as_bytes(x: Tensor) -> Tensor:
    """View a tensor as uint8 if some backend cannot send its dtype, else return it as it is."""
    if x.dtype in (torch.bool, torch.float16, torch.bfloat16, torch.int16):
        return (x[:, None] if x.ndim == 1 else x).view(torch.uint8)
    return x


def _pickled(made: Any, error: BaseException | None) -> bytes:
    """Pickle a result or an error; an error that cannot be pickled becomes a RuntimeError."""
    file = io.BytesIO()
    try:
        pickle.dump((made, error), file)
    except Exception:
        return pickle.dumps((None, RuntimeError(f"the first rank failed: {error!r}")))
    return file.getvalue()
