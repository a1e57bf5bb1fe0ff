"""Run the GPU tests and the benchmarks on this machine's CUDA device, what is worth most first.

    python bench/gpu_check.py --out DIR

The parts run one after the other, each for a limited time: the build of the extension (beside the
tests of the Triton kernels), the GPU tests file by file, the share of queries that the float16 pass
of `similarity_topk` proves, the single kernels, the operators beside their peers, training steps,
epochs, and the exercises of the extension under compute-sanitizer.

After each part the results are written to DIR/gpu-DEVICE-DATE.json, and beside it a report. A
second call with the same DIR, on the same device, commit and scale, goes on with the parts that are
missing or were cut off. Where a command ends after ten minutes, give --limit 570 and call again.
The exit status is 1 unless every part that was asked for has passed or cannot run here. Without a
CUDA device nothing runs and nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The project need not be installed.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "bench")]

import gpu_processes  # noqa: E402
from gpu_parts import SCALES, Part, all_parts, chosen  # noqa: E402
from gpu_processes import Program, Ran  # noqa: E402
from gpu_results import DONE, Results, breaking_test, read_figures, record_of  # noqa: E402

#: Most seconds of all parts, and of the build of the extension.
LIMIT, BUILD_LIMIT = 1_200.0, 180.0
#: A part is not started if less than this share of its limit is left.
LEAST = 0.25
#: Most processes for a file with tests, of which each but the last ended with a broken device.
MOST_STARTS = 5
#: Part beside which the extension is built: it does not need it.
BESIDE_BUILD = "test_kernels"
#: Characters of the output of a failed part that are printed; the results hold more.
SHOWN = 1_500
#: Seconds between two writes of the figures of a part that runs.
EVERY = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; return the exit status."""
    options = read_options(arguments)
    deadline = time.monotonic() + options.limit
    parts = chosen(all_parts(options.scale), options.only)
    if options.list:
        print_list(parts)
        return 0
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory() as scratch:
        gpu_processes.share_imports()
        device, forks = find_device()
        if device["name"] is None:
            print("no CUDA device: nothing was run and nothing is claimed")
            return 0
        results = Results.open(options.out, device, options.scale)
        results.begin_call(options)
        check = Check(results, Path(scratch), deadline, forks, options.features)
        pending = results.pending(parts, options.again, options.failed)
        with check.building(device, needed=any(part.name != BESIDE_BUILD for part in pending)):
            for part in pending:
                check.run(part)
    print_summary(results, parts)
    broken = results.status("build") in ("failed", "stopped")
    return int(broken or not results.done([part.name for part in parts]))


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="goals",
        help="size of the problems; by default that of the goal of each",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        metavar="SECONDS",
        help="time for all of it; what has not ended then is cut off",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="parts or files to run"
    )
    parser.add_argument("--list", action="store_true", help="print the parts and their limits")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--again", action="store_true", help="run parts that have a result too")
    again.add_argument("--failed", action="store_true", help="run parts that failed too")
    parser.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="features (n, D): .npy, .npz, .safetensors, .pt",
    )
    options = parser.parse_args(arguments)
    if options.features is not None:
        # Parts run in the project's folder.
        options.features = options.features.resolve()
    if options.out is None and not options.list:
        parser.error("--out DIR is missing")
    try:
        chosen(all_parts(options.scale), options.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    return options


def print_list(parts: list[Part]) -> None:
    """Print the parts with their limits."""
    print(f"{'seconds':>7}  part")
    print(f"{BUILD_LIMIT:7.0f}  build of the extension, beside {BESIDE_BUILD}")
    for part in parts:
        details = ", ".join(x for x in (part.file, part.scale, part.only) if x)
        print(f"{part.limit:7.0f}  {part.name}: {details}")
    print(f"{sum(part.limit for part in parts):7.0f}  together, without the build")


def _end(number: int, frame: FrameType | None) -> None:
    """End as after an error, so that the process that runs is ended too."""
    sys.exit(128 + number)


def find_device() -> tuple[dict[str, Any], bool]:
    """The device, and whether a forked process can use it.

    Raises:
        SystemExit: No process can.
    """
    output = ""
    for forks in (True, False):
        child = gpu_processes.start(Program("bench/gpu_device.py"), {}, forks=forks)
        ran = gpu_processes.wait(child, 60)
        lines = [line for line in ran.output.splitlines() if line.startswith("{")]
        if ran.exit == 0 and lines:
            return json.loads(lines[-1]), forks
        output = ran.tail
    sys.exit(f"nothing was run: the device cannot be used\n{output}")


class Check:
    """Runs the parts.

    Args:
        results: Gets their results.
        scratch: Folder for files of this call.
        deadline: When the call ends, of `time.monotonic`.
        forks: Whether programs are forked.
        features: File of real features.
    """

    def __init__(
        self, results: Results, scratch: Path, deadline: float, forks: bool, features: Path | None
    ) -> None:
        self.results = results
        self.scratch = scratch
        self.deadline = deadline
        self.forks = forks
        self.features = features
        self.library: str | None = None
        self._build: gpu_processes.Child | None = None
        self._build_begin = time.monotonic()

    @contextlib.contextmanager
    def building(self, device: dict[str, Any], *, needed: bool) -> Iterator[None]:
        """Build the extension in the background, if it is needed, missing and can be built."""
        self.library = device["library"]
        missing = [name for name in ("nvcc", "g++") if tool(name) is None]
        missing += [
            name for name in ("setuptools", "pybind11") if importlib.util.find_spec(name) is None
        ]
        if self.library is not None:
            self._note_build("passed", output=f"{self.library} was there")
        elif missing:
            self._note_build("not run", reason=f"missing: {', '.join(missing)}")
        elif needed:
            self._start_build(device["capability"])
        with contextlib.ExitStack() as stack:
            if self._build is not None:
                stack.enter_context(gpu_processes.ended_with_its_group(self._build))
            yield

    def _start_build(self, capability: str) -> None:
        settings = {"FASTREID_AL_CUDA": "1", "FASTREID_AL_CUDA_ARCHITECTURES": capability}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        self._build_begin = time.monotonic()
        self._build = gpu_processes.start(command, settings, forks=False)
        self._note_build("running")

    def _note_build(self, status: str, **more: Any) -> None:
        record = {"kind": "build", "file": "setup.py", "limit_s": BUILD_LIMIT, "figures": []}
        self.results.set("build", **record, status=status, **more)

    def await_build(self) -> None:
        """Wait until the extension is built."""
        if self._build is None:
            return
        end = min(self._build_begin + BUILD_LIMIT, self.deadline)
        ran = gpu_processes.wait(self._build, max(0.0, end - time.monotonic()))
        self._build = None
        if ran.exit == 0:
            self.library = find_device()[0]["library"]
        passed = self.library is not None
        seconds = round(time.monotonic() - self._build_begin, 1)
        more = {} if passed else {"output": ran.tail}
        status = "passed" if passed else "stopped" if ran.exit is None else "failed"
        self._note_build(status, exit=ran.exit, seconds=seconds, **more)

    def run(self, part: Part) -> None:
        """Run a part, if enough time is left, and note its result."""
        if part.name != BESIDE_BUILD:
            self.await_build()
        left = self.deadline - time.monotonic()
        if left < LEAST * part.limit:
            return
        print(f"{part.name}: at most {part.limit:.0f} s", flush=True)
        self.results.begin(part)
        if part.kind == "exercises" and (reason := self._cannot_exercise(part)):
            record: dict[str, Any] = {"status": "not run", "reason": reason}
        else:
            record = self._ran(part, min(left, part.limit))
        self.results.end(part, record)
        print(f"{part.name}: {record['status']}", flush=True)

    def _ran(self, part: Part, seconds: float) -> dict[str, Any]:
        """Run a part for some seconds; return its record."""
        figures = self.scratch / f"{part.name}.jsonl"
        last = time.monotonic()

        def look() -> None:
            nonlocal last
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                self.results.add_figures(part, read_figures(figures))

        end = time.monotonic() + seconds
        ran = Ran(0, 0.0, "")
        done: list[str] = []
        for _ in range(MOST_STARTS):
            what, settings = self._what(part, figures, done)
            child = gpu_processes.start(what, settings, forks=self.forks)
            before = ran
            ran = gpu_processes.wait(child, end - time.monotonic(), look)
            broken = breaking_test(ran.output) if part.kind == "tests" and ran.exit else []
            # The tests after it could not use the device: they run again, without those before.
            ran = before.then(ran)
            done += broken
            if not broken or time.monotonic() > end:
                break
        return record_of(part, ran, read_figures(figures), cut_off=seconds < part.limit)

    def _what(
        self, part: Part, figures: Path, done: list[str]
    ) -> tuple[Program | list[str], dict[str, str]]:
        """What runs a part without the tests that are done, and the environment that it needs."""
        # The project's own options name pytest-benchmark's, which may not be installed.
        pytest = ("-o", "addopts=", "-rs", *(("-k", part.only) if part.only else ()), part.file)
        if part.kind == "tests":
            # The summary names errors in full, and an error belongs to the launch that caused it.
            # Other files capture graphs, which might not go with waits.
            blocking = {"CUDA_LAUNCH_BLOCKING": "1"} if part.name == BESIDE_BUILD else {}
            settings = {"COLUMNS": "400", **blocking}
            rest = [word for name in done for word in ("--deselect", name)]
            options = ("-v", "--tb=short", "-rsfE", "-m", "gpu", *rest)
            return Program("pytest", (*pytest, *options)), settings
        sized = ("--scale", part.scale, "--figures", str(figures))
        if part.kind == "bench":
            return Program(
                "pytest", (*pytest, "-q", "--benchmark-only", "--device", "cuda", *sized)
            ), {}
        if part.kind == "exercises":
            return self._exercises(part), {}
        more = ("--features", str(self.features)) if self.features else ()
        return Program(part.file, (*sized, *(more if part.kind == "proven" else ()))), {}

    def _cannot_exercise(self, part: Part) -> str | None:
        """Why the exercises of the extension cannot run; None if they can."""
        if self.library is None:
            return "no extension with a CUDA part"
        if part.file and tool("compute-sanitizer") is None:
            return "no compute-sanitizer"
        return None

    def _exercises(self, part: Part) -> list[str]:
        """The command that runs the extension's CUDA functions on small arrays."""
        native = ROOT / "tests" / "native"
        found = sorted(native.glob("exercise_*.py"))
        scripts = [str(path) for path in found if part.only in path.stem]
        command = [sys.executable, str(native / "on_gpu.py"), str(self.library), *scripts]
        if not part.file:
            return command
        return [
            str(tool("compute-sanitizer")),
            *("--tool", part.file, "--error-exitcode", "86"),
            *command,
        ]


def tool(name: str) -> str | None:
    """Path of a program, on PATH or in the CUDA installation."""
    folders = [
        os.environ.get("PATH", ""),
        *(f"{os.environ[v]}/bin" for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ),
    ]
    return shutil.which(name, path=os.pathsep.join([*folders, "/usr/local/cuda/bin"]))


def print_summary(results: Results, parts: list[Part]) -> None:
    """Print the end of the output of the parts that failed, and the beginning of the report."""
    for record in results.content["parts"]:
        if "output" in record and record["status"] not in DONE:
            print(f"{record['part']}: {record['status']}\n{record['output'][-SHOWN:]}\n")
    print(results.report().partition("## Single kernels")[0])
    missing = [part.name for part in parts if results.status(part.name) == "missing"]
    if missing:
        print(f"not started: {', '.join(missing)}; call again to go on")
    print(results.path)


if __name__ == "__main__":
    sys.exit(main())
