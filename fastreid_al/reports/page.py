"""Renders the page of a report: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..config import ReportConfig
from .charts import Chart, compared_charts
from .compare import changed_queries, common_queries, differing_settings, score_differences
from .crops import HEIGHT, Crops
from .queries import show_query
from .results import RunResults
from .sections import IMPLIED, SUSPECTS, RunSections, Table

#: Unreadable images that are named.
_MISSING = 5


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Args:
        settings: The settings that differ; None where none does.
        charts: Curves of both runs.
        scores: Scores of both, and their difference; None without common queries.
        queries: Number of common queries.
        changed: Title, and for each query its change and its list in each run.
    """

    settings: Table | None
    charts: Sequence[Chart]
    scores: Table | None
    queries: int
    changed: Sequence[tuple[str, Sequence[Any]]]


def render_report(results: Sequence[RunResults], options: ReportConfig) -> str:
    """Return the page of one run, or of two with a comparison.

    A page without crops takes about 20 kB; each distinct crop adds about 1.5 kB, once.

    Args:
        results: The results of one run or two.
        options: How much is shown.
    """
    image = results[0].config.image
    crops = Crops(image.height, image.width, options.anonymise)
    runs = [RunSections(run, options, crops) for run in results]
    environment = Environment(
        loader=PackageLoader("fastreid_al.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The pictures are made while the body is rendered, and the style sheet holds them.
    body = environment.get_template("body.html").render(
        runs=runs,
        comparison=None if len(results) < 2 else compare(results[0], results[1], options, crops),
        options=options,
        crops=crops,
        suspects=SUSPECTS,
        implied=IMPLIED,
        missing=_MISSING,
    )
    title = " and ".join(run.name for run in results)
    return environment.get_template("page.html").render(
        title=title, body=body, crops=crops, height=HEIGHT
    )


def compare(
    first: RunResults, second: RunResults, options: ReportConfig, crops: Crops
) -> Comparison:
    """Return what differs between two runs.

    Args:
        first: One run.
        second: The other.
        options: How much is shown.
        crops: Makes the pictures.
    """
    names = first.name, second.name
    settings = differing_settings(
        first.settings(options.anonymise), second.settings(options.anonymise)
    )
    differing = Table("Values in each run", ["setting", *names], settings) if settings else None
    charts = compared_charts(first.history, second.history, names)
    a, b = first.ranked, second.ranked
    common = [] if a is None or b is None else common_queries(a, b)
    if a is None or b is None or not common:
        return Comparison(differing, charts, None, 0, ())
    scores = Table(
        "Scores in %, differences in percentage points",
        ["score", *names, "difference", "95 % interval", "meaning"],
        [_score_row(found) for found in score_differences(a, b, common)],
    )
    changed = []
    lists = changed_queries(a, b, common, options.queries)
    for title, queries in zip(("Improved most", "Worsened most"), lists, strict=True):
        shown = [
            (
                f"{100 * q.change:+.1f}",
                show_query(a, q.first, crops),
                show_query(b, q.second, crops),
            )
            for q in queries
        ]
        if shown:
            changed.append((title, shown))
    return Comparison(differing, charts, scores, len(common), changed)


def _score_row(found: Any) -> list[str]:
    interval = found.interval
    if not found.clear:
        meaning = "not clear: the interval holds 0"
    else:
        meaning = "higher" if interval.mean > 0 else "lower"
    return [
        found.name,
        f"{100 * found.first:.1f}",
        f"{100 * found.second:.1f}",
        f"{100 * interval.mean:+.2f}",
        f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}",
        meaning,
    ]
