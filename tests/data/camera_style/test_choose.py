"""Each kind of style is made; where a set has none, one warning says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.data.camera_style import (
    ColourStyle,
    FourierStyle,
)
from fastreid_al.data.records import STYLE_COPIES as COPIES
from tests.support.copies import MARKET, Make, built, market_copies


def test_without_the_folder_there_is_one_warning_and_no_style(make: Make, tmp_path: Path) -> None:
    warnings: list[str] = []
    assert built(make(MARKET, (1, 2, 3), {}), tmp_path, warnings) is None
    assert (
        len(warnings) == 1 and f"{COPIES} does not exist; training goes on without" in warnings[0]
    )


@pytest.mark.parametrize("kind", ["colour", "fourier", "files"])
@pytest.mark.parametrize("cameras", [(1, 1, 1), (-1, -1, -1), (-1, 3, -1)])
def test_fewer_than_two_known_cameras_have_no_styles(
    make: Make, tmp_path: Path, kind: str, cameras: tuple[int, ...]
) -> None:
    warnings: list[str] = []
    assert built(make(MARKET, cameras, market_copies()), tmp_path, warnings, kind) is None
    assert len(warnings) == 1 and f"of {len(set(cameras) - {-1})} camera(s)" in warnings[0]


@pytest.mark.parametrize(
    ("kind", "made"), [("colour", ColourStyle), ("fourier", FourierStyle), ("none", type(None))]
)
def test_each_kind_is_made(make: Make, tmp_path: Path, kind: str, made: type) -> None:
    warnings: list[str] = []
    style = built(make(MARKET, (1, 2, 3), {}), tmp_path, warnings, kind)
    assert type(style) is made and warnings == []
    assert style is None or (style.probability == 1.0 and style.digests == {})
