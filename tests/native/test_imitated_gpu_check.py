"""bench/gpu_check.py as a whole on an imitated device: it runs, is killed, goes on, and reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import build_native
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from gpu_parts import all_parts  # noqa: E402

_INTERPRETER = "Triton's interpreter needs more than half a minute at the least size"
#: Managed memory of the CPU for the exercises, which run on the emulated extension.
DRIVER = """
#include <cstdint>
#include <cstdlib>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int) { return *device = 0; }
int cuDevicePrimaryCtxRetain(void** context, int) { *context = nullptr; return 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuMemAllocManaged(uint64_t* address, size_t size, unsigned) {
    *address = reinterpret_cast<uint64_t>(std::malloc(size));
    return 0;
}
int cuCtxSynchronize() { return 0; }
}
"""
#: compute-sanitizer, which runs the command and refuses to look for races.
SANITIZER = """#!/bin/sh
[ "$1 $3 $4" = "--tool --error-exitcode 86" ] || exit 2
if [ "$2" = racecheck ]; then echo "Error: Device not supported"; exit 1; fi
shift 4
exec "$@"
"""
#: Parts that cannot run here.
LEFT_OUT = {
    "test_train_gpu": _INTERPRETER,
    "test_nnct_gpu": _INTERPRETER,
    "test_nnct_ranks_gpu": "its ranks are threads, and the device is that of one thread",
    # tests/native/test_one_read.py runs the kernel.
    "test_one_read_gpu": "emulated programs have the shared memory of capability 8.6",
    "bench_pseudo_labels": _INTERPRETER,
    "bench_rounds": _INTERPRETER,
    "bench_nnct_step": _INTERPRETER,
    "bench_epoch": _INTERPRETER,
}
#: The part that is killed after its first figure.
KILLED = "kernels"
#: Seconds after which a run has failed.
LONG = 900


@pytest.fixture(scope="module")
def extension(pytestconfig: pytest.Config) -> Path:
    """The emulated extension."""
    if build_native.compiler() is None:
        pytest.skip("no C++ compiler")
    pytest.importorskip("pybind11")
    pytest.importorskip("triton")
    pytest.importorskip("pytest_benchmark", reason="the benchmarks need pytest-benchmark")
    assert pytestconfig.cache is not None
    return build_native.kept_build(pytestconfig.cache.mkdir("emulated"))


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the driver's library and compute-sanitizer."""
    folder = tmp_path_factory.mktemp("tools")
    source = folder / "driver.cpp"
    source.write_text(DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run(
        [str(build_native.compiler()), "-shared", "-fPIC", str(source), "-o", str(library)],
        check=True,
    )
    sanitizer = folder / "compute-sanitizer"
    sanitizer.write_text(SANITIZER)
    sanitizer.chmod(0o755)
    return folder


def started(
    extension: Path, out: Path, *arguments: str, **settings: str
) -> subprocess.Popen[bytes]:
    script = ROOT / "tests" / "imitated" / "imitated_check.py"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    # What it starts is no worker of these tests.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    # The limits are those of a GPU.
    more = ("--scale", "tiny", "--limit", str(LONG), "--out", str(out))
    return subprocess.Popen(
        [sys.executable, str(script), str(extension), *more, *arguments],
        env={**inherited, **environment, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def results(out: Path) -> dict[str, Any]:
    """What is written, which must be whole at any instant."""
    paths = list(out.glob("gpu-imitated-*.json"))
    if not paths:
        return {"parts": []}
    (path,) = paths
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def by_name(out: Path) -> dict[str, dict[str, Any]]:
    return {part["part"]: part for part in results(out)["parts"]}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < end
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_all_parts_run_and_a_killed_call_goes_on_where_it_was(
    extension: Path, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tools), prepend=os.pathsep)
    names = [part.name for part in all_parts("tiny") if part.name not in LEFT_OUT]
    assert set(LEFT_OUT) <= {part.name for part in all_parts("tiny")}
    features = tmp_path / "features.npy"
    np.save(features, np.random.default_rng(0).standard_normal((20, 16), dtype=np.float32))
    arguments = ("--features", str(features), "--only", *names)
    first = started(extension, tmp_path, *arguments)
    wait_until(lambda: bool(by_name(tmp_path).get(KILLED, {}).get("figures")), first)
    below = children(first.pid)
    first.kill()
    first.communicate()
    before = by_name(tmp_path)
    assert below
    wait_for_end = time.monotonic() + 30
    while any(map(runs, below)) and time.monotonic() < wait_for_end:
        time.sleep(0.1)
    assert not any(map(runs, below))
    assert before[KILLED]["status"] == "running"

    second = started(extension, tmp_path, *arguments)
    printed = second.communicate(timeout=LONG)[0].decode()
    after = by_name(tmp_path)
    wrong = {
        name: part for name, part in after.items() if part["status"] not in ("passed", "not run")
    }
    assert wrong == {}, printed
    assert second.returncode == 0, printed
    assert set(after) == {"build", *names}
    done = [name for name in names if before.get(name, {}).get("status") in ("passed", "not run")]
    assert names.index(KILLED) == len(done)
    assert all(after[name] == before[name] for name in done)
    assert len(after[KILLED]["figures"]) > len(before[KILLED]["figures"])
    check_content(tmp_path, after)


def check_content(out: Path, parts: dict[str, dict[str, Any]]) -> None:
    """What the results of all parts hold."""
    content = results(out)
    assert len(content["calls"]) == 2
    assert {"kmedoids", "cuml"} <= set(content["not_installed"])
    assert parts["test_ranks_clustering_gpu"]["reason"] == "fewer than two CUDA devices"
    assert parts["exercises"]["status"] == parts["memcheck"]["status"] == "passed"
    assert parts["racecheck"]["reason"] == "compute-sanitizer: device not supported"
    for part in parts.values():
        if part["kind"] == "bench":
            assert part["figures"], part["part"]
            assert all(figure["median_s"] > 0 for figure in part["figures"])
        if part["kind"] == "tests" and part["status"] == "passed":
            assert part["counts"]["passed"] >= 1
    kernels = {figure["extra_info"]["kernel"] for figure in parts["kernels"]["figures"]}
    assert kernels >= {
        *("group_maxima_kernel", "rescore_kernel", "round_kernel", "exponentials_kernel"),
        *("weighted_kernel", "running_kernel", "select_kernel", "update_kernel", "all"),
    }
    problems = [figure["extra_info"] for figure in parts["proven"]["figures"]]
    assert [problem["problem"].split(",")[0] for problem in problems] == ["features.npy", "planted"]
    for problem in problems:
        shares = [problem[name] for name in ("proven", "proven_later", "in_float32")]
        assert sum(shares) == pytest.approx(1)
    (report,) = out.glob("gpu-imitated-*.md")
    text = report.read_text()
    assert "could not be made" not in text
    # Tiny sizes are no measurement of a goal.
    assert "| similarity_topk, proven | B = 1,024, n = 1e6" in text
    assert "No goal with a measurement is missed." in text


@pytest.mark.slow
def test_wrong_results_of_a_benchmark_are_a_failure_that_is_repeated_when_asked(
    extension: Path, tmp_path: Path
) -> None:
    only = ("--only", "bench_update_bank")
    run = started(extension, tmp_path, *only, WRONG_RESULTS="1")
    printed = run.communicate(timeout=LONG)[0].decode()
    assert run.returncode == 1
    part = by_name(tmp_path)["bench_update_bank"]
    assert part["status"] == "failed", printed
    assert "a planted error" in part["output"]
    assert part["figures"] and not any(figure["passed"] for figure in part["figures"])
    (report,) = tmp_path.glob("gpu-imitated-*.md")
    assert "benchmark with a wrong result" in report.read_text()

    repeated = started(extension, tmp_path, *only, "--failed")
    assert repeated.wait(LONG) == 0
    assert by_name(tmp_path)["bench_update_bank"]["status"] == "passed"


@pytest.mark.slow
def test_a_call_that_is_ended_leaves_no_process(extension: Path, tmp_path: Path) -> None:
    run = started(extension, tmp_path, "--only", KILLED)
    wait_until(lambda: KILLED in by_name(tmp_path) and bool(children(run.pid)), run)
    below = children(run.pid)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert not any(map(runs, below))
