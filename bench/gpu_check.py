"""Run the GPU tests and the benchmarks on this machine's CUDA device.

    python bench/gpu_check.py --out DIR

Sizes are those of MSMT17; --scale selects others, and benchmarks without a size at that scale are
skipped. The results go to one file, DIR/gpu-DEVICE-DATE.json. The exit status is 1 if a test or a
benchmark failed, did not end in time, or could not run. Without a CUDA device nothing runs and
nothing is written. An extension without its CUDA part is built first, in place, if nvcc is found.
Its CUDA functions run under compute-sanitizer, if that is found.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastreid_al.files import make_folder, write_file

ROOT = Path(__file__).resolve().parent.parent
#: Benchmarks that run first, in this order: the fastest ones, so that a limit that is too short
#: costs the fewest figures, and the whole epochs, which matter most. The others follow by name.
FIRST = (
    "bench_update_bank.py",
    "bench_plmb.py",
    "bench_bank_contrast_loss.py",
    "bench_multilabel_bank_loss.py",
    "bench_grouped_norm.py",
    "bench_train_step.py",
    "bench_nnct_step.py",
    "bench_epoch.py",
    "bench_similarity_topk.py",
    "bench_label_prediction.py",
    "bench_questions.py",
    "bench_kmedoids.py",
)
#: Measures processes of a CPU only.
ON_CPU = ("bench_sharded_labels.py",)
BENCHMARKS = (
    *FIRST,
    *sorted({path.name for path in (ROOT / "bench").glob("bench_*.py")} - {*FIRST, *ON_CPU}),
)
#: Seconds after which a benchmark is stopped, so that time is left for the following ones.
LIMITS = {"bench_epoch.py": 240.0}
SCALES = ("small", "market", "msmt17", "million")
PACKAGES = (
    "fastreid_al",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "scipy",
    "scikit-learn",
    "pytest-benchmark",
)
#: Packages that only some tests and benchmarks need; these are skipped without them.
OPTIONAL = (
    "sklearn",
    "rich",
    "platformdirs",
    "matplotlib",
    "sqlalchemy",
    "kmedoids",
    "faiss",
    "cuml",
)
TAIL = 4_000


def main() -> int:
    """Run everything; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the result"
    )
    parser.add_argument("--scale", choices=SCALES, default="msmt17", help="size of the problems")
    parser.add_argument(
        "--limit",
        type=float,
        default=540,
        metavar="SECONDS",
        help="time for all of it; what has not ended then is stopped",
    )
    parser.add_argument(
        "--only", choices=BENCHMARKS, nargs="+", default=BENCHMARKS, help="benchmarks to run"
    )
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("no PyTorch: nothing was run and nothing is claimed")
        return 1
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was run and nothing is claimed")
        return 0
    device = torch.cuda.get_device_name()
    now = datetime.datetime.now().astimezone()
    deadline = time.monotonic() + options.limit
    report: dict[str, Any] = {
        "date": now.isoformat(timespec="seconds"),
        "device": device,
        "versions": versions(torch.version.cuda),
        "not_installed": [name for name in OPTIONAL if importlib.util.find_spec(name) is None],
        "commit": output_of("git", "rev-parse", "HEAD"),
        "scale": options.scale,
    }
    with tempfile.TemporaryDirectory() as scratch:
        report["extension"] = build_extension(
            min(deadline, time.monotonic() + 0.25 * options.limit)
        )
        # Tests get less than half of the time: one that hangs must not cost all figures.
        report["tests"] = run_tests(
            Path(scratch), min(deadline, time.monotonic() + 0.4 * options.limit)
        )
        end = min(deadline, time.monotonic() + 0.15 * options.limit)
        report["sanitizers"] = run_sanitizers(report["extension"]["library"], end)
        report["benchmarks"] = [
            run_benchmarks(name, options.scale, Path(scratch), deadline) for name in options.only
        ]
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    make_folder(options.out, private=False)
    path = options.out / f"gpu-{slug}-{now:%Y%m%d}.json"
    write_file(path, json.dumps(report, indent=2) + "\n", private=False)
    print_summary(report)
    print(path)
    return int(any(not part["ok"] for part in parts(report)))


def run_tests(scratch: Path, deadline: float) -> dict[str, Any]:
    """Run the tests marked gpu; return counts by outcome and the end of the output."""
    # Only files with such tests: others import packages that may be missing here.
    files = [
        str(p) for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text()
    ]
    results = scratch / "tests.xml"
    # A file that cannot be imported must not stop the others.
    ran = run_pytest(
        [*files, "-m", "gpu", "-rs", "--continue-on-collection-errors", f"--junitxml={results}"],
        deadline,
    )
    counts: dict[str, int] = {}
    if results.exists():
        # pytest has just written it.
        suite = next(ElementTree.parse(results).iter("testsuite"))  # noqa: S314
        counts = {key: int(suite.get(key, 0)) for key in ("failures", "errors", "skipped")}
        counts["passed"] = int(suite.get("tests", 0)) - sum(counts.values())
    # A pytest that ran no test exits with 5, one that skipped them all with 0: neither shows
    # anything.
    return {"ok": ran["exit"] == 0 and counts.get("passed", 0) > 0, **counts, **ran}


def run_benchmarks(name: str, scale: str, scratch: Path, deadline: float) -> dict[str, Any]:
    """Run one benchmark file; return its figures, and the end of its output if it failed."""
    if importlib.util.find_spec("pytest_benchmark") is None:
        return {
            "ok": False,
            "file": name,
            "exit": None,
            "output": "pytest-benchmark is not installed",
            "figures": [],
        }
    results = scratch / f"{name}.json"
    deadline = min(deadline, time.monotonic() + LIMITS.get(name, float("inf")))
    ran = run_pytest(
        [
            *(str(ROOT / "bench" / name), "--benchmark-only", "-rs"),
            *("--device", "cuda", "--scale", scale, f"--benchmark-json={results}"),
        ],
        deadline,
    )
    # The file is empty if pytest was stopped.
    content = (
        json.loads(results.read_text())
        if results.exists() and results.stat().st_size
        else {"benchmarks": []}
    )
    figures = [
        {
            "name": b["name"],
            "group": b["group"],
            "median_s": b["stats"]["median"],
            "rounds": b["stats"]["rounds"],
            "extra_info": b["extra_info"],
        }
        for b in content["benchmarks"]
    ]
    no_size = f"no size at scale {scale}" in ran["output"]
    ok = ran["exit"] == 0 and (bool(figures) or no_size)
    if ok:
        del ran["output"]
    return {"ok": ok, "file": name, **ran, "figures": figures}


def build_extension(deadline: float) -> dict[str, Any]:
    """Build the extension with its CUDA part for this device, if it is missing.

    Returns where it is, or why it is missing.
    """
    library = cuda_library()
    if library is not None:
        return {"ok": True, "file": "extension", "library": library, "built": False}
    missing = [name for name in ("nvcc", "g++") if tool(name) is None]
    missing += [
        name for name in ("setuptools", "pybind11") if importlib.util.find_spec(name) is None
    ]
    if missing:
        return {
            "ok": True,
            "file": "extension",
            "library": None,
            "not_run": f"missing: {', '.join(missing)}",
        }
    import torch

    major, minor = torch.cuda.get_device_capability()
    settings = {"FASTREID_AL_CUDA": "1", "FASTREID_AL_CUDA_ARCHITECTURES": f"{major}{minor}"}
    ran = run_command(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], deadline, settings
    )
    library = cuda_library()
    ok = ran["exit"] == 0 and library is not None
    return {"ok": ok, "file": "extension", "library": library, "built": True, **ran}


def cuda_library() -> str | None:
    """Path of the extension, if it has a CUDA part for this device."""
    code = (
        "from fastreid_al import native; module = native.cuda_extension(); "
        "print(module.__file__ if module else '')"
    )
    said = output_of(sys.executable, "-W", "ignore", "-c", code)
    return said.splitlines()[-1] if said else None


def run_sanitizers(library: str | None, deadline: float) -> list[dict[str, Any]]:
    """Run the extension's CUDA functions on small arrays.

    They run as they are, and under compute-sanitizer's memcheck and racecheck.
    """
    native = ROOT / "tests" / "native"
    scripts = [str(path) for path in sorted(native.glob("exercise_*.py"))]
    if library is None:
        return [{"ok": True, "file": "exercises", "not_run": "no extension with a CUDA part"}]
    command = [sys.executable, str(native / "on_gpu.py"), library, *scripts]
    found = [{"file": "exercises", **run_command(command, deadline)}]
    sanitizer = tool("compute-sanitizer")
    for check in ("memcheck", "racecheck"):
        if sanitizer is None:
            found.append({"file": check, "not_run": "no compute-sanitizer"})
        else:
            before = [sanitizer, "--tool", check, "--error-exitcode", "86"]
            ran = run_command([*before, *command], deadline)
            # Some virtual machines do not expose the interface that it needs.
            refused = "Device not supported" in ran["output"]
            found.append(
                {
                    "file": check,
                    **({"not_run": "compute-sanitizer: device not supported"} if refused else ran),
                }
            )
    return [{"ok": part.get("exit", 0) == 0, **part} for part in found]


def tool(name: str) -> str | None:
    """Path of a program, on PATH or in the CUDA installation."""
    folders = [
        os.environ.get("PATH", ""),
        *(f"{os.environ[v]}/bin" for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ),
    ]
    return shutil.which(name, path=os.pathsep.join([*folders, "/usr/local/cuda/bin"]))


def parts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """All parts of the report, in order."""
    return [report["extension"], report["tests"], *report["sanitizers"], *report["benchmarks"]]


def run_pytest(arguments: list[str], deadline: float) -> dict[str, Any]:
    """Run pytest until the deadline."""
    # The project's own options name pytest-benchmark's, which may not be installed.
    return run_command(
        [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", *arguments], deadline
    )


def run_command(
    command: list[str], deadline: float, settings: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a command until a deadline; return exit status (None: stopped), seconds and output."""
    start = time.monotonic()
    environment = {**os.environ, **(settings or {})}
    with tempfile.TemporaryFile("w+") as log:
        # A new session, so that the processes that measure memory are stopped as well.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(max(1.0, deadline - start))
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = None
        log.seek(0)
        text = log.read()
    if status is None:
        text += f"\nstopped at the limit, after {time.monotonic() - start:.0f} s"
    return {"exit": status, "seconds": round(time.monotonic() - start, 1), "output": text[-TAIL:]}


def versions(cuda: str | None) -> dict[str, str | None]:
    """Versions of the software below the figures; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": cuda}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found["driver"] = driver.splitlines()[0] if driver else None
    return found


def output_of(*command: str) -> str | None:
    """Output of a command; None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip()


def print_summary(report: dict[str, Any]) -> None:
    """Print a line per part and figure, and the output of failed parts."""
    tests = report["tests"]
    counts = ", ".join(
        f"{tests.get(key, '?')} {key}" for key in ("passed", "failures", "errors", "skipped")
    )
    print(f"{report['device']}: gpu tests: {counts}")
    for part in report["benchmarks"]:
        for figure in part["figures"]:
            memory = figure["extra_info"].get("peak_extra_MiB")
            ms = figure["extra_info"].get("cuda_event_median_ms", 1e3 * figure["median_s"])
            print(f"  {figure['name']}: {ms:.4g} ms, {memory} MiB")
            for name, goal in figure["extra_info"].get("goals", {}).items():
                said = "met" if goal["met"] else "missed"
                print(f"    {name}: {goal['found']:,.4g}, goal {goal['goal']:,} {said}")
    for part in parts(report):
        if not part["ok"]:
            print(f"failed: {part.get('file', 'tests')}\n{part['output']}")
        elif "not_run" in part:
            print(f"not run: {part['file']}: {part['not_run']}")


if __name__ == "__main__":
    sys.exit(main())
