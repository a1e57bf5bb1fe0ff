"""The contact sheet shows a question and no identity."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastreid_al.annotators.sheet import MEMBERS, draw_sheet
from fastreid_al.answers.question import (
    Question,
)
from fastreid_al.data.records import Record
from fastreid_al.errors import UserError
from tests.support.asking import question


def draw(asked: Question, records: Sequence[Record], path: Path) -> Image.Image:
    draw_sheet(asked, records, path, 1)
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.convert("RGB")


def colours(image: Image.Image) -> dict[tuple[int, ...], int]:
    counts = image.getcolors(image.width * image.height)
    return {colour: count for count, colour in counts}  # type: ignore


def extent(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a colour."""
    ys, xs = np.nonzero((np.asarray(image) == colour).all(axis=-1))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_sheet_shows_the_two_images_large_and_their_groups(
    records: list[Record], tmp_path: Path
) -> None:
    path = tmp_path / "new folder" / "sheet.png"
    shown = draw_sheet(question(2, 7, [2, 3, 4], [7, 8]), records, path, 3)
    assert shown == (
        [records[i].path.as_posix() for i in (2, 3, 4)],
        [records[i].path.as_posix() for i in (7, 8)],
    )
    assert os.listdir(path.parent) == ["sheet.png"]
    with Image.open(path) as image:
        got = colours(image)
        middle = image.width // 2
        sizes = {}
        for i in (2, 3, 4, 7, 8):
            left, top, right, bottom = extent(image, (20 * i, 255 - 20 * i, 90))
            assert got[20 * i, 255 - 20 * i, 90] == (right - left) * (bottom - top)
            assert right < middle if i < 5 else left > middle
            sizes[i] = (right - left, bottom - top)
    assert sizes[2] == sizes[7] == (160, 320)
    assert sizes[3] == sizes[4] == sizes[8] == (60, 120)


def test_sheet_does_not_know_identities(records: list[Record], tmp_path: Path) -> None:
    asked = question(0, 6, list(range(6)), list(range(6, 12)))
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw_sheet(asked, records, first, 1)
    draw_sheet(asked, [r._replace(identity=900 - i) for i, r in enumerate(records)], second, 1)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda asked, records: (question(0, 1, reason="split"), records, 1),
        lambda asked, records: (asked, records, 2),
        lambda asked, records: (asked, records, None),
        lambda asked, records: (asked, [records[0]._replace(camera=-1), *records[1:]], 1),
        lambda asked, records: (asked, [records[0]._replace(caption="track 7"), *records[1:]], 1),
        lambda asked, records: (question(0, 1, None, [1, 2]), records, 1),
    ],
)
def test_sheet_tells_reason_number_camera_caption_and_count(
    change: Callable[..., Any], records: list[Record], tmp_path: Path
) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw_sheet(question(0, 1), records, first, 1)
    asked, changed, number = change(question(0, 1), records)
    draw_sheet(asked, changed, second, number)
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("content", [None, b"", b"not an image", "half"])
def test_sheet_shows_a_grey_box_for_an_unreadable_image(
    content: bytes | str | None, records: list[Record], tmp_path: Path
) -> None:
    whole = records[1].path.read_bytes()
    records[1].path.unlink()
    if content is not None:
        records[1].path.write_bytes(
            whole[: len(whole) // 2] if isinstance(content, str) else content
        )
    got = colours(draw(question(0, 1, [0, 1], [1, 2]), records, tmp_path / "sheet.png"))
    assert got[0xBB, 0xBB, 0xBB] > 200 * 300


def test_sheet_of_groups_of_one_image_and_unknown_cameras(
    records: list[Record], tmp_path: Path
) -> None:
    unknown = [r._replace(camera=-1) for r in records]
    shown = draw_sheet(question(0, 1), unknown, tmp_path / "sheet.png")
    assert shown == ([records[0].path.as_posix()], [records[1].path.as_posix()])


def test_sheet_keeps_the_aspect_of_very_wide_and_very_tall_images(tmp_path: Path) -> None:
    sizes, inks = (
        [(3000, 30), (8, 3000), (1, 3000), (3000, 1)],
        [(250, 0, 0), (0, 0, 250), (0, 200, 0), (200, 0, 200)],
    )
    records = [Record(tmp_path / f"{i}.png", 0, 0) for i in range(4)]
    for record, size, ink in zip(records, sizes, inks, strict=True):
        Image.new("RGB", size, ink).save(record.path)
    image = draw(question(0, 1, [0, 2], [1, 3]), records, tmp_path / "sheet.png")
    boxes = [extent(image, ink) for ink in inks]
    shown = [(right - left, bottom - top) for left, top, right, bottom in boxes]
    assert shown == [(540, 5), (1, 320), (1, 120), (96, 1)]


def test_sheet_of_a_large_group_is_spread_over_cameras_and_over_the_group(tmp_path: Path) -> None:
    # Camera 7 has 4 images of 200, cameras 1 to 4 the others.
    records = [Record(Path(f"{i}.jpg"), 0, 7 if i % 50 == 20 else 1 + i % 4) for i in range(201)]
    shown, _ = draw_sheet(question(0, 200, list(range(200))), records, tmp_path / "sheet.png")
    rows = [int(Path(name).stem) for name in shown]
    assert len(rows) == 1 + MEMBERS and len(set(rows)) == len(rows)
    assert rows[:2] == [0, 1] and rows == sorted(rows) and rows[-1] > 150
    assert max(b - a for a, b in pairwise(rows)) < 50
    cameras = Counter(records[row].camera for row in rows)
    assert set(cameras) == {1, 2, 3, 4, 7} and max(cameras.values()) <= 4


def test_sheet_shows_images_that_are_not_the_medoids(records: list[Record], tmp_path: Path) -> None:
    """Merges are confirmed with other images of the two groups."""
    asked = question(4, 8, [3, 4, 5], [7, 8])
    shown = draw_sheet(asked, records, tmp_path / "sheet.png")
    assert shown == (
        [records[i].path.as_posix() for i in (4, 3, 5)],
        [records[i].path.as_posix() for i in (8, 7)],
    )


def test_sheet_that_cannot_be_written_says_so(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match="could not write the contact sheet"):
        draw_sheet(question(0, 1), records, tmp_path / "folder.png")
    with pytest.raises(UserError, match="could not write the contact sheet"):
        draw_sheet(question(0, 1), records, records[0].path / "sheet.png")
    assert sorted(os.listdir(tmp_path)) == before
