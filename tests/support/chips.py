"""Machine code of the Triton kernels for several chips, without having any of them.

The launchers run on small CPU tensors while a recorder takes the place of the launch, so
signatures, constants and alignment are those of a real call. Each distinct launch is then compiled
for each chip by Triton's own compiler. `python -m tests.support.chips` prints the result as a
Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
import triton.language as tl
from reid_kernels import tiles
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from tests.support.operators import launchers


class Chip(NamedTuple):
    """A chip for which kernels are compiled.

    Args:
        target: Triton's name of it.
        shared: Bytes of shared memory available to a program.
        matrix: Patterns of the instructions of its matrix units, the preferred one first.
        plain: Pattern of float32 multiply-adds outside the matrix units.
    """

    target: GPUTarget
    shared: int
    matrix: tuple[str, ...]
    plain: str


CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), 163 * 1024, (r"mma\.sync",), r"fma\.rn\.f32"),
    "sm_90": Chip(
        GPUTarget("cuda", 90, 32), 227 * 1024, (r"wgmma\.mma_async", r"mma\.sync"), r"fma\.rn\.f32"
    ),
    "sm_100": Chip(
        GPUTarget("cuda", 100, 32), 227 * 1024, (r"tcgen05\.mma", r"mma\.sync"), r"fma\.rn\.f32"
    ),
    "gfx942": Chip(
        GPUTarget("hip", "gfx942", 64), 64 * 1024, (r"v_mfma_\w+",), r"v_(?:pk_)?fmac?_f32"
    ),
}
#: The chip whose machine code is disassembled.
DISASSEMBLED = "sm_90"
_TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
#: A size that 16 divides. Most sizes of the captured launches are none, as 32,621 is none.
EVEN = 4096
#: Warps of the programs of which two are meant to fit a multiprocessor.
LARGE_WARPS = 8
#: Chips on which a program may have the shared memory of a wide tile.
WITH_WIDE_TILES = ("sm_90", "sm_100")
#: Chips that are compiled for with one launch of each kernel and dtype.
SAMPLED = ("sm_100", "gfx942")


@dataclass(frozen=True)
class Dot:
    """A product of two tiles in a kernel: tile sizes and operand (fp32, tf32, bf16, fp16)."""

    rows: int
    depth: int
    columns: int
    operand: str


@dataclass(frozen=True)
class Compiled:
    """Result of compiling one launch.

    Args:
        kernel: Name.
        config: Constants and options of the launch.
        memory: Dtypes that are read.
        dots: The kernel's products.
        chip: Name.
        failure: The compiler's message if it failed; the other fields are empty then.
        registers: Per thread.
        shared: Bytes per program.
        spilled: Bytes per thread that are kept in memory because registers are missing.
        matrix: Instructions of the matrix units in the code.
        plain: Whether there are float32 multiply-adds outside the matrix units.
        warps: Warps of a program.
        programs: Programs that fit a multiprocessor at a time; 0 on chips of other makers.
        loops: Instructions of each innermost loop, by name; products on `DISASSEMBLED` only.
    """

    kernel: str
    config: str
    memory: str
    dots: tuple[Dot, ...]
    chip: str
    failure: str = ""
    registers: int = 0
    shared: int = 0
    spilled: int = 0
    matrix: tuple[str, ...] = ()
    plain: bool = False
    warps: int = 0
    programs: int = 0
    loops: tuple[dict[str, int], ...] = ()

    @property
    def operand(self) -> str:
        """Dtype of the operands of products, or the dtype that is read if there is no product."""
        return "/".join(sorted({dot.operand for dot in self.dots})) or self.memory

    def __str__(self) -> str:
        return f"{self.kernel}[{self.config}, {self.memory}, {self.operand}] on {self.chip}"


class Launch(NamedTuple):
    """A kernel and the arguments of its launch."""

    kernel: JITFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def key(self) -> tuple[Any, ...]:
        """A key that is equal for launches for which Triton compiles one code."""
        return (
            self.kernel.__name__,
            *map(_kind, self.args),
            *((k, str(v)) for k, v in sorted(self.kwargs.items())),
        )

    def memory(self) -> str:
        """Dtypes of the rows that are read: those of the first two arguments, or of the first."""
        names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        first = [str(x.dtype)[6:] for x in self.args[:2] if isinstance(x, Tensor)]
        floats = [names[x] for x in dict.fromkeys(first) if x in names]
        return "/".join(floats) or first[0]

    def half(self) -> bool:
        """Whether it reads float16. Its tiles are those of bfloat16, so one chip is enough."""
        return any(isinstance(x, Tensor) and x.dtype == torch.float16 for x in self.args)

    def alike(self) -> bool:
        """Whether its code is that of bfloat16: all float16 but proven candidates."""
        proven = self.kwargs.get("KEYS") is False or self.kernel.__name__ == "count_near_kernel"
        return self.half() and not proven

    def tile(self) -> str:
        """Block sizes."""
        return "x".join(str(v) for k, v in self.kwargs.items() if k.startswith("BLOCK_"))

    def suits(self, chip: str) -> bool:
        """Whether the launchers use it on a chip: wide tiles need large programs."""
        tile = tiles.WIDE_PRODUCT
        wide = (
            self.kwargs.get("BLOCK_M") == tile.rows and self.kwargs.get("BLOCK_N") == tile.columns
        )
        return not wide or chip in WITH_WIDE_TILES

    def config(self) -> str:
        """Block sizes, warps, stages, and the flags that are on."""
        flags = [k.lower() for k, v in self.kwargs.items() if v is True]
        rest = [
            f"{self.kwargs[k]} {k[4:]}" for k in ("num_warps", "num_stages") if k in self.kwargs
        ]
        return ", ".join([self.tile(), *rest, *flags])


def _kind(x: Any) -> Any:
    if isinstance(x, Tensor):
        return str(x.dtype), x.data_ptr() % 16 == 0
    if isinstance(x, bool) or not isinstance(x, int):
        return str(x)
    return x == 1, x % 16 == 0, -(2**31) <= x < 2**31


@contextlib.contextmanager
def _recording(launches: list[Launch]) -> Iterator[None]:
    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(self, args, kwargs))

    with mock.patch.object(JITFunction, "run", record):
        yield


def captured() -> list[Launch]:
    """Every distinct launch, in the same order in every process."""
    launches: list[Launch] = []
    with _recording(launches):
        for launcher in launchers():
            launcher()
    return list({launch.key(): launch for launch in launches}.values())


def kernel_names() -> set[str]:
    """Names of all kernels of the package."""
    sources = [path.read_text() for path in Path(tiles.__file__).parent.glob("*.py")]
    return {
        name
        for source in sources
        for name in re.findall(r"@triton\.jit(?:\(.*\))?\ndef (\w+_kernel)\(", source)
    }


def unread_tiles() -> list[str]:
    """Rows of the table of tiles that no launcher reads."""
    read: list[tiles.Tile] = []

    def note(self: tiles.Tile, name: str) -> Any:
        read.append(self)
        return object.__getattribute__(self, name)

    with mock.patch.object(tiles.Tile, "__getattribute__", note):
        captured()
    seen = {id(tile) for tile in read}
    tables = {
        k: v if isinstance(v, dict) else {"": v} for k, v in vars(tiles).items() if k.isupper()
    }
    rows = (
        (f"{name} {key}".strip(), x) for name, table in tables.items() for key, x in table.items()
    )
    return [name for name, x in rows if isinstance(x, tiles.Tile) and id(x) not in seen]


class _Driver:
    """Takes the place of the driver of a machine with the chip."""

    def __init__(self, chip: str) -> None:
        self.chip = chip

    def get_current_device(self) -> str:
        return self.chip

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return CHIPS[self.chip].target


def compiled(launch: Launch, chip: str, **options: Any) -> Compiled:
    """Compile one launch."""
    driver.set_active(_Driver(chip))  # type: ignore[arg-type]
    name, config, memory = launch.kernel.__name__, launch.config(), launch.memory()
    wanted = options.get("maxnreg")
    options = {**launch.kwargs, **options}
    # As the launchers do on such a chip.
    if chip in ("sm_80", "gfx942") and wanted is None:
        options.pop("maxnreg", None)
    try:
        code = launch.kernel.run(*launch.args, grid=(1,), warmup=True, **options)
    except Exception as error:
        return Compiled(name, config, memory, (), chip, failure=f"{type(error).__name__}: {error}")
    text = code.asm["ptx" if "ptx" in code.asm else "amdgcn"]
    matrix = tuple(
        x for pattern in CHIPS[chip].matrix for x in sorted(set(re.findall(pattern, text)))
    )
    registers, spilled = _resources(code.asm)
    shared, warps = code.metadata.shared, code.metadata.num_warps
    dots = _dots(code.asm["ttir"])
    # Disassembly takes a second.
    seen = chip == DISASSEMBLED and bool(dots) and not launch.alike()
    return Compiled(
        name,
        config,
        memory,
        dots,
        chip,
        registers=registers,
        shared=shared,
        spilled=spilled,
        matrix=matrix,
        plain=re.search(CHIPS[chip].plain, text) is not None,
        warps=warps,
        programs=_programs(registers, warps, shared, CHIPS[chip]) if "cubin" in code.asm else 0,
        loops=tuple(loops_of(_machine_code(code.asm["cubin"]))) if seen else (),
    )


def _programs(registers: int, warps: int, shared: int, chip: Chip) -> int:
    """Programs that fit an NVIDIA multiprocessor: 65,536 registers, 64 warps, its shared memory."""
    of_a_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // (of_a_warp * warps)
    # A program takes 1 KiB besides its own.
    by_memory = (chip.shared + 1024) // (shared + 1024)
    return min(by_registers, by_memory, 64 // warps, 32)


def _machine_code(cubin: bytes) -> str:
    """NVIDIA's machine code as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [_TOOL, "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout


def loops_of(code: str) -> Iterator[dict[str, int]]:
    """Count the instructions of each innermost loop: what lies between a jump backwards and its
    target, and has no such loop inside.

    Args:
        code: Machine code as `cuobjdump -sass` prints it.
    """
    lines = [
        (int(place, 16), re.sub(r"^@!?U?P\w+\s+", "", text))
        for place, text in re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(.*?)\s*;", code, re.MULTILINE)
    ]
    found = []
    for place, text in lines:
        jump = re.match(r"BRA(?:\.\w+)*\s.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < place:
            found.append((int(jump[1], 16), place))
    for first, last in found:
        if any((a, b) != (first, last) and first <= a and b <= last for a, b in found):
            continue
        counts = Counter(
            re.split(r"[.\s]", text)[0] for place, text in lines if first <= place <= last
        )
        yield dict(counts)


def _dots(ttir: str) -> tuple[Dot, ...]:
    """The products in Triton's intermediate code."""
    pattern = (
        r"tt\.dot [^\n]*?(?:inputPrecision = (\w+) )?"
        r": tensor<(\d+)x(\d+)x(\w+)> \* tensor<\d+x(\d+)x"
    )
    got = re.findall(pattern, ttir)
    names = {"f32": "fp32", "f16": "fp16"}
    return tuple(
        Dot(int(m), int(k), int(n), how or names.get(kind, kind)) for how, m, k, kind, n in got
    )


def _resources(asm: dict[str, Any]) -> tuple[int, int]:
    """Registers and bytes of stack.

    The kernels have no arrays, so the stack holds spilled registers only.
    """
    if "amdgcn" in asm:
        names = ("vgpr_count", "private_segment_fixed_size")
        registers, stack = (
            int(re.findall(rf"\.{name}:\s*(\d+)", asm["amdgcn"])[-1]) for name in names
        )
        return registers, stack
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [_TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1]
    return int(registers), int(stack)


@triton.jit
def nothing_much(x_ptr, n, BLOCK: tl.constexpr):  # noqa: N803
    """A kernel for every chip. If it does not compile, Triton was built without the chip."""
    place = tl.arange(0, BLOCK)
    tl.store(x_ptr + place, tl.load(x_ptr + place, mask=place < n) * 2.0, mask=place < n)


@triton.jit
def product_by_values(a_ptr, b_ptr, out_ptr, count, dim, BLOCK: tl.constexpr):  # noqa: N803
    """A faulty product: the mask of `a` varies along its rows, which are loaded value by value."""
    row = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, dim, BLOCK):
        j = start + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + row[:, None] * dim + j[None, :], mask=(j < count)[None, :], other=0.0)
        b = tl.load(b_ptr + j[:, None] * BLOCK + row[None, :])
        total = tl.dot(a, b, total)
    tl.store(out_ptr + row[:, None] * BLOCK + row[None, :], total)


#: Number of the launch of `product_by_values`.
FAULTY = -1


class Job(NamedTuple):
    """One launch for one chip.

    Args:
        launch: Its number among the captured ones, None for `nothing_much`, or `FAULTY`.
        chip: Name.
        options: Options of the compiler over those of the launch.
        integer: Value of every integer argument, None for those of the launch.
    """

    launch: int | None
    chip: str
    options: tuple[tuple[str, int], ...] = ()
    integer: int | None = None


def jobs_with_integers(integers: Iterable[int]) -> list[Job]:
    """One launch of each kernel and set of flags, with every integer argument replaced.

    Triton makes another code of integers that are 1, and of those past 2^31.
    """
    jobs = []
    seen = set()
    for number, launch in enumerate(captured()):
        flags = tuple((key, x) for key, x in launch.kwargs.items() if isinstance(x, bool))
        if (launch.kernel.__name__, flags) in seen:
            continue
        seen.add((launch.kernel.__name__, flags))
        jobs += [Job(number, "sm_90", integer=integer) for integer in integers]
    return jobs


def every_job(names: Iterable[str] = CHIPS) -> list[Job]:
    """Launches for each chip, the first of which is `nothing_much`.

    `DISASSEMBLED`: one of each kernel, dtypes, tile and flags, and large programs with sizes that
    16 divides as well. Float16 with the code of bfloat16: one of each kernel and tile. Older chips:
    one of each kernel, dtypes and tile. Chips of which no tile is tuned: one of each kernel and
    dtypes. Wide tiles are compiled for the chips that have room for them.
    """
    jobs = [Job(None, chip) for chip in names]
    seen: set[tuple[str, ...]] = set()
    for (number, launch), chip in itertools.product(enumerate(captured()), names):
        tuned = chip == DISASSEMBLED
        if not launch.suits(chip) or (launch.half() and not tuned):
            continue
        detail = "" if chip in SAMPLED else launch.tile()
        if tuned and not launch.alike():
            detail = launch.config()
        kind = (chip, launch.kernel.__name__, launch.memory(), detail)
        if kind in seen:
            continue
        seen.add(kind)
        jobs.append(Job(number, chip))
        large = launch.kwargs.get("num_warps") == LARGE_WARPS
        if tuned and large and not launch.alike():
            jobs.append(Job(number, chip, integer=EVEN))
    return jobs


def compile_jobs(jobs: list[Job], workers: int | None = None) -> list[Compiled]:
    """Compile in separate processes with an empty cache.

    Triton's state in this process does not change. It may be that of the interpreter.
    """
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
    ):
        os.environ.pop("TRITON_INTERPRET", None)
        workers = min(len(jobs), workers or min(4, os.cpu_count() or 1))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            return list(pool.map(_compile_job, jobs))


_launches: list[Launch] = []


def _compile_job(job: Job) -> Compiled:
    if job.launch is None:
        return compiled(Launch(nothing_much, (torch.ones(64), 63), {"BLOCK": 64}), job.chip)
    if job.launch == FAULTY:
        a, b = torch.ones(64, 256, dtype=torch.bfloat16), torch.ones(256, 64, dtype=torch.bfloat16)
        args = (a, b, torch.ones(64, 64), 255, 256)
        return compiled(Launch(product_by_values, args, {"BLOCK": 64}), job.chip)
    if not _launches:
        _launches.extend(captured())
    launch = _launches[job.launch]
    if job.integer is not None:
        args = tuple(
            job.integer if isinstance(x, int) and not isinstance(x, bool) else x
            for x in launch.args
        )
        launch = launch._replace(args=args)
    return compiled(launch, job.chip, **dict(job.options))


def table(results: list[Compiled]) -> str:
    """A Markdown table. Launches that differ in alignment only share a line: most registers win."""
    columns = ("kernel", "config", "memory, operand", "chip", "registers", "shared KiB")
    lines = [" | ".join([*columns, "spilled bytes", "multiply-add"])]
    lines.append(" | ".join(["---"] * 8))
    worst: dict[str, Compiled] = {}
    for x in results:
        if str(x) not in worst or x.registers > worst[str(x)].registers:
            worst[str(x)] = x
    for x in worst.values():
        kind = x.failure or " ".join(x.matrix) or ("FMA" if x.plain else "-")
        shared = f"{x.shared / 1024:.1f}"
        cells = (
            x.kernel,
            x.config,
            f"{x.memory}, {x.operand}",
            x.chip,
            x.registers,
            shared,
            x.spilled,
            kind,
        )
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Resources of every Triton kernel on every chip, as a Markdown table."
    )
    parser.add_argument("--out", type=Path, help="a file instead of the standard output")
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    text = table(compile_jobs([job for job in every_job() if job.launch is not None], args.workers))
    if args.out:
        args.out.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
