"""Charts: every figure is in the table, text is text, and odd values draw nothing."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from fastreid_al.reports.charts import (
    Chart,
    Series,
    compared_charts,
    histogram,
    line_chart,
    metric_points,
    run_charts,
)

SVG = "{http://www.w3.org/2000/svg}"
HISTORY = [
    {"epoch": 0, "mAP": 0.1, "rank1": None},
    {"epoch": 1, "mAP": 0.25, "rank1": 0.5, "clusters": 12},
    {"epoch": 2, "mAP": float("nan"), "rank1": "high", "clusters": 9},
]


def texts(chart: Chart) -> list[str]:
    return [str(node.text) for node in ElementTree.fromstring(chart.picture).iter(f"{SVG}text")]


def test_a_chart_has_a_title_a_description_and_the_figures_as_a_table() -> None:
    first, second = run_charts(HISTORY)
    assert first.columns == ["epoch", "mAP", "rank-1"]
    assert first.rows == [["0", "10", "-"], ["1", "25", "50"]]
    assert second.rows == [["1", "12"], ["2", "9"]]
    picture = ElementTree.fromstring(first.picture)
    assert picture.get("role") == "img"
    assert picture.findtext(f"{SVG}title") == "mAP and rank-1 (%)"
    assert "at the end mAP 25, rank-1 50" in str(picture.findtext(f"{SVG}desc"))
    assert "epochs" in texts(first)


def test_lines_differ_by_mark_and_runs_by_dashes() -> None:
    first, *_ = run_charts(HISTORY)
    marks = [
        node.get("d", "").split("m", 1)[1].split("M")[0]
        for node in ElementTree.fromstring(first.picture).iter(f"{SVG}path")
    ]
    assert len(marks) == len({m.strip() for m in marks}) == 2
    both = compared_charts(HISTORY, HISTORY[:2], ("a", "b"))
    assert [chart.title for chart in both] == ["mAP (%)", "rank-1 (%)", "clusters"]
    assert [dashed for _, _, dashed in both[0].names] == [False, True]
    assert both[2].rows == [["1", "12", "12"], ["2", "9", "-"]]


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.3, 1.0, 7, 99.6, 1234567.0])
def test_values_lie_between_the_first_and_the_last_tick(value: float) -> None:
    chart = line_chart("x", [Series("x", [(3, value)])])
    assert 3 <= len(texts(chart)) <= 9
    (line,) = ElementTree.fromstring(chart.picture).iter(f"{SVG}polyline")
    y = float(line.get("points", "").split(",")[1])
    assert math.isfinite(y) and 13 <= y <= 203


def test_names_in_a_chart_are_escaped() -> None:
    chart = line_chart("<b>", [Series("<script>", [(0, 1), (1, 2)])])
    assert "<script>" not in chart.picture and "<b>" not in chart.picture


def test_a_histogram_counts_every_value_once() -> None:
    chart = histogram("average precision", [0.0, 0.05, 0.1, 0.999, 1.0])
    counts = [int(row[1]) for row in chart.rows]
    assert counts == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert len(list(ElementTree.fromstring(chart.picture).iter(f"{SVG}rect"))) == 10


def test_only_numbers_are_points() -> None:
    assert metric_points([*HISTORY, {"mAP": 3}], "mAP", 100) == [(0, 10), (1, 25)]
