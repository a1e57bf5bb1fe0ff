"""Turn results into tables and roofline plots.

    python bench/report.py RESULT.json [...] --out DIR

Takes what `pytest bench --benchmark-json` and `bench/gpu_check.py` write. Writes DIR/report.md, and
for each device with operators in the results DIR/roofline-DEVICE.png.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastreid_al.files import make_folder, write_figure, write_file

OPERATOR_COLUMNS = (
    *("operator", "size", "dtype", "implementation", "median ms", "times eager's speed", "GB/s"),
    *("TFLOP/s", "share of roofline", "peak extra MiB", "error (eager's)"),
)
PSEUDO_LABEL_COLUMNS = (
    *("images x width", "threads", "ours s", "neighbours + graph + clusters s", "dense s"),
    *("times as fast", "ours MiB", "dense MiB", "share of its memory", "labels that differ"),
    "precision, recall of pairs",
)
NNCT_COLUMNS = (
    *("network, batch of images", "threads", "labels + neighbours + losses + updates s"),
    *("as published s", "ours s", "published s", "times as fast", "network s"),
    *("whole step, ours, published s", "ours MiB", "published MiB", "label memory MB"),
    "labels an image",
)
EPOCH_COLUMNS = (
    *("epoch", "precision, threads"),
    "extraction + clustering + questions + data + network + memory + optimizer s",
    *("epoch s, ours, plain", "times as fast", "training images/s, epoch; turns, plain"),
    *("extraction images/s, epoch; turns, plain", "ranking s", "peak MiB, ours, plain"),
    "goals met",
)
SHARE_COLUMNS = (
    *("training steps", "threads", "data + memory + optimizer s", "network s"),
    "share outside the network, goal",
)
OTHER_COLUMNS = ("benchmark", "form", "median ms", "peak extra MiB")
PUBLISHED = "eager, as published"
MARKERS = "ovsD^P*X<>"


class Figure(NamedTuple):
    """One benchmark: its name and group, milliseconds, and its extra information."""

    name: str
    group: str
    ms: float
    info: dict[str, Any]


def main() -> None:
    """Read the results, write the tables, draw the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the report"
    )
    options = parser.parse_args()
    devices: dict[str, list[Figure]] = {}
    for path in options.results:
        for figure in figures(path):
            devices.setdefault(figure.info.get("device", "unknown"), []).append(figure)
    if not devices:
        sys.exit(
            "there are no figures in the results; run the benchmarks with --benchmark-json FILE"
        )
    make_folder(options.out, private=False)
    parts = []
    for device, found in devices.items():
        parts.append(f"## {device}\n\n{text(found)}")
        operators = [figure for figure in found if "operator" in figure.info]
        if operators:
            plot = f"roofline-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.png"
            draw(operators, device, options.out / plot)
            parts.append(f"![Roofline of {device}]({plot})\n")
    write_file(options.out / "report.md", "\n".join(parts), private=False)
    print(options.out / "report.md")


def figures(path: Path) -> list[Figure]:
    """The figures of a file of either kind."""
    try:
        content = json.loads(path.read_text())
        found = content["parts"] if "parts" in content else content["benchmarks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(
            f"{path} is not a results file ({error!r}); "
            "pass one written by --benchmark-json or gpu_check.py"
        )
    # gpu_check.py groups figures by part, and keeps only the median of the statistics. A figure
    # without one is no time.
    rows = [row for part in found for row in part.get("figures", [part])]
    return [figure_of(row) for row in rows if "stats" in row or row["median_s"] is not None]


def figure_of(row: dict[str, Any]) -> Figure:
    """A figure of a results file of either kind."""
    return Figure(
        row["name"],
        row["group"] or row["name"],
        row["extra_info"].get("cuda_event_median_ms")
        or 1e3 * (row["median_s"] if "median_s" in row else row["stats"]["median"]),
        row["extra_info"],
    )


def header(columns: tuple[str, ...], left: int, last_left: bool = False) -> str:
    """Header of a Markdown table. Columns after the first `left` are aligned right."""
    marks = ["---"] * left + ["--:"] * (len(columns) - left)
    if last_left:
        marks[-1] = "---"
    return f"| {' | '.join(columns)} |\n|{'|'.join(marks)}|"


def text(found: list[Figure]) -> str:
    """Tables of operators, pseudo-labels, NNCT steps, epochs and the other figures."""
    steps: dict[str, list[Figure]] = {}
    for figure in found:
        step = "operator" if "operator" in figure.info else str(figure.info.get("step"))
        steps.setdefault(step if step in SECTIONS else "other", []).append(figure)
    return "\n".join(section(steps[step]) for step, section in SECTIONS.items() if step in steps)


def operator_section(operators: list[Figure]) -> str:
    """The ceilings of the device, and the table of operators."""
    peaks = ceilings(operators)
    rates = ", ".join(
        f"{unit} {number(rate)} TFLOP/s" for unit, rate in peaks.items() if unit != "copy"
    )
    lines = "".join(row(figure, speed(figure, operators)) + "\n" for figure in operators)
    return (
        f"Measured ceilings: copy {number(peaks['copy'])} GB/s, {rates}. Rates count the least "
        "work that an operator has to do, whatever a form does. The share is the part of the "
        "measured time that the ceilings of its own run would allow. Errors are relative, against "
        f"float64.\n\n{header(OPERATOR_COLUMNS, 4)}\n{lines}"
    )


def pseudo_label_section(figures: list[Figure]) -> str:
    """The table of pseudo-labels, a line for each problem."""
    return (
        "Pseudo-labels of one epoch, ours next to the published dense form. Memory is in addition "
        "to the features, of a process of its own.\n\n"
        f"{header(PSEUDO_LABEL_COLUMNS, 1)}\n{by_group(figures, beside)}"
    )


def nnct_section(figures: list[Figure]) -> str:
    """The table of NNCT steps, a line for each problem."""
    return (
        "One step of NNCT with one neighbour: the work over its memories, ours next to the "
        "published form, and the network (forward, backward, optimizer), which is the same for "
        "both; the whole step is the sum. Memory is in addition to the memories themselves. The "
        "label memory is listed, ours and as published.\n\n"
        f"{header(NNCT_COLUMNS, 1)}\n{by_group(figures, beside_network)}"
    )


def epoch_section(figures: list[Figure]) -> str:
    """The table of epochs."""
    lines = "".join(beside_plain(figure.info) + "\n" for figure in figures)
    return (
        "A whole epoch on random pixels, and a plain PyTorch loop that ran in turns with ours. The "
        "plain loop's epoch is extrapolated by images, without questions, and without clustering "
        "where its dense form takes too long.\n\n"
        f"{header(EPOCH_COLUMNS, 2, last_left=True)}\n{lines}"
    )


def share_section(figures: list[Figure]) -> str:
    """The table of the time outside the network."""
    lines = "".join(share(figure.info) + "\n" for figure in figures)
    return f"{header(SHARE_COLUMNS, 1)}\n{lines}"


def other_section(figures: list[Figure]) -> str:
    """Median and memory of figures without a table of their own."""
    lines = [
        f"| {o.group} | {form(o)} | {number(o.ms)} | {number(o.info.get('peak_extra_MiB'))} |\n"
        for o in figures
    ]
    return f"{header(OTHER_COLUMNS, 2)}\n{''.join(lines)}"


def by_group(figures: list[Figure], line: Callable[[list[Figure]], str]) -> str:
    """One line for the figures of each group."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    return "".join(line(forms) + "\n" for forms in groups.values())


#: Sections of the report in order, by what `step` a figure notes.
SECTIONS: dict[str, Callable[[list[Figure]], str]] = {
    "operator": operator_section,
    "pseudo-labels": pseudo_label_section,
    "NNCT": nnct_section,
    "epoch": epoch_section,
    "share": share_section,
    "other": other_section,
}


def ceilings(operators: list[Figure]) -> dict[str, float]:
    """The highest measured ceilings; each run of pytest measures them once."""
    found: dict[str, float] = {}
    for figure in operators:
        for name, rate in figure.info["peaks"].items():
            found[name] = max(rate, found.get(name, 0))
    return found


def form(figure: Figure) -> str:
    """Form of a benchmark, which distinguishes it in its group: the text in its name's brackets."""
    return figure.name.partition("[")[2].rstrip("]") or figure.name


def speed(figure: Figure, operators: list[Figure]) -> float | None:
    """Speed relative to the first eager form of its group; None if there is no such form."""
    eager = [
        o.ms for o in operators if o.group == figure.group and o.info["form"].startswith("eager")
    ]
    return eager[0] / figure.ms if eager else None


def row(figure: Figure, faster: float | None) -> str:
    """One line of the table of operators."""
    info = figure.info
    error = f"{number(info.get('error_vs_float64'), 2)} ({number(info.get('error_of_eager'), 2)})"
    cells = [info["operator"], info["size"], info["dtype"], info["form"], number(figure.ms)]
    cells += [number(faster), number(info["GB_per_s"]), number(info["TFLOP_per_s"])]
    cells += [f"{100 * info['roofline_share']:.0f} %", number(info.get("peak_extra_MiB")), error]
    return "| " + " | ".join(cells) + " |"


def beside(forms: list[Figure]) -> str:
    """One line of the table of pseudo-labels: the last figure of each form of a group."""
    seconds = {o.info["form"]: o.ms / 1e3 for o in forms}
    memory = {
        o.info["form"]: o.info["peak_extra_MiB"] for o in forms if o.info.get("peak_extra_MiB")
    }
    info = {o.info["form"]: o.info for o in forms}
    some = info.get("ours", forms[-1].info)
    parts = [some.get(part) for part in ("neighbours_s", "graph_s", "clusters_s")]
    share = memory["ours"] / memory["dense"] if len(memory) == 2 else None
    cells = [f"{some['n']:,} x {some['dim']:,}", str(some["threads"]), number(seconds.get("ours"))]
    cells += [" + ".join(number(part, 2) for part in parts) if None not in parts else "-"]
    cells += [
        number(seconds.get("dense")),
        number(seconds["dense"] / seconds["ours"] if len(seconds) == 2 else None),
    ]
    cells += [number(memory.get("ours")), number(memory.get("dense"))]
    cells += [
        f"{100 * share:.1f} %" if share is not None else "-",
        str(info.get("dense", {}).get("labels_differing", "-")),
    ]
    cells += [f"{some['precision']:.2f}, {some['recall']:.2f}"]
    return "| " + " | ".join(cells) + " |"


def beside_network(forms: list[Figure]) -> str:
    """One line of the table of NNCT: the last figure of each form of a group."""
    info = {o.info["form"]: o.info for o in forms}
    some = forms[-1].info
    seconds, parts, memory, labels = {}, {}, {}, {}
    for o in forms:
        form = o.info["form"]
        seconds[form], memory[form] = o.ms / 1e3, o.info.get("peak_extra_MiB")
        labels[form] = o.info.get("label_memory_MB")
        taken = [o.info.get(part) for part in ("labels_s", "neighbours_s", "losses_s", "updates_s")]
        parts[form] = " + ".join(number(part, 2) for part in taken) if None not in taken else "-"
    network, ours, published = (seconds.get(form) for form in ("network", "ours", PUBLISHED))
    whole = [number(network + form if network and form else None) for form in (ours, published)]
    cells = [
        some["problem"],
        str(some["threads"]),
        parts.get("ours", "-"),
        parts.get(PUBLISHED, "-"),
    ]
    cells += [
        number(ours),
        number(published),
        number(published / ours if ours and published else None),
    ]
    cells += [number(network), ", ".join(whole)]
    cells += [number(memory.get("ours")), number(memory.get(PUBLISHED))]
    cells += [", ".join(number(labels.get(form)) for form in ("ours", PUBLISHED))]
    cells += [number(info.get("ours", some).get("labels_per_image"))]
    return "| " + " | ".join(cells) + " |"


def beside_plain(info: dict[str, Any]) -> str:
    """One line of the table of epochs."""
    plain, goals = info.get("plain", {}), info.get("goals", {})
    phases = ("extraction", "clustering", "questions", "data", "network", "memory", "optimizer")
    cells = [info["problem"], f"{info['precision']}, {info['threads']}"]
    cells += [" + ".join(number(info.get(f"{phase}_s"), 2) for phase in phases)]
    cells += [", ".join(number(side.get("epoch_s")) for side in (info, plain))]
    cells += [number(plain["epoch_s"] / info["epoch_s"] if plain else None)]
    for name in ("training_images_per_s", "extraction_images_per_s"):
        turns = ", ".join(number(plain.get(key)) for key in (f"ours_{name}", name))
        cells += [f"{number(info.get(name))}; {turns}"]
    cells += [
        number(info.get("ranking_s")),
        ", ".join(number(side.get("peak_MiB")) for side in (info, plain)),
    ]
    missed = [name for name, goal in goals.items() if not goal["met"]]
    met = f"{len(goals) - len(missed)} of {len(goals)}" + (
        f", not {', '.join(missed)}" if missed else ""
    )
    return "| " + " | ".join([*cells, met if goals else "-"]) + " |"


def share(info: dict[str, Any]) -> str:
    """One line of the table of shares."""
    outside = " + ".join(number(info[phase], 2) for phase in ("data", "memory", "optimizer"))
    cells = [info["problem"], str(info["threads"]), outside, number(info["network"])]
    return (
        "| "
        + " | ".join([*cells, f"{100 * info['share']:.1f} %, {100 * info['goal']:.0f} %"])
        + " |"
    )


def number(value: float | None, digits: int = 3) -> str:
    """Format with significant digits, without an exponent up to a million; a dash for None."""
    if value is None:
        return "-"
    if 1e-3 <= abs(value) < 10**digits:
        return f"{value:#.{digits}g}".rstrip(".")
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e6 else f"{value:.{digits}g}"


def draw(operators: list[Figure], device: str, path: Path) -> None:
    """A roofline for each dtype: a colour for each operator and size, a marker for each form,
    ceilings as lines.
    """
    from matplotlib.figure import Figure as Canvas

    dtypes = sorted({o.info["dtype"] for o in operators})
    # The figure is as high as the longest legend.
    entries = max(
        len({problem(o) for o in operators if o.info["dtype"] == dtype}) for dtype in dtypes
    )
    height = max(6.5, 0.34 * entries + 0.17 * len({o.info["form"] for o in operators}) + 1)
    canvas = Canvas(figsize=(11, height * len(dtypes)), layout="constrained")
    peaks = ceilings(operators)
    for axes, dtype in zip(canvas.subplots(len(dtypes), squeeze=False)[:, 0], dtypes, strict=True):
        panel(axes, [o for o in operators if o.info["dtype"] == dtype], peaks)
        axes.set_title(f"{device}, {dtype}")
    write_figure(path, canvas, private=False)


def panel(axes: Any, operators: list[Figure], peaks: dict[str, float]) -> None:
    """One roofline.

    The forms of a problem need as many operations a byte; they stand side by side to be told apart.
    """
    import matplotlib
    from matplotlib.lines import Line2D

    colours = matplotlib.colormaps[
        "tab10" if len({problem(o) for o in operators}) <= 10 else "tab20"
    ]
    problems = list(dict.fromkeys(problem(o) for o in operators))
    forms = list(dict.fromkeys(o.info["form"] for o in operators))
    rates = {unit: rate for unit, rate in peaks.items() if unit != "copy"}
    copy, highest = peaks["copy"] / 1e3, max(rates.values())
    densities = [o.info["operations_per_byte"] for o in operators]
    left, right = min(*densities, highest / copy) / 4, max(*densities, highest / copy) * 20
    axes.plot([left, highest / copy], [left * copy, highest], color="0.4", linewidth=1)
    axes.text(left * 1.1, left * copy * 8, f"copy {number(peaks['copy'])} GB/s", color="0.3")
    for unit, rate in rates.items():
        axes.plot([rate / copy, right], [rate, rate], color="0.4", linewidth=1)
        axes.text(
            right / 1.1,
            rate * 1.06,
            f"{unit} {number(rate)} TFLOP/s",
            color="0.3",
            ha="right",
            va="bottom",
        )
    beside: dict[str, int] = {}
    for o in operators:
        turn = beside[o.group] = beside.get(o.group, -1) + 1
        axes.plot(
            o.info["operations_per_byte"] * 1.12**turn,
            o.info["TFLOP_per_s"],
            MARKERS[forms.index(o.info["form"]) % len(MARKERS)],
            color=colours(problems.index(problem(o)) % colours.N),
        )
    slowest = min(o.info["TFLOP_per_s"] for o in operators)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(slowest / 3, highest * 3))
    axes.set(xlabel="operations a byte, at the least", ylabel="TFLOP/s")
    axes.grid(alpha=0.3)
    handles = [
        Line2D([], [], color=colours(i % colours.N), label=name, linewidth=4)
        for i, name in enumerate(problems)
    ]
    handles += [
        Line2D([], [], color="0.3", linestyle="", marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(forms)
    ]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize="small",
    )


def problem(figure: Figure) -> str:
    """Operator and size, on two lines."""
    return f"{figure.info['operator']}\n  {figure.info['size']}"


if __name__ == "__main__":
    main()
