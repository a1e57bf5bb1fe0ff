"""CamStyle's copies are found, counted, kept, and refused where they are wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastreid_al.data import pixels
from fastreid_al.data.camera_style import (
    FileStyle,
)
from fastreid_al.data.records import STYLE_COPIES as COPIES
from fastreid_al.errors import DataError
from tests.support.copies import MARKET, MSMT17, SIZE, Make, built, market_copies


@pytest.mark.parametrize(
    ("stems", "cameras", "scheme", "suffix"),
    [
        (MARKET, (1, 2, 3), "{stem}_fake_{own}to{other}", ".jpg"),
        (MSMT17, (1, 2, 14), "{stem}_fake_{other}", ".png"),
        (MSMT17, (1, 2, 14), "deep/er/{stem}_fake_{other:02d}", ".JPEG"),
    ],
)
def test_copies_of_both_naming_schemes_are_found(
    make: Make, tmp_path: Path, stems: list[str], cameras: tuple[int, ...], scheme: str, suffix: str
) -> None:
    greys = {
        (i, other): 20 * i + other + 100
        for i in range(3)
        for other in cameras
        if other != cameras[i]
    }
    names = {
        scheme.format(stem=stems[i], own=cameras[i], other=o): grey
        for (i, o), grey in greys.items()
    }
    parts, warnings = make(stems, cameras, names, suffix), []
    style = built(parts, tmp_path, warnings)
    assert isinstance(style, FileStyle) and warnings == []
    assert list(style.digests) == [COPIES] and style.digests[COPIES].startswith("6 copies ")
    assert "6 copies in the styles of 3 cameras" in style.describe()
    rows = torch.tensor([2, 0, 1, 1, 0, 2] * 10)
    got = style(torch.zeros(60, 3, 32, 16, dtype=torch.uint8), rows, torch.Generator())
    assert got.dtype == torch.uint8 and (got == got[:, :1, :1, :1]).all()
    for row in range(3):
        seen = set(got[rows == row][:, 0, 0, 0].tolist())
        assert seen == {grey for (i, _), grey in greys.items() if i == row}


def test_missing_copies_are_counted_and_leave_the_image_as_it_is(
    make: Make, tmp_path: Path
) -> None:
    gone = (f"{MARKET[0]}_fake_1to2", f"{MARKET[0]}_fake_1to3")
    warnings: list[str] = []
    style = built(make(MARKET, (1, 2, 3), market_copies(*gone)), tmp_path, warnings)
    assert style is not None and len(warnings) == 1
    assert (
        re.search(r"^2 of 6 copies .* are missing from .*camstyle", warnings[0])
        and "\n" not in warnings[0]
    )
    got = style(
        torch.full((3, 3, 32, 16), 7, dtype=torch.uint8), torch.arange(3), torch.Generator()
    )
    assert got[:, 0, 0, 0].tolist() == [7, 90, 90]


def test_unreadable_copies_are_named_and_left_out(make: Make, tmp_path: Path) -> None:
    parts = make(MARKET, (1, 2, 3), market_copies())
    broken = tmp_path / COPIES / f"{MARKET[1]}_fake_2to1.png"
    broken.write_bytes(b"no image")
    warnings: list[str] = []
    style = built(parts, tmp_path, warnings)
    assert style is not None and style.digests[COPIES].startswith("5 copies ")
    assert (
        warnings[0].startswith("1 camstyle image(s) could not be read")
        and f"{broken}: not an image" in warnings[0]
    )
    assert warnings[1].startswith("1 of 6 copies")
    got = style(
        torch.full((64, 3, 32, 16), 7, dtype=torch.uint8), torch.ones(64).long(), torch.Generator()
    )
    assert set(got[:, 0, 0, 0].tolist()) == {7, 90}
    for path in (tmp_path / COPIES).iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 6 copies can be read"):
        built(parts, tmp_path, warnings)


def test_copies_are_kept_and_found_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, records, _ = make(MARKET, (1, 2, 3), market_copies())
    size = replace(SIZE, cache=str(tmp_path / "kept"))
    first = FileStyle(images, records, size, tmp_path, [].append)
    monkeypatch.setattr(pixels, "to_rgb", None)
    again = FileStyle(images, records, size, tmp_path, [].append)
    assert first.digests == again.digests and torch.equal(first.table, again.table)
    given = torch.zeros(3, 3, 32, 16, dtype=torch.uint8), torch.arange(3)
    drawn = (style(*given, torch.Generator().manual_seed(1)) for style in (first, again))
    assert torch.equal(*drawn)


def test_files_that_are_not_copies_of_training_images_are_not_read(
    make: Make, tmp_path: Path
) -> None:
    others = {
        "0001_c9s1_000001_01_fake_9to1": 1,
        MARKET[0]: 2,
        "thumbs": 3,
        f"{MARKET[0]}_fake_1to1": 4,
    }
    warnings: list[str] = []
    style = built(
        make(
            [*MARKET, "x"],
            (1, 2, 3, -1),
            {**market_copies(), **others, "x_fake_2": 5, "x_fake_1to2": 6},
        ),
        tmp_path,
        warnings,
    )
    assert style is not None and warnings == [] and style.digests[COPIES].startswith("6 copies ")


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (
            f"{MARKET[0]}_fake_1to8",
            r"_fake_1to8.png is for camera 8; the training images' cameras are 1, 2, 3. Put",
        ),
        (
            f"{MARKET[0]}_fake_8",
            r"_fake_8.png is for camera 8; the training images' cameras are 1, 2, 3. Put",
        ),
        (
            f"{MARKET[0]}_fake_3to2",
            r"_fake_3to2.png is from camera 3, not the image's 1; .* are 1, 2, 3. Put",
        ),
    ],
)
def test_copies_of_other_cameras_are_refused_in_one_line(
    make: Make, tmp_path: Path, copy: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        built(make(MARKET, (1, 2, 3), {**market_copies(), copy: 1}), tmp_path, [])
    assert "\n" not in str(error.value) and "`camstyle` none" in str(error.value)


def test_copies_of_another_set_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"no file in .* is the copy of a training image; expected names like 0000_000_01",
    ):
        built(make(MSMT17, (1, 2, 14), market_copies()), tmp_path, [])


def test_copies_of_two_images_of_one_name_are_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the copy of more than one training image"):
        built(make([MARKET[0], *MARKET], (1, 1, 2, 3), market_copies()), tmp_path, [])
