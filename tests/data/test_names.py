"""Cameras and identities are read out of names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastreid_al.data.names import number_cameras, pattern_of, read_cameras, read_identities
from fastreid_al.errors import SettingError

ROOT = Path("/set")


def cameras(*names: str, pattern: str | None = None) -> list[int]:
    compiled = None if pattern is None else re.compile(pattern)
    return read_cameras([ROOT / name for name in names], ROOT, compiled)


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("0002_c1s1_000451_03.jpg", 1),
        ("0005_c2_f0046985.jpg", 2),
        ("0001_c014_00030600_0.jpg", 14),
        ("0007_C3_1.jpg", 3),
        ("cam4_0007.jpg", 4),
        ("Camera-12.png", 12),
        ("c5_0007_2.jpg", 5),
        ("0007-c6.jpg", 6),
        ("0065C1T0002F016.jpg", 1),
        ("0000_005_11_0303morning_0028_1.jpg", 11),
        ("cam2/0007.jpg", 2),
        ("person/camera_3/0007.jpg", 3),
        ("0007.jpg", -1),
        ("abc123.jpg", -1),
        ("3fc12ab9.jpg", -1),
        ("scam5.jpg", -1),
        ("came.jpg", -1),
    ],
)
def test_usual_spellings(name: str, camera: int) -> None:
    assert cameras(name) == [camera]


def test_cameras_without_numbers_are_numbered_in_order() -> None:
    assert cameras("cam_b/1.bmp", "cam_a/1.bmp", "cam_b/2.bmp") == [1, 0, 1]
    assert number_cameras(["north", None, "1", ""]) == [1, -1, 0, -1]
    assert number_cameras(["3", "12", None]) == [3, 12, -1]
    assert number_cameras(["9" * 40, "1"]) == [1, 0]


def test_a_pattern_takes_the_place_of_the_spellings() -> None:
    names = ("d1/x_7.jpg", "d2/x_c3.jpg", "x.jpg")
    assert cameras(*names, pattern=r"^d(\d+)/") == [1, 2, -1]
    assert cameras(*names, pattern=r"_c?(?P<camera>\d)()") == [7, 3, -1]
    assert cameras(*names, pattern=r"\d") == [1, 2, -1]


def test_identities_by_pattern() -> None:
    paths = [ROOT / "ann/1.jpg", ROOT / "bob/2.jpg", ROOT / "3.jpg"]
    assert read_identities(paths, ROOT, re.compile(r"^(\w+)/")) == ["ann", "bob", ""]


def test_a_pattern_that_finds_nothing_in_any_name_is_refused() -> None:
    paths = [ROOT / "ann/1.jpg", ROOT / "bob/2.jpg"]
    for group, read in (("camera", read_cameras), ("identity", read_identities)):
        for pattern in ("site_([a-z]+)", "(x?)"):
            with pytest.raises(SettingError) as refused:
                read(paths, ROOT, re.compile(pattern))  # type: ignore[operator]
            said = str(refused.value)
            assert said.startswith(f"`{group}_pattern`: got '{pattern}', expected")
            assert said.endswith("it finds one in 0 of 2, such as ann/1.jpg")
        assert len(read([], ROOT, re.compile("x"))) == 0  # type: ignore[operator]


def test_what_is_no_regular_expression_is_refused() -> None:
    assert pattern_of("camera_pattern", None) is None
    with pytest.raises(SettingError, match=r"`camera_pattern`: got 'c\('.*regular expression"):
        pattern_of("camera_pattern", "c(")
