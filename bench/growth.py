"""Time and memory of pseudo-labels by the number of images.

    python bench/growth.py --json FILE --plot FILE.png [--sizes N ...] [--threads N]

Each number of images runs once in a fresh process, after a small warm-up run. The JSON has the
format that `bench/report.py` reads and is rewritten after each run; --draw-only plots it again
without running.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import bench_pseudo_labels as pseudo_labels
import harness
import torch
from torch import Tensor

from fastreid_al.files import write_figure, write_file

SIZES = (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
PARTS = {
    "neighbours_s": "neighbours",
    "graph_s": "Jaccard graph",
    "clusters_s": "DBSCAN x 3, selection",
}


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the figures")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="time and peak memory over the images"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="numbers of images"
    )
    parser.add_argument("--dim", type=int, default=256, help="width of the features")
    parser.add_argument(
        "--dense-up-to", type=int, default=0, metavar="N", help="run the dense form too, so far"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--draw-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.draw_only:
        run(options)
    if options.plot:
        draw(json.loads(options.json.read_text())["benchmarks"], options.plot)
        print(options.plot)


def run(options: argparse.Namespace) -> None:
    """Run every size in each form, smallest first."""
    found: list[dict[str, Any]] = []
    for n in sorted(options.sizes):
        for form in ("ours", "dense") if n <= options.dense_up_to else ("ours",):
            info = harness.in_fresh_process(
                point, form, n, options.dim, options.device, options.threads
            )
            seconds = info.pop("seconds")
            name = f"growth[{n}x{options.dim}-{form}]"
            found.append(
                {
                    "name": name,
                    "group": "growth of pseudo-labels",
                    "stats": {"median": seconds},
                    "extra_info": info,
                }
            )
            print(f"{name}: {seconds:.3g} s, {info['peak_extra_MiB']} MiB", flush=True)
            results = json.dumps({"machine": machine(), "benchmarks": found}, indent=2) + "\n"
            write_file(options.json, results, private=False)


def point(form: str, n: int, dim: int, device: str, threads: int) -> dict[str, Any]:
    """One run in this process: seconds, by part for ours, and peak memory beyond the features."""
    torch.set_num_threads(threads)
    seconds: dict[str, float] = {}

    def call(features: Tensor) -> None:
        if form == "ours":
            seconds.update(pseudo_labels.parts(features))
            seconds["seconds"] = sum(seconds.values())
        else:
            seconds["seconds"] = harness.clocked(pseudo_labels.dense, features)[1]

    memory = harness.peak_memory_here(call, harness.Inputs(pseudo_labels.make, (n, dim)), device)
    return {"form": form, "n": n, "dim": dim, **harness.surroundings(device), **seconds, **memory}


def machine() -> dict[str, Any]:
    """The machine that was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count()}


def draw(figures: list[dict[str, Any]], path: Path) -> None:
    """Plot seconds and MiB by the number of images, with lines of slope 1 and 2."""
    from matplotlib.figure import Figure

    forms = {
        form: [f for f in figures if f["extra_info"]["form"] == form] for form in ("ours", "dense")
    }
    seconds: dict[str, list[tuple[int, float]]] = {}
    memory: dict[str, list[tuple[int, float]]] = {}
    for form, runs in forms.items():
        if runs:
            seconds[form] = [(f["extra_info"]["n"], f["stats"]["median"]) for f in runs]
            memory[form] = [(f["extra_info"]["n"], f["extra_info"]["peak_extra_MiB"]) for f in runs]
    for part, name in PARTS.items():
        seconds[f"ours: {name}"] = [
            (f["extra_info"]["n"], f["extra_info"][part]) for f in forms["ours"]
        ]

    info = figures[0]["extra_info"]
    threads = f"{info['threads']} thread{'s' if info['threads'] > 1 else ''}"
    where = threads if info["device"] == "cpu" else f"{info['device']}, {threads}"
    canvas = Figure(figsize=(11, 5.6), layout="constrained")
    left, right = canvas.subplots(1, 2)
    panel(left, seconds, "seconds")
    panel(right, memory, "peak memory over the features (MiB)")
    canvas.suptitle(f"Pseudo-labels, width {info['dim']}, {where}")
    write_figure(path, canvas, private=False)


def panel(axes: Any, curves: dict[str, list[tuple[int, float]]], what: str) -> None:
    """One log-log panel; the legend shows the slope of each curve over its last two points."""
    for number, (name, points) in enumerate(curves.items()):
        points = [(n, value) for n, value in points if value > 0]
        if points:
            style = "o-" if ":" not in name else "o:"
            axes.plot(
                *zip(*points, strict=True),
                style,
                color=f"C{number}",
                markersize=4,
                label=name + slope(points),
            )
    every = sorted({n for points in curves.values() for n, _ in points})
    start = curves["ours"][0][1]
    for power in (1, 2):
        guide = [start * (n / every[0]) ** power for n in every]
        axes.plot(every, guide, color="0.6", linewidth=1, linestyle="--", zorder=0)
        axes.text(
            every[-1],
            guide[-1],
            f"slope {power} ",
            color="0.4",
            ha="right",
            va="bottom",
            fontsize="small",
        )
    axes.set(xscale="log", yscale="log", xlabel="images", ylabel=what)
    axes.set_xticks(every, [f"{n:,}" for n in every], rotation=30)
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), frameon=False, fontsize="small")


def slope(points: list[tuple[int, float]]) -> str:
    """The slope over the last two points, on logarithmic scales."""
    if len(points) < 2:
        return ""
    (n, value), (more, higher) = points[-2:]
    return f", slope {math.log(higher / value) / math.log(more / n):.1f}"


if __name__ == "__main__":
    main()
