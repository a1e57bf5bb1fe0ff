"""A stand-in for NCCL between processes that each have an imitated CUDA device.

The process group of a run takes tensors that say `cuda:0` and refuses what NCCL refuses: tensors of
the CPU, tensors that are not contiguous, dtypes that NCCL does not know, and shapes that do not fit
together. Gloo carries the content. A group of gloo takes no tensor of the device here, although
gloo would copy it, because the host would wait.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.imitated_cuda import Imitated, content_of, wait

_UNKNOWN = (torch.int16, torch.complex64, torch.complex128)
#: Exchanges of any object, which NCCL moves through the device, so that the host waits.
_OF_OBJECTS = (
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
)
#: Collectives for which all ranks give tensors of one shape.
_OF_ONE_SHAPE = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_single",
    "all_reduce",
    "broadcast",
    "gather",
    "reduce",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "scatter",
)
#: Collectives that none of the engine uses and that are refused.
_REFUSED = (
    "all_gather_coalesced",
    "all_reduce_coalesced",
    "all_to_all",
    "irecv",
    "isend",
    "monitored_barrier",
    "recv",
    "recv_object_list",
    "reduce_scatter",
    "send",
    "send_object_list",
)


class Stand:
    """The process group that says it is of NCCL.

    Args:
        group: A group of gloo that plays the part; without it the one that `join` makes.

    Attributes:
        calls: How often each collective of the group was called.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self._group: Any = group
        self._carrier: Any = group

    def join(self, backend: str, **options: Any) -> None:
        """`init_process_group` for the backend "nccl"."""
        assert backend == "nccl", backend
        # Without a backend for tensors of the CPU PyTorch itself refuses them, as with NCCL.
        _REAL["init_process_group"]("cuda:gloo", **options)
        self._group = dist.group.WORLD
        self._carrier = _REAL["new_group"](backend="gloo", timeout=options["timeout"])

    def backend(self, group: Any = None) -> str:
        """`get_backend`."""
        return "nccl" if self._is_own(group) else _REAL["get_backend"](group)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a collective of `torch.distributed`."""
        bound = inspect.signature(_REAL[name]).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if not self._is_own(given["group"]):
            if any(isinstance(x, Imitated) for x in tree_leaves(given)):
                raise RuntimeError(f"{name}: a tensor of the device in a group of the hosts")
            return _REAL[name](*args, **kwargs)
        if name in _REFUSED or given.get("async_op"):
            raise NotImplementedError(f"{name} is not imitated")
        self.calls[name] += 1
        if name in _OF_OBJECTS or name == "barrier":
            wait("barrier" if name == "barrier" else "object through the device")
            given.pop("device_ids", None)
        else:
            self._check(name, given)
        if name.startswith("reduce_scatter"):
            return self._reduce_scatter(*list(given.values())[:3])
        plain = {key: tree_map(content_of, x) for key, x in given.items()}
        if name in ("all_gather_into_tensor", "all_gather_single"):
            # NCCL counts values; gloo takes as many rows as there are ranks.
            plain = {k: x.view(-1) if isinstance(x, Tensor) else x for k, x in plain.items()}
        return _REAL[name](**{**plain, "group": self._carrier})

    def _is_own(self, group: Any) -> bool:
        return self._group is not None and self._group is (group or dist.group.WORLD)

    def _check(self, name: str, given: dict[str, Any]) -> None:
        """Refuse tensors that NCCL refuses, and calls that differ between the ranks."""
        tensors = [x for x in tree_leaves(list(given.values())) if isinstance(x, Tensor)]
        for x in tensors:
            if not isinstance(x, Imitated):
                raise RuntimeError(f"{name}: No backend type associated with device type cpu")
            if not x.is_contiguous():
                raise ValueError(f"{name}: Tensors must be contiguous")
            if x.dtype in _UNKNOWN:
                raise TypeError(f"{name}: Unconvertible NCCL type {x.dtype}")
        if len({x.dtype for x in tensors}) > 1:
            raise TypeError(f"{name}: output tensor must have the same type as input tensor")
        if name == "all_to_all_single":
            self._check_splits(*list(given.values())[:4])
            return
        assert name in _OF_ONE_SHAPE, name
        if name.endswith(("_single", "_tensor")):
            _check_sizes(name, *tensors[:2], size=dist.get_world_size(self._carrier))
        shapes = [tuple(x.shape) for x in tensors]
        if len(set(shapes)) > 1 and name in ("all_gather", "gather", "scatter"):
            raise ValueError(f"{name}: Tensor list must have one shape, got {shapes}")
        own = given.get("tensor", tensors[-1])
        self._agree(name, (name, tuple(own.shape), own.dtype, str(given.get("op"))))

    def _check_splits(
        self, out: Tensor, x: Tensor, received: list[int] | None, sent: list[int] | None
    ) -> None:
        size = dist.get_world_size(self._carrier)
        sent = sent or [len(x) // size] * size
        received = received or [len(out) // size] * size
        if sum(sent) != len(x) or sum(received) != len(out):
            raise ValueError("all_to_all_single: Split sizes doesn't match total dim 0 size")
        name = "all_to_all_single"
        rows = self._agree(name, (name, tuple(x.shape[1:]), x.dtype), also=sent)
        own = dist.get_rank(self._carrier)
        if [row[own] for row in rows] != received:
            raise ValueError(f"{name}: ranks send {[row[own] for row in rows]}, not {received}")

    def _agree(self, name: str, call: tuple[Any, ...], also: Any = None) -> list[Any]:
        """Refuse ranks that make different calls, which NCCL would leave waiting."""
        calls: list[Any] = [None] * dist.get_world_size(self._carrier)
        _REAL["all_gather_object"](calls, (call, also), group=self._carrier)
        if len({other for other, _ in calls}) > 1:
            raise ValueError(f"{name}: ranks differ: {[other for other, _ in calls]}")
        return [other for _, other in calls]

    def _reduce_scatter(self, out: Imitated, x: Imitated, op: Any) -> None:
        """The part of this rank, as not every version of gloo has a reduce-scatter."""
        total = x.content.clone()
        _REAL["all_reduce"](total, op, group=self._carrier)
        first = dist.get_rank(self._carrier) * out.numel()
        out.content.copy_(total.flatten()[first : first + out.numel()].view(out.shape))


def _check_sizes(name: str, out: Tensor, x: Tensor, size: int) -> None:
    whole, part = (out, x) if name.startswith("all_gather") else (x, out)
    if whole.numel() != size * part.numel():
        raise ValueError(
            f"{name}: tensors of {whole.numel()} and of {part.numel()} x {size} values"
        )


#: The functions of PyTorch that are replaced.
_REAL: dict[str, Any] = {
    name: getattr(dist, name)
    for name in (
        *("init_process_group", "new_group", "get_backend", "barrier", "all_to_all_single"),
        *_OF_OBJECTS,
        *_OF_ONE_SHAPE,
        *_REFUSED,
    )
    if hasattr(dist, name)
}
_NAMED_BY_GROUP = dist.ProcessGroup._get_backend_name


class Replicated(nn.Module):
    """`DistributedDataParallel`, whose C++ part needs real tensors of the device.

    It sends the first rank's weights and buffers once. It takes the mean of each gradient over the
    ranks as soon as autograd has accumulated it.

    Args:
        module: The network.
        device_ids: Not used.
        process_group: The group of the ranks.
        gradient_as_bucket_view: Not used.
        broadcast_buffers: False: buffers are sent once only.
    """

    def __init__(
        self,
        module: nn.Module,
        device_ids: list[int] | None = None,
        process_group: Any = None,
        gradient_as_bucket_view: bool = False,
        broadcast_buffers: bool = True,
    ) -> None:
        super().__init__()
        assert not broadcast_buffers
        self.module = module
        self._group = process_group
        for x in (*module.parameters(), *module.buffers()):
            flat = x.detach().flatten()
            dist.broadcast(flat, group=process_group, group_src=0)
            x.detach().copy_(flat.view(x.shape))
        for x in module.parameters():
            if x.requires_grad:
                x.register_post_accumulate_grad_hook(self._take_mean)

    def forward(self, *args: Any) -> Any:
        """Call the network."""
        return self.module(*args)

    @torch.no_grad()
    def _take_mean(self, x: Tensor) -> None:
        assert x.grad is not None
        total = x.grad.flatten() / dist.get_world_size(self._group)
        dist.all_reduce(total, group=self._group)
        x.grad.copy_(total.view(x.grad.shape))


@contextlib.contextmanager
def imitated_nccl(group: dist.ProcessGroup | None = None) -> Iterator[Stand]:
    """Give the imitated devices of several processes an imitated NCCL inside a block.

    Args:
        group: A group of gloo that plays NCCL's part, where the processes have joined already.

    Yields:
        The stand-in, whose group `init_process_group` makes.
    """
    from fastreid_al.distributed import world
    from fastreid_al.engine import network

    stand = Stand(group)

    def named(group: Any) -> str:
        return "nccl" if stand._is_own(group) else _NAMED_BY_GROUP(group)

    def calling(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: stand.call(name, *args, **kwargs)

    with contextlib.ExitStack() as stack:

        def patch(place: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(place, name, value))

        for name in _REAL.keys() - {"init_process_group", "new_group", "get_backend"}:
            patch(dist, name, calling(name))
        patch(dist, "is_nccl_available", lambda: True)
        patch(dist, "init_process_group", stand.join)
        patch(dist, "get_backend", stand.backend)
        patch(dist.ProcessGroup, "_get_backend_name", named)
        for name in ("_ALL_GATHER", "_REDUCE_SCATTER"):
            patch(world, name, calling(getattr(world, name).__name__))
        patch(network, "DistributedDataParallel", Replicated)
        yield stand
