"""The report of `bench/gpu_check.py`: correctness, then model, measurement and goal together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import gpu_model
import report

NOT_MEASURED = "not measured"
#: Gaps to the goals that are named.
WORST = 3
RESULT_COLUMNS = ("part", "result", "seconds", "tests")
GOAL_COLUMNS = (
    *("operator", "shape", "model ms", "measured ms", "goal ms", "measured / goal"),
    "share of the roofline",
)
RATIO_COLUMNS = ("operator", "shape", "what", "measured", "goal", "met")
KERNEL_COLUMNS = ("operator", "shape", "kernel", "model ms", "measured ms", "launches")

Figure = dict[str, Any]


class Goal(NamedTuple):
    """An operator at a shape that has a goal or a model.

    Args:
        operator: Name of the operator, as in the model.
        shape: The shape, as in the model.
        seconds: The goal; None where there is none.
        form: Values of a figure's information by which it is found.
    """

    operator: str
    shape: str
    seconds: float | None
    form: dict[str, Any]


class Ratio(NamedTuple):
    """A goal beside another form, or for memory.

    Args:
        operator: Name of the operator.
        shape: The shape.
        what: What is compared.
        form: Values of the figure's information.
        peer: Values of the other figure's information that differ; None for memory.
        goal: Least ratio of the peer's time and ours; of memory the most MiB.
    """

    operator: str
    shape: str
    what: str
    form: dict[str, Any]
    peer: dict[str, Any] | None
    goal: float


def _operator(name: str, size: str, dtype: str, form: str = "ours") -> dict[str, Any]:
    return {"operator": name, "size": size, "dtype": dtype, "form": form}


def _whole(operator: str, shape: str) -> dict[str, Any]:
    return {"step": "kernels", "form": operator, "problem": shape, "kernel": "all"}


_TOPK = _operator("similarity_topk", "1,024 x 1,000,000 x 2,048, k = 32", "float32")
_INDEXED = {**_TOPK, "form": "ours, indexed"}
_TOPK_HALF = {**_TOPK, "dtype": "bfloat16"}
_CONTRAST = {
    batch: _operator("bank_contrast_loss", f"{batch} x 100,000 x 2,048", "bfloat16")
    for batch in gpu_model.CONTRAST
}
_LABELS = _operator(
    "pseudo-label memory bank: update + lookup", "64 x 20 labels of 32,621", "int32"
)
_MEDOIDS = {"step": "SNPS", "form": "groupings", "rule": "root", "n": 32_621}
#: All of KERNELS.md's figures that are times, and what else the model has.
GOALS = (
    Goal("similarity_topk, proven", gpu_model.TOPK, None, _TOPK),
    Goal("BankIndex.search", gpu_model.TOPK, None, _INDEXED),
    Goal("bank_contrast_loss", gpu_model.CONTRAST[64], None, _CONTRAST[64]),
    Goal("bank_contrast_loss", gpu_model.CONTRAST[256], None, _CONTRAST[256]),
    *(
        Goal("bank_contrast_loss, one read", shape, None, {**_CONTRAST[batch], "form": "one read"})
        for batch, shape in gpu_model.CONTRAST.items()
    ),
    Goal("label memory, update + lookup", gpu_model.LABEL_MEMORY, None, _LABELS),
    Goal(
        "pseudo-labels",
        "n = 32,621, D = 2,048",
        1.0,
        {"step": "pseudo-labels", "form": "ours", "n": 32_621, "dim": 2_048},
    ),
    Goal(
        "pseudo-labels",
        "n = 1e6, D = 512",
        60.0,
        {"step": "pseudo-labels", "form": "ours", "n": 1_000_000, "dim": 512},
    ),
    Goal("SNPS k-medoids", "1,500 clusters of 32,621 images", 0.2, _MEDOIDS),
    Goal(
        "similarity_topk of all images",
        gpu_model.NEIGHBOURS,
        None,
        _whole("similarity_topk of all images", gpu_model.NEIGHBOURS),
    ),
    Goal(
        "multilabel_bank_loss, two sets",
        gpu_model.MULTILABEL,
        None,
        _whole("multilabel_bank_loss, two sets", gpu_model.MULTILABEL),
    ),
)
#: The other figures of KERNELS.md: at least as many times as fast, at most as many MiB.
RATIOS = (
    Ratio("similarity_topk", gpu_model.TOPK, "eager", _TOPK_HALF, {"form": "eager"}, 2.0),
    Ratio(
        "similarity_topk",
        gpu_model.TOPK,
        "compiled, chunked",
        _TOPK_HALF,
        {"form": "compiled, chunked"},
        1.5,
    ),
    *(
        ratio
        for batch, shape in gpu_model.CONTRAST.items()
        for ratio in (
            Ratio("bank_contrast_loss", shape, "eager", _CONTRAST[batch], {"form": "eager"}, 2.0),
            Ratio(
                "bank_contrast_loss",
                shape,
                "peak extra MiB",
                _CONTRAST[batch],
                None,
                4 * batch * 2_048 * 4 / 2**20,
            ),
        )
    ),
    Ratio(
        "label memory",
        gpu_model.LABEL_MEMORY,
        "dense float32",
        _LABELS,
        {"form": "eager, dense float32"},
        20.0,
    ),
    Ratio(
        "SNPS k-medoids",
        "1,500 clusters of 32,621 images",
        "FasterPAM in a loop",
        _MEDOIDS,
        {"form": "groupings, FasterPAM"},
        10.0,
    ),
    Ratio(
        "pseudo-labels",
        "n = 1e6, D = 512",
        "peak extra MiB",
        {"step": "pseudo-labels", "form": "ours", "n": 1_000_000, "dim": 512},
        None,
        40e9 / 2**20,
    ),
)


def text(results: dict[str, Any]) -> str:
    """The report in Markdown.

    Args:
        results: What the file of results holds.
    """
    everything = [figure for part in results["parts"] for figure in part.get("figures", [])]
    # What failed a check after it was measured says nothing.
    figures = [figure for figure in everything if figure.get("passed", True)]
    wrong = [figure["name"] for figure in everything if not figure.get("passed", True)]
    rows = [goal_row(goal, figures) for goal in GOALS]
    # A failed measurement has no time.
    others = [
        report.figure_of(figure)
        for figure in figures
        if figure.get("median_s") is not None and figure["extra_info"].get("step") != "kernels"
    ]
    sections = [
        f"# {results['device']}, {results['date'][:10]}, commit {results['commit']}",
        correctness(results["parts"], wrong),
        f"## Model, measurement and goal\n\n{table(GOAL_COLUMNS, rows)}",
        gaps(figures),
        table(RATIO_COLUMNS, [ratio_row(ratio, figures) for ratio in RATIOS]),
        kernel_section(figures),
        proven_section(figures),
        f"## Everything else\n\n{table(RESULT_COLUMNS, map(result_row, results['parts']))}",
        report.text(others),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(['---'] * len(columns))}|", *lines[1:]])


def correctness(parts: list[dict[str, Any]], benchmarks: list[str]) -> str:
    """Tests, exercises and benchmarks: how many passed, and each that did not.

    Args:
        parts: All parts.
        benchmarks: Names of benchmarks with wrong results.
    """
    checks = [part for part in parts if part["kind"] in ("tests", "exercises")]
    passed = sum(part.get("counts", {}).get("passed", 0) for part in checks)
    wrong = [part for part in checks if part["status"] not in ("passed", "not run")]
    lines = ["## Correctness\n", f"{passed} tests passed in {len(checks)} parts.\n"]
    for part in wrong:
        lines.append(f"- **{part['part']}: {part['status']}**")
        if "during" in part:
            lines.append(f"  - it ended during `{part['during']}`")
        lines += [f"  - `{name}`" for name in part.get("failures", [])]
    lines += [f"- **benchmark with a wrong result: `{name}`**" for name in benchmarks]
    for part in checks:
        if part["status"] == "not run":
            lines.append(f"- {part['part']}: not run, {part['reason']}")
        skipped = part.get("counts", {}).get("skipped", 0)
        if skipped:
            lines.append(f"- {part['part']}: {skipped} skipped")
    return "\n".join(lines)


def find(figures: list[Figure], wanted: dict[str, Any]) -> Figure | None:
    """The last figure with all of some information."""
    for figure in reversed(figures):
        info = figure["extra_info"]
        if all(info.get(key) == value for key, value in wanted.items()):
            return figure
    return None


def milliseconds(figure: Figure | None) -> float | None:
    """Median of a figure, of the device's own clock where it was read."""
    if figure is None or figure.get("median_s") is None:
        return None
    return float(figure["extra_info"].get("cuda_event_median_ms") or 1e3 * figure["median_s"])


def model_row(goal: Goal) -> gpu_model.Row | None:
    """The model's row of an operator and shape."""
    rows = {row.key: row for row in gpu_model.rows()}
    return rows.get((goal.operator, goal.shape))


def goal_ms(goal: Goal) -> float | None:
    """The goal, of the list or of the model."""
    row = model_row(goal)
    seconds = goal.seconds if row is None else row.goal
    return None if seconds is None else 1e3 * seconds


def goal_row(goal: Goal, figures: list[Figure]) -> list[str]:
    """Cells of one operator and shape."""
    row = model_row(goal)
    figure = find(figures, goal.form)
    measured = milliseconds(figure)
    wanted = goal_ms(goal)
    share = None if figure is None else figure["extra_info"].get("roofline_share")
    if share is None and row is not None and measured:
        share = 1e3 * row.floor / measured
    return [
        goal.operator,
        goal.shape,
        "-" if row is None else f"{1e3 * row.now:.3g}",
        NOT_MEASURED if measured is None else f"{measured:.3g}",
        "-" if wanted is None else f"{wanted:.3g}",
        NOT_MEASURED if measured is None else "-" if wanted is None else f"{measured / wanted:.2f}",
        NOT_MEASURED if measured is None else "-" if share is None else f"{share:.0%}",
    ]


def gaps(figures: list[Figure]) -> str:
    """The goals that are missed by most."""
    found = []
    for goal in GOALS:
        measured = milliseconds(find(figures, goal.form))
        wanted = goal_ms(goal)
        if measured is not None and wanted is not None and measured > wanted:
            found.append((measured / wanted, goal))
    if not found:
        return "No goal with a measurement is missed."
    found.sort(key=lambda entry: -entry[0])
    named = [f"{goal.operator} at {goal.shape}: {ratio:.1f} x" for ratio, goal in found[:WORST]]
    return f"Worst gaps to the goals: {'; '.join(named)}."


def ratio_row(ratio: Ratio, figures: list[Figure]) -> list[str]:
    """Cells of a goal beside a peer, or for memory."""
    ours = find(figures, ratio.form)
    if ratio.peer is None:
        most = None if ours is None else ours["extra_info"].get("peak_extra_MiB")
        measured = None if most is None else f"{most:,.1f}"
        met = None if most is None else most <= ratio.goal
        wanted = f"at most {ratio.goal:,.1f}"
    else:
        time, other = (
            milliseconds(figure) for figure in (ours, find(figures, {**ratio.form, **ratio.peer}))
        )
        factor = other / time if time and other else None
        measured = None if factor is None else f"{factor:.2f} x as fast"
        met = None if factor is None else factor >= ratio.goal
        wanted = f"at least {ratio.goal:g} x as fast"
    said = NOT_MEASURED if met is None else "yes" if met else "no"
    return [ratio.operator, ratio.shape, ratio.what, measured or NOT_MEASURED, wanted, said]


def kernel_section(figures: list[Figure]) -> str:
    """Single kernels beside the model."""
    rows = []
    model = gpu_model.kernels()
    for figure in figures:
        info = figure["extra_info"]
        if info.get("step") != "kernels":
            continue
        seconds = model.get((info["kernel"], info["problem"]))
        rows.append(
            [
                str(info["form"]),
                str(info["problem"]),
                str(info["kernel"]),
                "-" if seconds is None else f"{1e3 * seconds:.3g}",
                f"{info['cuda_event_median_ms']:.3g}",
                str(info["launches"]),
            ]
        )
    if not rows:
        return f"## Single kernels\n\n{NOT_MEASURED}"
    note = "One launch each, with cold caches; the first of those of a call."
    return f"## Single kernels\n\n{note}\n\n{table(KERNEL_COLUMNS, rows)}"


def proven_section(figures: list[Figure]) -> str:
    """Share of queries that the float16 pass proves."""
    found = [figure["extra_info"] for figure in figures if "proven" in figure["extra_info"]]
    lines = [
        f"- {info['problem']}: {info['proven']:.1%} by the float16 pass, "
        f"{info['proven_later']:.1%} with more groups, {info['in_float32']:.1%} in float32"
        for info in found
    ]
    return "## Queries that are proven\n\n" + ("\n".join(lines) or NOT_MEASURED)


def result_row(part: dict[str, Any]) -> list[str]:
    """Cells of one part."""
    counts = ", ".join(f"{n} {outcome}" for outcome, n in part.get("counts", {}).items())
    status = part["status"] + (f": {part['reason']}" if "reason" in part else "")
    return [part["part"], status, str(part.get("seconds", "-")), counts or "-"]
