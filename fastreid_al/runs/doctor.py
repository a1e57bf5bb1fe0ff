"""The state of an installation, in lines."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

#: Distributions that can be what is named, and what they are good for.
OPTIONAL = {
    "triton": (("triton",), "the kernels on a GPU; it comes with PyTorch for CUDA"),
    "scikit-learn": (("scikit-learn",), "comparing with its clustering: pip install scikit-learn"),
    "cuml": (
        ("cuml-cu13", "cuml-cu12", "cuml"),
        "comparing with its clustering on a GPU: docs.rapids.ai/install",
    ),
    "cuvs": (
        ("cuvs-cu13", "cuvs-cu12", "cuvs"),
        "--cluster.neighbours ivf on a GPU: docs.rapids.ai/install",
    ),
    "faiss": (
        ("faiss-gpu", "faiss-cpu", "faiss"),
        "--cluster.neighbours ivf: pip install faiss-cpu",
    ),
    "tensorboard": (("tensorboard",), "--tensorboard: pip install tensorboard"),
    "pybind11": (("pybind11",), "building the extension in place: pip install pybind11"),
}
BF16_UNITS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512",
    "avx_ne_convert": "AVX-NE-CONVERT",
    "bf16": "Arm",
}
#: Seconds that a test on one device may take; the first one on a GPU compiles kernels.
PATIENCE = 300


class Line(NamedTuple):
    """One finding: what it is about, what was found, and whether the package cannot do its work like this."""

    topic: str
    text: str
    broken: bool = False


def diagnose() -> Iterator[Line]:
    """What is installed, what runs, and what to do about the rest; first what the others stand on."""
    yield Line("python", f"{platform.python_version()}, {sys.executable}")
    yield from _requirements()
    yield from _optional()
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Line(
            "torch",
            f"does not load: {_one_line(error)}; install PyTorch as pytorch.org says",
            broken=True,
        )
        return
    from .. import native

    facts: dict[str, Any] = {}
    if native.left_out():
        yield Line("extension", "left out by FASTREID_AL_NATIVE=0; unset it to compute faster")
    else:
        done = _in_python("load")
        if done.returncode == 0:
            facts = json.loads(done.stdout.splitlines()[-1])
            yield _extension(facts)
        else:
            yield Line("extension", _failure(done), broken=bool(native.libraries()))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield from _devices(torch, devices, facts)
    for device in ("cpu", *(f"cuda:{i}" for i in range(devices))):
        done = _in_python("self_test", device)
        what = (
            "small problem clustered as it should be"
            if done.returncode == 0
            else "failed: " + _failure(done)
        )
        yield Line("self-test", f"{device}: {what}", broken=done.returncode != 0)
    yield _world(torch)
    yield _threads(native.threads())
    yield _bf16()


def load() -> None:
    """Load the extension and print what it says of itself, as JSON; for a process of its own, which it may crash."""
    from .. import native

    try:
        module = native.load()
    except ImportError as error:
        raise SystemExit(native.explain(error)) from None
    facts = {
        name: getattr(module, name) for name in ("compiler", "openmp", "cuda", "cuda_architectures")
    }
    print(json.dumps({"path": module.__file__, **facts}))


def self_test(device: str) -> None:
    """Cluster 6 groups of 10 points; for a process of its own."""
    import torch
    from torch.nn.functional import normalize

    from ..clustering import dbscan, jaccard_graph

    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(6, 64, generator=generator))
    groups = torch.arange(6).repeat_interleave(10)
    features = normalize(centres[groups] + 0.05 * torch.randn(60, 64, generator=generator))
    labels = dbscan(jaccard_graph(features.to(device), k1=10, k2=3), 0.5)
    if labels.cpu().tolist() != groups.tolist():
        raise SystemExit(f"6 groups of 10 points became the clusters {labels.tolist()}")


def _requirements() -> Iterator[Line]:
    try:
        wanted = metadata.requires("fastreid_al") or []
        yield Line("fastreid_al", f"{metadata.version('fastreid_al')}, {Path(__file__).parent}")
    except metadata.PackageNotFoundError:
        wanted = []
        yield Line(
            "fastreid_al",
            f"{Path(__file__).parent}, not installed: `pip install -e .` in the source folder",
        )
    for requirement in wanted:
        found = re.match(
            r"(?P<name>[\w.-]+)(\[[^]]*\])?\s*(>=\s*(?P<least>[\d.]+))?(?P<rest>.*)", requirement
        )
        if found is None or "extra ==" in found["rest"]:
            continue
        name, least = found["name"], found["least"]
        version = _version(name)
        if version is None:
            yield Line(
                name,
                f"not installed: pip install '{name}{'>=' + least if least else ''}'",
                broken=True,
            )
        elif least and _numbers(version) < _numbers(least):
            yield Line(
                name, f"{version}, older than {least}: pip install '{name}>={least}'", broken=True
            )
        else:
            yield Line(name, version)


def _optional() -> Iterator[Line]:
    for name, (distributions, use) in OPTIONAL.items():
        version = next((v for v in map(_version, distributions) if v), None)
        yield Line(name, version or f"not installed, and optional; it is for {use}")


def _extension(facts: dict[str, Any]) -> Line:
    openmp = "OpenMP" if facts["openmp"] else "threads without OpenMP"
    cuda = (
        f"CUDA for {_sm(facts['cuda_architectures'])} and later"
        if facts["cuda"]
        else "no CUDA part"
    )
    return Line("extension", f"{facts['path']}: compiler {facts['compiler']}, {openmp}, {cuda}")


def _devices(torch: Any, count: int, facts: dict[str, Any]) -> Iterator[Line]:
    from .. import native

    if not count:
        if torch.version.cuda is None:
            reason = "; this PyTorch has no CUDA, see pytorch.org for one that has"
        elif Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
            reason = f"; PyTorch for CUDA {torch.version.cuda} sees none: look at CUDA_VISIBLE_DEVICES and the driver's version"
        else:
            reason = ""
        yield Line("devices", f"CPU alone{reason}")
    for i in range(count):
        properties = torch.cuda.get_device_properties(i)
        number = f"{properties.major}{properties.minor}"
        text = (
            f"cuda:{i}: {properties.name}, sm_{number}, {properties.total_memory / 2**30:.0f} GiB"
        )
        if facts and not facts["cuda"]:
            text += f"; the extension has no CUDA part: with nvcc on PATH, {native.AGAIN}"
        elif facts and not native.covers(
            facts["cuda_architectures"], (properties.major, properties.minor)
        ):
            text += f"; the extension does not run on it: with FASTREID_AL_CUDA_ARCHITECTURES={number}, {native.AGAIN}"
        yield Line("devices", text)


def _world(torch: Any) -> Line:
    distributed = torch.distributed
    if not distributed.is_available():
        return Line("ranks", "this PyTorch has no torch.distributed: one process trains alone")
    nccl = (
        "NCCL on GPUs"
        if distributed.is_nccl_available()
        else "no NCCL: GPUs exchange through the host, which is slower"
    )
    return Line("ranks", f"torchrun: {nccl}, gloo on CPUs")


def _threads(threads: int) -> Line:
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    text = f"{threads} of {usable} CPUs"
    if threads > usable:
        text += f": more than there are is slow, set OMP_NUM_THREADS={usable}"
    elif threads < usable // 2:
        text += f"; OMP_NUM_THREADS={usable} takes all"
    return Line("threads", text)


def _bf16() -> Line:
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    units = [name for flag, name in BF16_UNITS.items() if flag in flags]
    return Line(
        "bfloat16",
        f"{', '.join(units)} on this CPU"
        if units
        else "no units on this CPU: float32 is the faster there",
    )


def _in_python(function: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call a function of this module in a process that finds what this one finds."""
    code = f"from fastreid_al.runs import doctor; doctor.{function}(*{arguments!r})"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path),
    }
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no end after {PATIENCE} s")


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    said = done.stderr.strip().splitlines()
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}; " + (
            said[-1] if said else "a build for another processor does that"
        )
    return said[-1] if said else f"status {done.returncode}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3])


def _sm(architectures: str) -> str:
    return ", ".join(f"sm_{number}" for number in architectures.split())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
