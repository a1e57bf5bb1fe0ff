"""Readers of other packages are found by name, or are passed as functions."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fastreid_al import plugins
from fastreid_al.data import ImageSet, ReadOptions, Record, load
from fastreid_al.data.locate import existing_folder
from fastreid_al.data.reader import SOURCE_KEYS
from fastreid_al.errors import DataError, SettingError


def read_two(root: Path, options: ReadOptions) -> ImageSet:
    folder = existing_folder(root, options.keys.root)
    return ImageSet("two", folder, [Record(folder / f"{i}.png", i, 1) for i in range(2)], [], [])


def test_a_reader_is_passed_as_a_function(tmp_path: Path) -> None:
    images = load(read_two, tmp_path, verbose=False)
    assert images.name == "two" and [r.identity for r in images.train] == [0, 1]


def test_a_reader_of_another_package_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("two", f"{__name__}:read_two", plugins.DATASETS)
    monkeypatch.setattr(plugins, "available", lambda group: {"two": point})
    assert load("two", tmp_path, verbose=False).name == "two"


def test_messages_name_the_settings_of_the_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Name the folder with `source_root`"):
        load("folder", tmp_path / "none", keys=SOURCE_KEYS)
    with pytest.raises(SettingError, match="`source`: got 'foldr'"):
        load("foldr", tmp_path, keys=SOURCE_KEYS)
