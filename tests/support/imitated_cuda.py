"""An imitated CUDA device: tensors that say `cuda:0` and compute on the CPU.

The code of the engine takes the paths that it takes on a GPU, with real values:

- Python sees `x.device == cuda:0`, `x.is_cuda` and one device in `torch.cuda`.
- Triton kernels run in Triton's interpreter, which needs TRITON_INTERPRET=1 before the first
  import.
- Kernels of the extension run in the emulated build (`tests/native/build_native.py`).
- An operator that gets tensors of both devices is refused, as PyTorch refuses it.
- Calls that would make the host wait for the device are counted, with the line that made them.

C++ sees CPU tensors, so that autograd and optimizers run unchanged. Streams, events and graphs do
nothing, and there are no races. BatchNorm over groups is too slow to interpret: use whole batches.
"""

from __future__ import annotations

import contextlib
import linecache
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.sync_batchnorm import ONLY_ON_DEVICE

ROOT = Path(__file__).resolve().parents[2]
DEVICE = torch.device("cuda:0")


class Observer(Protocol):
    """Sees what happens on the device, as a CUDA graph in capture does."""

    def forbidden(self, kind: str) -> None:
        """The host would wait, or do something else that a capture does not allow."""

    def done(self, name: str, arguments: Any, result: Any) -> None:
        """The device executes an operator of PyTorch, a kernel or a function of the extension."""


#: The observer of the device in use.
observer: Observer | None = None

#: Operators whose result, or its size, the host reads. Inside operators of the project, composite
#: ones arrive whole.
_WAITING = {
    "aten::_local_scalar_dense": "item",
    "aten::item": "item",
    "aten::is_nonzero": "item",
    "aten::nonzero": "nonzero",
    "aten::nonzero_numpy": "nonzero",
    "aten::argwhere": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::equal": "equal",
    "aten::_unique": "unique",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::bincount": "bincount",
}
#: Operators that take tensors of the CPU among those of the device.
_MIXING = {
    "aten::copy_",
    "aten::_to_copy",
    "aten::index",
    "aten::index_put_",
    "aten::index_put",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
}


class Wait(NamedTuple):
    """A line of the project that makes the host wait for the device.

    Args:
        kind: What it calls.
        file: File, relative to the root of the project.
        function: Name of the function.
        source: The line.
    """

    kind: str
    file: str
    function: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}: {self.function}: {self.kind}: {self.source}"


class Record:
    """What happened on the imitated device.

    Attributes:
        waits: How often each line made the host wait.
        launches: How often each Triton kernel and each CUDA function of the extension was launched.
    """

    def __init__(self) -> None:
        self.waits: Counter[Wait] = Counter()
        self.launches: Counter[str] = Counter()
        self._stopped = False

    def clear(self) -> None:
        """Forget everything."""
        self.waits.clear()
        self.launches.clear()

    def start(self) -> None:
        """Forget everything, and count again after `stop`."""
        self.clear()
        self._stopped = False

    def stop(self) -> None:
        """Count nothing from now on."""
        self._stopped = True

    def launch(self, name: str) -> None:
        """Count a launch."""
        self.launches[name] += not self._stopped

    def wait(self, kind: str) -> None:
        """Count a wait of the line of the project that is being executed."""
        _forbid(kind)
        place = place_of_line()
        if place is not None and not self._stopped:
            self.waits[Wait(kind, *place)] += 1


#: The record of the device in use; waits elsewhere are not counted.
_record = Record()


def wait(kind: str) -> None:
    """Count a wait on the imitated device in use, at the line of the project being executed."""
    _record.wait(kind)


def _function(frame: types.FrameType) -> str:
    """Name of a frame's function; of the one around it for comprehensions and generators, some of
    which have a frame of their own, depending on Python's version.
    """
    name = frame.f_code.co_name
    if name in ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>") and frame.f_back:
        return frame.f_back.f_code.co_name
    return name


def _forbid(kind: str) -> None:
    """Tell an observer of something that a capture does not allow."""
    if observer is not None:
        observer.forbidden(kind)


def _done(name: str, arguments: Any, result: Any = None) -> None:
    """Tell an observer of something that the device executes."""
    if observer is not None:
        observer.done(name, arguments, result)


def place_of_line() -> tuple[str, str, str] | None:
    """File, function and source of the innermost line of the package or the kernels."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        for folder in ("fastreid_al", "kernels"):
            if file.startswith(f"{ROOT}/{folder}/"):
                source = linecache.getline(file, frame.f_lineno).strip()
                return file[len(str(ROOT)) + 1 :], _function(frame), source
        frame = frame.f_back  # type: ignore[assignment]
    return None


class Imitated(Tensor):
    """A tensor that says it is on the device.

    Args:
        content: Its values, on the CPU.
        requires_grad: As of any tensor.
    """

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor, requires_grad: bool = False) -> Imitated:
        made: Imitated = Tensor._make_wrapper_subclass(
            cls,
            content.size(),
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            layout=content.layout,
            device="cpu",
            requires_grad=requires_grad,
        )
        made.content = content
        return made

    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.content.data_ptr()

    def untyped_storage(self) -> Any:
        return self.content.untyped_storage()

    def __repr__(self, **_: Any) -> str:
        return f"Imitated({self.content!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        _record.wait("pickle")
        return self.content.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        copy = Imitated(self.content.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(copy, self.requires_grad)
        return copy.requires_grad_(self.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def content_of(x: Any) -> Any:
    """The values of a tensor of the device; anything else as it is."""
    return x.content if isinstance(x, Imitated) else x


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Execute one operator, of which at least one argument may be on the device."""
    name = func._schema.name
    if not name.startswith(("aten", "prim")):
        return _custom(func, args, kwargs)
    leaves = tree_leaves((args, kwargs))
    on_device = any(isinstance(x, Imitated) for x in leaves)
    on_cpu = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, Imitated)]
    _count_waits(name, args, kwargs, on_device)
    if on_device and name not in _MIXING:
        wrong = [tuple(x.shape) for x in on_cpu if x.ndim]
        if wrong:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu "
                f"{wrong} at {place_of_line()}"
            )
    plain = dict(kwargs)
    if plain.get("device") is not None and torch.device(plain["device"]).type == "cuda":
        plain["device"] = torch.device("cpu")
    plain.pop("pin_memory", None)
    func = ONLY_ON_DEVICE.get(name, func)
    result = func(*tree_map(content_of, args), **tree_map(content_of, plain))
    if name == "aten::_local_scalar_dense" or not on_device:
        return result
    if name == "aten::copy_" and not isinstance(args[0], Imitated):
        _done(name, (args, kwargs), args[0])
        return args[0]
    result = tree_map(_imitated, result)
    _done(name, (args, kwargs), result)
    if name in ONLY_ON_DEVICE:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)


def _imitated(x: Any) -> Any:
    return Imitated(x) if isinstance(x, Tensor) and not isinstance(x, Imitated) else x


def _count_waits(name: str, args: Any, kwargs: dict[str, Any], on_device: bool) -> None:
    if not on_device:
        return
    if name in _WAITING:
        _record.wait(_WAITING[name])
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        _record.wait("repeat_interleave")
    if name in ("aten::index", "aten::index_put_", "aten::index_put"):
        for index in args[1]:
            if not isinstance(index, Tensor):
                continue
            if index.dtype in (torch.bool, torch.uint8):
                _record.wait("mask as index")
            elif not isinstance(index, Imitated) and index.ndim:
                _record.wait("index from the CPU")
    if name == "aten::copy_":
        to_device = isinstance(args[0], Imitated)
        from_device = isinstance(args[1], Imitated)
        asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        if to_device != from_device and not asynchronous:
            _record.wait("copy")
        elif to_device != from_device and not _is_pinned(args[1] if to_device else args[0]):
            _forbid("copy of pageable memory")


def _is_pinned(x: Any) -> bool:
    return getattr(x, "_pinned", False)


def _custom(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Execute the body of an operator of the project."""
    from torch._library.custom_ops import OPDEFS

    definition = OPDEFS[func._schema.name]
    with torch.no_grad(), _Functions():
        return definition._init_fn(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Functions of PyTorch that move tensors between the devices or make new ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if name in ("to", "cuda", "cpu") and isinstance(first, Tensor):
            return _moved(name, func, first, list(args[1:]), kwargs)
        if name == "pin_memory":
            _forbid("allocation of pinned memory")
            pinned = first.clone()
            pinned._pinned = True
            return pinned
        if name == "is_pinned":
            return _is_pinned(first)
        if name == "record_stream":
            return None
        if name == "numpy" and isinstance(first, Imitated):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name == "tolist" and isinstance(first, Imitated):
            _record.wait("tolist")
            return first.content.tolist()
        if name == "__deepcopy__" and isinstance(first, Imitated):
            return first.__deepcopy__(args[1])
        if name == "one_hot" and isinstance(first, Imitated):
            # Inside, it makes a tensor where C++ sees its argument.
            return Imitated(func(first.content, *args[1:], **kwargs))
        if name == "new_tensor" and isinstance(first, Imitated):
            _record.wait("copy")
            return Imitated(first.content.new_tensor(*args[1:], **kwargs))
        return self._made(name, func, args, kwargs)

    @staticmethod
    def _made(name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Call a function that may make a tensor on the device."""
        device = kwargs.get("device")
        kind = None if device is None else torch.device(device).type
        if kind == "cuda":
            kwargs["device"] = torch.device("cpu")
            if name in ("tensor", "as_tensor", "asarray"):
                _record.wait("copy")
            made = tree_map(_imitated, func(*args, **kwargs))
            _done(name, (args, kwargs), made)
            return made
        if kwargs.pop("pin_memory", False):
            _forbid("allocation of pinned memory")
            made = func(*args, **kwargs)
            made._pinned = True
            return made
        if kind == "cpu" and args and isinstance(args[0], Imitated):
            # new_* and *_like with device=cpu.
            return func(args[0].content, *args[1:], **kwargs)
        return func(*args, **kwargs)


def _moved(name: str, func: Any, x: Tensor, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """`to`, `cuda` and `cpu`."""
    device = kwargs.pop("device", None)
    asynchronous = kwargs.pop("non_blocking", False)
    others = []
    if name != "to":
        device, args = {"cuda": DEVICE, "cpu": torch.device("cpu")}[name], []
    for value in args:
        if isinstance(value, str | torch.device):
            device = torch.device(value)
        elif isinstance(value, Tensor):
            device = value.device
            others.append(value.dtype)
        elif isinstance(value, bool):
            asynchronous = value
        elif value is not None:
            others.append(value)
    if device is not None and torch.device(device).type == "meta":
        return func(x, *others, device=device, **kwargs)
    on_device = isinstance(x, Imitated)
    target = on_device if device is None else torch.device(device).type == "cuda"
    if on_device == target:
        return func(x, *others, **kwargs) if others or kwargs else x
    if target:
        if x.numel() and not (asynchronous and _is_pinned(x)):
            _record.wait("copy")
        if x.requires_grad and torch.is_grad_enabled() and not x.is_leaf:
            raise RuntimeError("a gradient through a copy between devices is not imitated")
        plain = x.detach()
        if others or kwargs:
            plain = func(plain, *others, **kwargs)
        moved = Imitated(plain.clone(memory_format=torch.preserve_format))
        _done(name, (x,), moved)
        return moved
    _record.wait("copy")
    plain = content_of(x).detach().clone(memory_format=torch.preserve_format)
    return func(plain, *others, **kwargs) if others or kwargs else plain


class _Event:
    """An event, which has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._time = 0.0

    def record(self, *args: Any) -> None:
        self._time = time.perf_counter()

    def wait(self, *args: Any) -> None:
        pass

    def query(self) -> bool:
        _forbid("event query")
        return True

    def synchronize(self) -> None:
        _record.wait("event")

    def elapsed_time(self, other: _Event) -> float:
        return 1e3 * (other._time - self._time)


class _Stream:
    """A stream, whose work is always done."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def is_capturing(self) -> bool:
        return observer is not None

    def query(self) -> bool:
        _forbid("stream query")
        return True

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> _Event:
        return _Event()

    def synchronize(self) -> None:
        _record.wait("stream")

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class _Generator(torch.Generator):
    """A generator of the device, which is one of the CPU."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")


class _Nothing(contextlib.nullcontext[None]):
    """A context that does nothing, whatever its arguments are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


class _Autocast(torch.autocast):
    """Autocast of the device, which is that of the CPU."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _patches() -> Iterator[Any]:
    """What PyTorch says of its devices."""
    gib = 2**30
    properties = types.SimpleNamespace(
        total_memory=141 * gib, multi_processor_count=132, major=9, minor=0, name="imitated"
    )
    of_cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_lazy_init": lambda: None,
        "is_current_stream_capturing": lambda: observer is not None,
        "is_bf16_supported": lambda *a, **k: True,
        "current_stream": lambda *a: _Stream(),
        "Stream": _Stream,
        "Event": _Event,
        "mem_get_info": lambda *a: (100 * gib, 141 * gib),
        "get_device_properties": lambda *a: properties,
        "get_device_capability": lambda *a: (9, 0),
        "get_device_name": lambda *a: properties.name,
        "device": _Nothing,
        "device_of": _Nothing,
        "stream": _Nothing,
        "set_device": lambda *a: None,
        "synchronize": lambda *a: _record.wait("synchronize"),
        "empty_cache": lambda: _forbid("empty_cache"),
        "manual_seed": lambda *a: _forbid("seed"),
        "manual_seed_all": lambda *a: _forbid("seed"),
        "_sleep": lambda cycles: None,
        "max_memory_allocated": lambda *a: 0,
        "memory_allocated": lambda *a: 0,
        "max_memory_reserved": lambda *a: 0,
        "reset_peak_memory_stats": lambda *a: None,
    }
    for name, value in of_cuda.items():
        yield mock.patch.object(torch.cuda, name, value)
    of_accelerator: dict[str, Any] = {
        "current_stream": lambda *a: _Stream(),
        "current_device_index": lambda: 0,
        "is_available": lambda: True,
        "current_accelerator": lambda *a, **k: torch.device("cuda"),
    }
    for name, value in of_accelerator.items():
        yield mock.patch.object(torch.accelerator, name, value)
    yield mock.patch.object(torch, "autocast", _Autocast)
    seed = torch.manual_seed
    yield mock.patch.object(torch, "manual_seed", lambda x: (_forbid("seed"), seed(x))[1])
    yield mock.patch.object(torch, "Generator", _Generator)
    yield mock.patch.object(Tensor, "record_stream", return_value=None)
    yield mock.patch.object(torch, "get_device_module", return_value=torch.cuda)
    # Wrapped tensors have no inference form.
    no_grad: Callable[..., Any] = lambda on=True: (  # noqa: E731
        torch.no_grad() if on else contextlib.nullcontext()
    )
    yield mock.patch.object(torch, "inference_mode", no_grad)


def _interpreted_launches(record: Record) -> Any:
    """A patch of Triton's interpreter that counts launches and takes tensors of the device only."""
    from triton.runtime import interpreter

    launch = interpreter.GridExecutor.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = self.fn.__name__
        record.launch(name)
        for x in [*args, *kwargs.values()]:
            if isinstance(x, Tensor) and not isinstance(x, Imitated):
                raise ValueError(f"{name}: got a tensor of the CPU at {place_of_line()}")
        plain = {key: content_of(x) for key, x in kwargs.items()}
        _done(name, (self.grid, args, kwargs))
        return launch(self, *map(content_of, args), **plain)

    return mock.patch.object(interpreter.GridExecutor, "__call__", counted)


class _CountedModule:
    """The emulated extension, which counts the calls of its CUDA functions."""

    def __init__(self, module: Any, record: Record) -> None:
        self._module = module
        self._record = record

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_cuda"):
            self._record.launch(name)
        found = getattr(self._module, name)
        if observer is None or not callable(found):
            return found

        def observed(*args: Any) -> Any:
            # Objects of the extension hold addresses; those they were made with are seen.
            plain = [x if isinstance(x, int | float | str) else type(x).__name__ for x in args]
            _done(name, plain)
            return found(*args)

        return observed


def _extension() -> Any:
    """The extension, which a test may take away, with its CUDA part."""
    from fastreid_al import native

    return native.extension()


@contextlib.contextmanager
def imitated_cuda(extension: Any = None) -> Iterator[Record]:
    """Make one imitated CUDA device the only one inside a block.

    Args:
        extension: The emulated build of the extension, as a module; without it the extension has no
            CUDA part.

    Yields:
        The record of waits and launches.
    """
    global _record
    from fastreid_al import native
    from fastreid_al.data import loader

    before = _record
    _record = record = Record()
    stage = loader.BatchLoader._stage

    def staged(self: Any, rows: Tensor) -> Any:
        # Another thread: modes are those of a thread.
        with _Functions():
            return stage(self, rows)

    converted = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for patch in _patches():
            stack.enter_context(patch)
        stack.enter_context(_interpreted_launches(record))
        stack.enter_context(mock.patch.object(loader.BatchLoader, "_stage", staged))
        if extension is not None:
            counted = _CountedModule(extension, record)
            stack.enter_context(mock.patch.object(native, "extension", return_value=counted))
            stack.enter_context(mock.patch.object(native, "cuda_extension", _extension))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, converted)
        stack.enter_context(_Functions())
        try:
            yield record
        finally:
            _record = before
