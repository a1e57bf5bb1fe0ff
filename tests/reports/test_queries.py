"""Which queries are shown, and how two runs are compared by their queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastreid_al.data.records import Record
from fastreid_al.metrics import QueryScores, list_gallery
from fastreid_al.reports.compare import (
    changed_queries,
    common_queries,
    differing_settings,
    score_differences,
)
from fastreid_al.reports.crops import Crops
from fastreid_al.reports.queries import Ranked, choose_queries, show_query
from tests.support.image_sets import put_noise


def scores(precision: list[float]) -> QueryScores:
    """Scores of queries; 0 for one without a match."""
    values = torch.tensor(precision, dtype=torch.float64)
    matched = (values > 0).long()
    return QueryScores(values, values / 2, matched, matched, matched * 0, 0)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 10])
def test_a_query_is_worst_median_or_best_and_in_one_group(count: int) -> None:
    chosen = choose_queries(scores([0.5, 0.0, 0.9, 0.1, 0.7, 0.3, 0.0, 0.8]), count)
    every = [query for queries in chosen.values() for query in queries]
    assert len(every) == len(set(every)) == min(3 * count, 6)
    assert 1 not in every and 6 not in every
    if count:
        assert chosen["Worst"][0] == 3
    if 0 < count < 6:
        assert chosen["Best"][0] == 2
    if count == 1:
        assert chosen["Median"] == [0]


def ranked(root: Path, names: list[str], precision: list[float]) -> Ranked:
    lists = list_gallery(
        torch.eye(4)[: len(names)],
        torch.arange(len(names)),
        torch.zeros(len(names)).long(),
        torch.tensor([[0.9, 0, 0, 0.1], [1, 0, 0, 0], [0.8, 0.6, 0, 0]]),
        torch.tensor([0, 0, 7]),
        torch.tensor([1, 0, 1]),
    )[1]
    queries = [Record(root / name, i, 0) for i, name in enumerate(names)]
    gallery = [Record(root / f"g{i}.jpg", i, 1) for i in range(3)]
    return Ranked(root, queries, gallery, scores(precision), lists, [f"of {n}" for n in names])


def test_a_list_marks_right_wrong_and_ignored_images_by_sign_word_and_rank(tmp_path: Path) -> None:
    for name in ("q.jpg", "g0.jpg", "g1.jpg", "g2.jpg"):
        put_noise(tmp_path, name, seed=1)
    shown = show_query(ranked(tmp_path, ["q.jpg"], [0.5]), 0, Crops(256, 128))
    assert [(e.kind, e.sign, e.rank) for e in shown.entries] == [
        ("ignored", "\u2013", ""),
        ("right", "\u2713", "1"),
        ("wrong", "\u2717", "2"),
    ]
    assert shown.name == "q.jpg"
    assert "average precision 50.0 %, first match at rank 1, 1 match" in shown.facts
    assert 'aria-label="rank 1, right: g0.jpg"' in shown.entries[1].crop


def test_queries_of_two_runs_are_matched_by_path_and_content(tmp_path: Path) -> None:
    first = ranked(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], [0.2, 0.4, 0.0, 0.9])
    second = ranked(tmp_path / "moved", ["d.jpg", "b.jpg", "a.jpg", "x.jpg"], [0.6, 0.4, 0.5, 1.0])
    common = common_queries(first, second)
    other_set = replace(second, digests=["1", "2", "of a.jpg", "4"])
    assert common_queries(first, other_set) == [(0, 2)]
    assert common == [(0, 2), (1, 1), (3, 0)]
    by_name = {found.name: found for found in score_differences(first, second, common)}
    assert by_name["mAP"].first == pytest.approx((0.2 + 0.4 + 0.9) / 3)
    assert by_name["mAP"].second == pytest.approx((0.5 + 0.4 + 0.6) / 3)
    assert by_name["mAP"].interval.mean == pytest.approx(0.0)
    assert not by_name["mAP"].clear
    assert by_name["rank-1"].interval == (0, 0, 0)
    rose, fell = changed_queries(first, second, common, 5)
    assert [(q.first, round(q.change, 9)) for q in rose] == [(0, 0.3)]
    assert [(q.first, round(q.change, 9)) for q in fell] == [(3, -0.3)]


def test_a_difference_that_every_query_shows_is_clear(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(4)]
    first = ranked(tmp_path, names, [0.1, 0.2, 0.3, 0.4])
    second = replace(first, scores=scores([0.3, 0.4, 0.5, 0.6]))
    found = score_differences(first, second, common_queries(first, second))[0]
    assert found.clear and found.interval.low == pytest.approx(0.2)


def test_only_settings_that_differ_are_listed() -> None:
    rows = differing_settings({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "x"})
    assert rows == [("b", "2", "3"), ("c", "none", "x")]
