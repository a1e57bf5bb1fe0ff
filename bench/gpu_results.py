"""Results of `bench/gpu_check.py`, which are kept from one call to the next."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_report
from gpu_parts import ROOT, Part
from gpu_processes import Ran

from fastreid_al.files import make_folder, write_file

#: Times that a part was cut off after which it comes last: it may be what ends the calls.
TWICE = 2
#: Results of a part with which it is done.
DONE = ("passed", "not run")
#: A test at the beginning of a line of `pytest -v`, before its outcome or what it printed last.
_TEST = r"^(\S+\.py(?:::\w+)+(?:\[.*?\])?) "
PACKAGES = (
    "fastreid_al",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "scipy",
    "scikit-learn",
    "pytest",
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
    "cupy",
)


class Results:
    """The results of all calls, in a file that is written after each change.

    Args:
        path: The file.
        content: What it holds.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content
        self._parts: dict[str, dict[str, Any]] = {
            record["part"]: record for record in content["parts"]
        }

    @classmethod
    def open(cls, folder: Path, device: dict[str, Any], scale: str) -> Results:
        """The latest results of this device, commit and scale, or new ones."""
        make_folder(folder, private=False)
        same = {"device": device["name"], "commit": commit(), "scale": scale}
        slug = re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")
        found = []
        for path in folder.glob(f"gpu-{slug}-*.json"):
            with contextlib.suppress(OSError, ValueError):
                content = json.loads(path.read_text())
                if "parts" in content and all(content.get(k) == v for k, v in same.items()):
                    found.append((content["date"], path, content))
        if found:
            _, path, content = max(found, key=lambda entry: entry[0])
            return cls(path, content)
        now = datetime.datetime.now().astimezone()
        path = folder / f"gpu-{slug}-{now:%Y%m%d}.json"
        number = 2
        while path.exists():
            path = folder / f"gpu-{slug}-{now:%Y%m%d}-{number}.json"
            number += 1
        return cls(path, {"date": now.isoformat(timespec="seconds"), **same, "parts": []})

    def begin_call(self, options: argparse.Namespace) -> None:
        """Note the call and the software of this machine."""
        import torch

        self.content["versions"] = versions(torch.version.cuda)
        self.content["not_installed"] = [
            name for name in OPTIONAL if importlib.util.find_spec(name) is None
        ]
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        call = {"date": now, "limit": options.limit, "only": options.only}
        self.content.setdefault("calls", []).append(call)
        self.save()

    def pending(self, parts: list[Part], again: bool, failed: bool) -> list[Part]:
        """The parts to run, in order: those that have no result, and with `failed` or `again` more.

        What was cut off twice comes last.
        """
        finished = () if again else DONE if failed else (*DONE, "failed", "stopped")
        left = [part for part in parts if self.status(part.name) not in finished]
        return sorted(left, key=lambda part: self._cut_offs(part) >= TWICE)

    def status(self, name: str) -> str:
        """What became of a part; "running" if a call ended while it ran."""
        return str(self._parts.get(name, {}).get("status", "missing"))

    def done(self, names: list[str]) -> bool:
        """Whether all of some parts have passed or cannot run here."""
        return all(self.status(name) in DONE for name in names)

    def _cut_offs(self, part: Part) -> int:
        return int(self._parts.get(part.name, {}).get("cut_offs", 0))

    def begin(self, part: Part) -> None:
        """Note that a part runs; if the call ends now, it was cut off."""
        self.set(
            part.name,
            kind=part.kind,
            file=part.file,
            scale=part.scale,
            limit_s=part.limit,
            status="running",
            cut_offs=self._cut_offs(part) + 1,
            figures=[],
        )

    def end(self, part: Part, record: dict[str, Any]) -> None:
        """Note the result of a part."""
        before = self._parts[part.name]
        if record["status"] != "cut off":
            del before["cut_offs"]
        self.set(part.name, **{**before, **record})

    def set(self, name: str, **record: Any) -> None:
        """Replace the record of a part, and write the file."""
        self._parts[name] = {"part": name, **{k: v for k, v in record.items() if k != "part"}}
        self.save()

    def add_figures(self, part: Part, figures: list[dict[str, Any]]) -> None:
        """Write the figures of a part that runs."""
        if len(figures) > len(self._parts[part.name]["figures"]):
            self._parts[part.name]["figures"] = figures
            self.save()

    def save(self) -> None:
        """Write the results and the report."""
        self.content["parts"] = list(self._parts.values())
        text = json.dumps(self.content, indent=2) + "\n"
        write_file(self.path, text, private=False)
        write_file(self.path.with_suffix(".md"), self.report(), private=False)

    def report(self) -> str:
        """The report in Markdown, or why there is none."""
        try:
            return gpu_report.text(self.content)
        except Exception:
            # A figure of a form that the report does not know must not end the measurements.
            return f"The report could not be made:\n\n{traceback.format_exc()}"


def read_figures(path: Path) -> list[dict[str, Any]]:
    """The figures that a part has written so far, a line of JSON for each."""
    if not path.exists():
        return []
    # The last line may be incomplete.
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in lines]


def record_of(
    part: Part, ran: Ran, figures: list[dict[str, Any]], *, cut_off: bool
) -> dict[str, Any]:
    """The record of a part.

    Args:
        part: The part.
        ran: How its process ended.
        figures: What it has measured.
        cut_off: Whether it had less time than its limit.
    """
    record: dict[str, Any] = {"exit": ran.exit, "seconds": ran.seconds, "figures": figures}
    shown = bool(figures)
    if part.kind == "tests":
        record.update(outcomes(ran.output))
        shown = record["counts"].get("passed", 0) > 0
    elif part.kind == "bench":
        shown = shown or f"no size at scale {part.scale}" in ran.output
    elif part.kind == "exercises":
        shown = True
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", ran.output, re.MULTILINE)
    if part.kind == "tests" and ran.exit == 0 and not shown and reasons:
        return {**record, "status": "not run", "reason": reasons[0]}
    if ran.exit is None:
        status = "cut off" if cut_off else "stopped"
    else:
        status = "passed" if ran.exit == 0 and shown else "failed"
    # Some virtual machines do not expose the interface that compute-sanitizer needs.
    if part.kind == "exercises" and ran.exit and "Device not supported" in ran.output:
        return {**record, "status": "not run", "reason": "compute-sanitizer: device not supported"}
    return {**record, "status": status, **({} if status == "passed" else {"output": ran.tail})}


def outcomes(output: str) -> dict[str, Any]:
    """What became of the tests, of the output of `pytest -v`, even if it ended early.

    Returns:
        `counts` by outcome, the `failures`, and `during`, the test that did not end.
    """
    found = dict(re.findall(_TEST + r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", output, re.M))
    open_tests = [name for name in re.findall(_TEST, output, re.M) if name not in found]
    counts: dict[str, int] = {}
    for outcome in found.values():
        counts[outcome.lower()] = counts.get(outcome.lower(), 0) + 1
    failures = [name for name, outcome in found.items() if outcome in ("FAILED", "ERROR")]
    return {
        "counts": counts,
        "failures": failures,
        **({"during": open_tests[-1]} if open_tests else {}),
    }


def breaking_test(output: str) -> list[str]:
    """The tests up to the first after which the process could not use the device, in order.

    A launch that reads outside its arrays makes every later call fail, or ends the process.

    Args:
        output: Of `pytest -v -rfE`.
    """
    begun = list(dict.fromkeys(re.findall(_TEST, output, re.M)))
    broken = re.findall(r"^(?:FAILED|ERROR) (\S+\.py::.*?) - .*CUDA error", output, re.MULTILINE)
    if not broken and "during" in outcomes(output):
        broken = [outcomes(output)["during"]]
    if not broken or broken[0] not in begun:
        return []
    return begun[: begun.index(broken[0]) + 1]


def commit() -> str | None:
    """The commit of this working tree; None if git does not know it."""
    # The tree may belong to another user.
    return output_of("git", "-c", "safe.directory=*", "rev-parse", "HEAD")


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
