"""Charts as SVG with text as text, and the tables of their figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ..engine.curves import PANELS

#: Size of a chart and its margins, in units of the picture.
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 38
#: Series that have a colour and a mark of their own.
_STYLES = 4
#: Bins of a histogram of average precision.
BINS = 10


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: Its name.
        points: Pairs of epoch and value, by ascending epoch.
        style: Number of its colour and mark, from 0.
        dashed: Whether it is dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart and what a reader without pictures gets.

    Args:
        title: What it shows, with the unit.
        picture: The SVG.
        columns: Heads of the table of its figures.
        rows: The table.
        names: Name, style and dash of each series, for the legend.
    """

    title: str
    picture: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: Sequence[tuple[str, int, bool]] = ()


def run_charts(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Draw the metrics of a run over its epochs, one chart for each group that has values.

    Args:
        history: One record an epoch, as in metrics.jsonl.
    """
    charts = []
    for title, keys in PANELS:
        lines = [
            Series(metric_name(key), points, number % _STYLES, key.startswith("drafted"))
            for number, key in enumerate(keys)
            if (points := metric_points(history, key, _scale(title)))
        ]
        if lines:
            charts.append(line_chart(title, lines))
    return charts


def compared_charts(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
) -> list[Chart]:
    """Draw each metric that two runs recorded, both runs in one chart.

    Args:
        first: One record an epoch, as in metrics.jsonl.
        second: The same of the other run.
        names: Names of the runs.
    """
    charts = []
    for title, keys in PANELS:
        for key in keys:
            lines = [
                Series(name, points, number, bool(number))
                for number, (name, history) in enumerate(zip(names, (first, second), strict=True))
                if (points := metric_points(history, key, _scale(title)))
            ]
            if lines:
                unit = " (%)" if "%" in title else ""
                charts.append(line_chart(metric_name(key) + unit, lines))
    return charts


def metric_name(key: str) -> str:
    """Return the name of a metric for people, by its key in metrics.jsonl."""
    name = key.removeprefix("drafted_").replace("_", " ").replace("bcubed", "B-cubed")
    name = name.replace("rank1", "rank-1").replace("questions total", "questions in all")
    return f"{name}, before questions" if key.startswith("drafted_") else name


def metric_points(
    history: Sequence[Mapping[str, Any]], key: str, scale: float = 1
) -> list[tuple[float, float]]:
    """Return epoch and value of a metric, where it has a value that can be drawn."""
    points = []
    for record in history:
        value, epoch = record.get(key), record.get("epoch")
        if _is_number(value) and _is_number(epoch):
            points.append((float(epoch), scale * float(value)))  # type: ignore[arg-type]
    return points


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _scale(title: str) -> int:
    """Titles with % show shares as per cent."""
    return 100 if "%" in title else 1


def line_chart(title: str, lines: Sequence[Series]) -> Chart:
    """Draw lines over epochs; the axis of values begins at 0.

    Args:
        title: What is shown.
        lines: One or more lines with one or more points each.
    """
    epochs = sorted({x for line in lines for x, _ in line.points})
    values = [y for line in lines for _, y in line.points]
    ticks = _ticks(max(max(values), 0))
    span = (epochs[0], epochs[-1]) if len(epochs) > 1 else (epochs[0] - 0.5, epochs[0] + 0.5)
    parts = [*_grid(ticks), *_epoch_labels(span)]
    for line in lines:
        parts += _line(line, span, ticks[-1])
    rows = []
    by_line = [dict(line.points) for line in lines]
    for epoch in epochs:
        cells = [number(points[epoch]) if epoch in points else "-" for points in by_line]
        rows.append([number(epoch), *cells])
    names = [(line.name, line.style, line.dashed) for line in lines]
    last = ", ".join(f"{line.name} {number(line.points[-1][1])}" for line in lines)
    about = f"Over epochs {number(epochs[0])} to {number(epochs[-1])}; at the end {last}."
    picture = _picture(title, about, parts)
    return Chart(title, picture, ["epoch", *(line.name for line in lines)], rows, names)


def histogram(title: str, values: Sequence[float], name: str = "queries") -> Chart:
    """Draw how many values in [0, 1] lie in each tenth, as per cent.

    Args:
        title: What is shown.
        values: The values.
        name: What is counted.
    """
    counts = [0] * BINS
    for value in values:
        counts[min(int(value * BINS), BINS - 1)] += 1
    ticks = _ticks(max(counts))
    parts = list(_grid(ticks))
    step = (_WIDTH - _LEFT - _RIGHT) / BINS
    for index, count in enumerate(counts):
        top = _y(count, ticks[-1])
        left = _LEFT + index * step + 1
        parts.append(_bar(left, top, step - 2, _y(0, 1) - top))
    for index in range(0, BINS + 1, 2):
        parts.append(_label(_LEFT + index * step, _HEIGHT - 20, "middle", str(index * 10)))
    parts.append(_label((_LEFT + _WIDTH) / 2, _HEIGHT - 4, "middle", title))
    rows = [[f"{10 * i} to {10 * (i + 1)}", f"{count:,}"] for i, count in enumerate(counts)]
    about = f"{len(values):,} {name}; most lie between {rows[counts.index(max(counts))][0]}."
    return Chart(title, _picture(title, about, parts), [title, name], rows)


def number(value: float) -> str:
    """Return a number for people: whole ones without a point, others with three digits or more."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:,.1f}"


def _ticks(largest: float) -> list[float]:
    """Round values from 0 to at least the largest, four to six of them."""
    if largest <= 0:
        return [0.0, 1.0]
    size = 10 ** math.floor(math.log10(largest))
    step = next(s * size for s in (0.2, 0.25, 0.5, 1, 2, 2.5) if 5 * s * size >= largest * 0.999)
    count = math.ceil(largest * 0.999 / step)
    return [step * i for i in range(count + 1)]


def _x(epoch: float, span: tuple[float, float]) -> float:
    share = (epoch - span[0]) / (span[1] - span[0])
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, most: float) -> float:
    return _HEIGHT - _BOTTOM - value / most * (_HEIGHT - _TOP - _BOTTOM)


def _label(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def _bar(x: float, y: float, width: float, height: float) -> Markup:
    return Markup(
        '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
    ).format(x, y, width, height)


def _grid(ticks: Sequence[float]) -> Iterator[Markup]:
    """Horizontal lines with their values."""
    for tick in ticks:
        y = _y(tick, ticks[-1])
        yield Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(
            _LEFT, y, _WIDTH - _RIGHT, y
        )
        yield _label(_LEFT - 6, y + 4, "end", number(round(tick, 10)))


def _epoch_labels(span: tuple[float, float]) -> Iterator[Markup]:
    """Whole epochs below the axis."""
    first, last = math.ceil(span[0]), math.floor(span[1])
    step = max(1, math.ceil((last - first) / 6))
    for epoch in range(first, last + 1, step):
        yield _label(_x(epoch, span), _HEIGHT - 20, "middle", str(epoch))
    yield _label((_LEFT + _WIDTH) / 2, _HEIGHT - 4, "middle", "epochs")


def _line(line: Series, span: tuple[float, float], most: float) -> Iterator[Markup]:
    """A line and the marks of its points, whose shape differs with the style."""
    points = [(_x(x, span), _y(max(y, 0), most)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = " dashed" if line.dashed else ""
    yield Markup('<polyline class="line s{}{}" points="{}"/>').format(line.style, dashed, path)
    if len(points) <= 100:
        marks = [_mark(line.style, x, y) for x, y in points]
        yield Markup('<path class="mark s{}" d="{}"/>').format(line.style, " ".join(marks))


def _mark(style: int, x: float, y: float) -> str:
    """The outline of a square, a diamond, a triangle or a bar around a point."""
    shapes = (
        "m-3,-3h6v6h-6z",
        "m0,-4l4,4l-4,4l-4,-4z",
        "m0,-4l4,7h-8z",
        "m-4,-1.5h8v3h-8z",
    )
    return f"M{x:.1f},{y:.1f}{shapes[style % _STYLES]}"


def _picture(title: str, about: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" role="img" viewBox="0 0 {} {}" xmlns="http://www.w3.org/2000/svg">'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    ).format(_WIDTH, _HEIGHT, title, about, Markup("").join(parts))
