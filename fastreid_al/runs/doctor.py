"""Diagnoses an installation: what is installed, what works, and what to do about the rest."""

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

#: Optional packages: the distributions that provide each of them, and what it is for.
OPTIONAL = {
    "triton": (("triton",), "the kernels on a GPU; it comes with PyTorch for CUDA"),
    "scikit-learn": (
        ("scikit-learn",),
        "a baseline of the clustering benches: pip install scikit-learn",
    ),
    "cuml": (
        ("cuml-cu13", "cuml-cu12", "cuml"),
        "comparing with its clustering on a GPU: docs.rapids.ai/install",
    ),
    "cuvs": (
        ("cuvs-cu13", "cuvs-cu12", "cuvs"),
        "`cluster.neighbours` ivf on a GPU: docs.rapids.ai/install",
    ),
    "faiss": (
        ("faiss-gpu", "faiss-cpu", "faiss"),
        "`cluster.neighbours` ivf: pip install faiss-cpu",
    ),
    "tensorboard": (("tensorboard",), "`tensorboard`: pip install tensorboard"),
    "openvino": (
        ("openvino",),
        "features of OSNet on a CPU in a third of the time: pip install openvino",
    ),
    "onnx": (("onnx",), "`what` onnx of an export: pip install onnx onnxscript onnxruntime"),
    "onnxruntime": (("onnxruntime",), "checking a file of `what` onnx: pip install onnxruntime"),
    "pyarrow": (("pyarrow",), "rankings as .parquet: pip install pyarrow"),
    "starlette": (("starlette",), "the page of annotate: pip install starlette uvicorn"),
    "uvicorn": (("uvicorn",), "the page of annotate: pip install starlette uvicorn"),
    "pybind11": (("pybind11",), "building the extension in place: pip install pybind11"),
}
#: Seconds that the test of one device may take; the first one on a GPU compiles kernels.
PATIENCE = 300
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(\[[^]]*\])?\s*(>=\s*(?P<minimum>[\d.]+))?(?P<rest>.*)"
)


class Line(NamedTuple):
    """A finding.

    Args:
        topic: What it is about.
        text: What was found, and what to do about it.
        broken: Whether the package cannot work as it is.
    """

    topic: str
    text: str
    broken: bool = False


def diagnose() -> Iterator[Line]:
    """Yield the findings; what the others depend on comes first."""
    yield Line("python", f"{platform.python_version()}, {sys.executable}")
    yield from _requirements()
    yield from _optional()
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        text = f"does not load: {reason}; install PyTorch as pytorch.org says"
        yield Line("torch", text, broken=True)
        return
    from .. import native

    line, facts = _extension()
    yield line
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield from _devices(torch, devices, facts)
    for device in ("cpu", *(f"cuda:{i}" for i in range(devices))):
        yield _self_test_line(device)
    yield _distributed(torch)
    yield _threads(native.threads())
    yield _bf16()


def load() -> None:
    """Load the extension and print its facts as JSON; in a process of its own, which may crash."""
    from .. import native

    try:
        module = native.load()
    except ImportError as error:
        raise SystemExit(native.explain(error)) from None
    facts = {"path": module.__file__}
    for name in ("compiler", "openmp", "cuda", "cuda_architectures"):
        facts[name] = getattr(module, name)
    print(json.dumps(facts))


def self_test(device: str) -> None:
    """Cluster 6 groups of 10 points. Runs in a process of its own, which may crash."""
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
    """Yield the version of the package, and of each package that it requires."""
    folder = Path(__file__).parent.parent
    try:
        requirements = metadata.requires("fastreid_al") or []
        yield Line("fastreid_al", f"{metadata.version('fastreid_al')}, {folder}")
    except metadata.PackageNotFoundError:
        requirements = []
        text = f"{folder}, not installed: `pip install -e .` in the source folder"
        yield Line("fastreid_al", text)
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match is not None and "extra ==" not in match["rest"]:
            yield _requirement(match["name"], match["minimum"])


def _requirement(name: str, minimum: str | None) -> Line:
    """Return the version of a required package, and whether it is missing or too old."""
    version = _version(name)
    install = f"pip install '{name}{'>=' + minimum if minimum else ''}'"
    if version is None:
        return Line(name, f"not installed: {install}", broken=True)
    if minimum and _numbers(version) < _numbers(minimum):
        return Line(name, f"{version}, older than {minimum}: {install}", broken=True)
    return Line(name, version)


def _optional() -> Iterator[Line]:
    """Yield the versions of the optional packages."""
    for name, (distributions, purpose) in OPTIONAL.items():
        versions = [version for version in map(_version, distributions) if version]
        missing = f"not installed, and optional; it is for {purpose}"
        yield Line(name, versions[0] if versions else missing)


def _extension() -> tuple[Line, dict[str, Any]]:
    """Return whether the extension loads, and its facts; no facts where it does not."""
    from .. import native

    if native.left_out():
        text = "left out by FASTREID_AL_NATIVE=0; unset it to compute faster"
        return Line("extension", text), {}
    done = _in_python("load")
    if done.returncode != 0:
        # Nothing is broken without a library: the extension was not built, and PyTorch computes.
        return Line("extension", _failure(done), broken=bool(native.libraries())), {}
    facts = json.loads(done.stdout.splitlines()[-1])
    openmp = "OpenMP" if facts["openmp"] else "threads without OpenMP"
    cuda = "no CUDA part"
    if facts["cuda"]:
        architectures = [f"sm_{number}" for number in facts["cuda_architectures"].split()]
        cuda = f"CUDA for {', '.join(architectures)} and later"
    text = f"{facts['path']}: compiler {facts['compiler']}, {openmp}, {cuda}"
    return Line("extension", text), facts


def _devices(torch: Any, count: int, facts: dict[str, Any]) -> Iterator[Line]:
    """Yield the GPUs, and whether the extension runs on them.

    Args:
        torch: The module.
        count: Number of GPUs.
        facts: Facts of the extension; empty where it does not load.
    """
    from .. import native

    if not count:
        yield Line("devices", f"no GPU, only the CPU{_why_no_gpu(torch)}")
    for i in range(count):
        properties = torch.cuda.get_device_properties(i)
        number = f"{properties.major}{properties.minor}"
        gib = properties.total_memory / 2**30
        text = f"cuda:{i}: {properties.name}, sm_{number}, {gib:.0f} GiB"
        capability = (properties.major, properties.minor)
        if facts and not facts["cuda"]:
            text += f"; the extension has no CUDA part: with nvcc on PATH, {native.AGAIN}"
        elif facts and not native.covers(facts["cuda_architectures"], capability):
            text += (
                "; the extension does not run on it: "
                f"with FASTREID_AL_CUDA_ARCHITECTURES={number}, {native.AGAIN}"
            )
        yield Line("devices", text)


def _why_no_gpu(torch: Any) -> str:
    """Return why PyTorch finds no GPU, as the end of a sentence; empty if there is none."""
    if torch.version.cuda is None:
        return "; this PyTorch has no CUDA, see pytorch.org for one that has"
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        return (
            f"; PyTorch for CUDA {torch.version.cuda} finds none: "
            "check CUDA_VISIBLE_DEVICES and the version of the driver"
        )
    return ""


def _self_test_line(device: str) -> Line:
    """Run the self-test on a device."""
    done = _in_python("self_test", device)
    if done.returncode == 0:
        return Line("self-test", f"{device}: a small problem is clustered correctly")
    return Line("self-test", f"{device}: failed: {_failure(done)}", broken=True)


def _distributed(torch: Any) -> Line:
    """Return whether several processes can train together."""
    distributed = torch.distributed
    if not distributed.is_available():
        return Line("ranks", "this PyTorch has no torch.distributed: only a single process trains")
    nccl = "no NCCL: GPUs exchange through the host, which is slower"
    if distributed.is_nccl_available():
        nccl = "NCCL on GPUs"
    return Line("ranks", f"torchrun: {nccl}, gloo on CPUs")


def _threads(threads: int) -> Line:
    """Return whether the number of threads fits the CPUs that this process may use."""
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    text = f"{threads} of {usable} CPUs"
    if threads > usable:
        text += f": more threads than CPUs are slow, set OMP_NUM_THREADS={usable}"
    elif threads < usable // 2:
        text += f"; OMP_NUM_THREADS={usable} uses all"
    return Line("threads", text)


def _bf16() -> Line:
    """Return in which precision this CPU trains."""
    from ..engine.precision import bf16_units

    units = bf16_units()
    if not units:
        return Line("bfloat16", "no units for it on this CPU: training steps are in float32")
    return Line("bfloat16", f"{', '.join(units)} on this CPU: training steps are in bfloat16")


def _in_python(function: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call a function of this module in a process with the same import path."""
    code = f"from fastreid_al.runs import doctor; doctor.{function}(*{arguments!r})"
    import_path = os.pathsep.join(str(Path(p).absolute()) for p in sys.path)
    environment = {**os.environ, "PYTHONPATH": import_path}
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"not finished after {PATIENCE} s")


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a process failed: its last line, or the signal that killed it."""
    lines = done.stderr.strip().splitlines()
    if done.returncode < 0:
        reason = lines[-1] if lines else "a build for another processor does that"
        return f"killed by signal {-done.returncode}; {reason}"
    return lines[-1] if lines else f"status {done.returncode}"


def _version(distribution: str) -> str | None:
    """Return the version of a distribution; None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])
