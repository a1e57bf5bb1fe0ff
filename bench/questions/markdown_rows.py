"""Lines of Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def head(titles: Sequence[str]) -> list[str]:
    """Return the two first lines of a table."""
    return [row(titles), "|" + "---|" * len(titles)]


def row(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"
