"""The figure of a run: its metrics over epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import write_figure

#: Title and keys of each panel; a title with % shows shares as per cent.
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mAP and rank-1 (%)", ("mAP", "rank1")),
    ("clusters", ("clusters",)),
    (
        "pairs (%)",
        ("pair_precision", "pair_recall", "drafted_pair_precision", "drafted_pair_recall"),
    ),
    (
        "B-cubed (%)",
        (
            *("bcubed_precision", "bcubed_recall"),
            *("drafted_bcubed_precision", "drafted_bcubed_recall"),
        ),
    ),
    (
        "classes (%)",
        (
            *("class_purity", "class_completeness"),
            *("drafted_class_purity", "drafted_class_completeness"),
        ),
    ),
    ("labels an image", ("labels_per_image",)),
    ("labels (%)", ("label_precision", "label_recall")),
    ("questions in all", ("questions_total",)),
)


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw the metrics of a run over its epochs, one panel for each group that has values.

    Args:
        history: One record an epoch, as in metrics.jsonl.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    recorded = set()
    for record in history:
        recorded |= {key for key, value in record.items() if value is not None}
    panels = [panel for panel in PANELS if recorded & set(panel[1])] or [PANELS[0]]
    figure = Figure(figsize=(3.7 * len(panels), 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, keys) in zip(all_axes, panels, strict=True):
        for key in keys:
            _plot(axes, history, key, scale=100 if "%" in title else 1)
        axes.set_title(title)
        axes.set_xlabel("epochs")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    write_figure(path, figure)


def _plot(axes: Any, history: list[dict[str, Any]], key: str, scale: int) -> None:
    """Plot a metric over the epochs that recorded it; a metric from before questions is dotted."""
    records = [record for record in history if record.get(key) is not None]
    if not records:
        return
    epochs = [record["epoch"] for record in records]
    values = [scale * record[key] for record in records]
    label = key.replace("_", " ").replace("bcubed", "B-cubed")
    style = "-"
    if key.startswith("drafted"):
        # Without the group, which the panel's title has.
        label = f"before questions: {label.split()[-1]}"
        style = ":"
    axes.plot(epochs, values, style, marker="o", markersize=3, label=label)
    axes.legend(frameon=True, framealpha=0.6, edgecolor="none", fontsize="small")
