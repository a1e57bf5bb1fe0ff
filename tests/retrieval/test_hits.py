"""Hits as a table, for programs and as a page, at the edges: many queries, no picture, few hits."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from fastreid_al.errors import parse_printable
from fastreid_al.retrieval.hits import MOST_SHOWN, Hits, write_csv, write_html, write_json


def hits(queries: int, *, sure: bool = True) -> Hits:
    """Two places for hits, of which each query has one."""
    return Hits(
        [f"q{number}.png" for number in range(queries)],
        Path("g"),
        ["a.png", "b\\n.png"],
        np.array([[1, -1]] * queries),
        np.array([[0.5, -np.inf]] * queries, np.float32),
        np.array([[0.25, 0.0]] * queries) if sure else None,
        np.arange(queries) % 2 == 0 if sure else None,
        {"gallery": "<g>", "gallery_images": 2, "lines": ["a & b"]},
    )


def test_a_page_shows_the_first_queries_and_says_so() -> None:
    file = io.StringIO()
    write_html(hits(MOST_SHOWN + 5), file)
    page = file.getvalue()
    assert page.count("<section>") == MOST_SHOWN
    assert f"{MOST_SHOWN + 5} queries, 2 gallery images; the first {MOST_SHOWN} queries" in page
    assert page.count('class="unknown">unknown') == MOST_SHOWN // 2
    assert page.count("no picture") == 2 * MOST_SHOWN
    assert "&lt;g&gt;" in page and "a &amp; b" in page


@pytest.mark.parametrize("sure", [True, False])
def test_missing_hits_have_no_line_and_missing_probabilities_are_empty(sure: bool) -> None:
    file = io.StringIO()
    write_csv(hits(1, sure=sure), file)
    rows = list(csv.reader(io.StringIO(file.getvalue())))
    assert len(rows) == 2
    query, rank, gallery, similarity, probability = rows[1]
    assert (query, rank, parse_printable(gallery)) == ("q0.png", "1", "g/b\\n.png")
    assert (similarity, probability) == ("0.500000", "0.250000" if sure else "")


def test_the_json_file_of_no_query_is_whole() -> None:
    for count in (0, 1, 3):
        file = io.StringIO()
        write_json(hits(count), file)
        found = json.loads(file.getvalue())
        assert len(found["queries"]) == count and found["gallery"] == "<g>"
        assert all(len(query["hits"]) == 1 for query in found["queries"])
