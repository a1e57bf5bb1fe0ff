"""Identities are renumbered without gaps, and test identities are kept apart."""

from __future__ import annotations

from pathlib import Path

from fastreid_al.data import ImageSet, Record
from fastreid_al.data.records import SplitCounts, count, keep_test_apart, renumber


def records(*identities: int) -> list[Record]:
    return [Record(Path(f"{i}.jpg"), identity, i) for i, identity in enumerate(identities)]


def test_identities_are_renumbered_in_ascending_order_and_unknown_stays() -> None:
    assert [r.identity for r in renumber(records(9, -1, 4, 9))] == [1, -1, 0, 1]


def test_test_identities_are_shifted_past_the_training_identities() -> None:
    published = {"train": SplitCounts(1, 1, 1)}
    images = ImageSet("x", Path(), records(0, 1), records(0, 5), records(-1, 0), published)
    apart = keep_test_apart(images)
    assert [r.identity for r in apart.query] == [2, 7]
    assert [r.identity for r in apart.gallery] == [-1, 2]
    assert apart.train == images.train and apart.published == published


def test_junk_and_unknown_cameras_are_not_counted() -> None:
    assert count([*records(3, 3, -1), Record(Path("x.jpg"), 4, -1)]) == SplitCounts(4, 2, 3)
