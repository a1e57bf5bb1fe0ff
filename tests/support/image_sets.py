"""Small image sets on disk, in each of the layouts that are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastreid_al.data import load
from fastreid_al.data.pixels import PixelSettings, PixelStore, decode
from fastreid_al.distributed.world import SINGLE_PROCESS
from fastreid_al.errors import DataError


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(path)


def put_noise(folder: Path, name: str, seed: int) -> None:
    """Put an image that no other seed makes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def put_market(root: Path) -> None:
    put(
        root / "bounding_box_train",
        "0007_c1s1_000451_03.jpg",
        "0002_c1s1_000451_03.jpg",
        "0002_c6s1_000001_01.jpg",
    )
    put(root / "query", "0001_c1s1_000001_00.jpg", "0003_c2s1_000001_00.jpg")
    put(
        root / "bounding_box_test",
        "-1_c1s1_000001_00.jpg",
        "0000_c2s1_000001_00.jpg",
        "0001_c3s1_000001_00.jpg",
    )
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"x")


def put_msmt(root: Path, train: str = "train", test: str = "test") -> None:
    name = "{p:04d}/{p:04d}_{i:03d}_{c:02d}_0303morning_0008_0.jpg"
    splits = {
        "train": (train, [(0, 0, 1), (2, 0, 15), (2, 1, 3)]),
        "val": (train, [(1, 0, 2)]),
        "query": (test, [(0, 0, 1)]),
        "gallery": (test, [(0, 1, 12), (1, 0, 2)]),
    }
    for split, (folder, items) in splits.items():
        files = [name.format(p=p, i=i, c=c) for p, i, c in items]
        put(root / folder, *files)
        lines = [f"{file} {p}" for file, (p, _, _) in zip(files, items, strict=True)]
        (root / f"list_{split}.txt").write_text("\n".join(lines) + "\n")


def put_vehicleid(root: Path) -> None:
    put(root / "image", *(f"{number:07}.jpg" for number in range(9)))
    lists = root / "train_test_split"
    lists.mkdir()
    (lists / "train_list.txt").write_text("0000000 7\n0000001 3\n")
    test = "0000002 5\n0000003 5\n0000004 5\n0000005 6\n0000006 6\n"
    (lists / "test_list_800.txt").write_text(test)
    (lists / "test_list_2400.txt").write_text(test + "0000007 9\n0000008 9\n")


def labels(records: list) -> list[tuple[int, int]]:
    return [(r.identity, r.camera) for r in records]


def fails(message: str, name: str, root: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(name, root, verbose=False)
    assert "\n" not in str(error.value)


def decode_at(
    paths: Sequence[Path], height: int, width: int, *, world: Any = None, **settings: Any
) -> PixelStore:
    """Decode images; `settings` are those of `PixelSettings`, `on_progress` and `warn`."""
    called = {key: settings.pop(key) for key in ("on_progress", "warn") if key in settings}
    world = world or SINGLE_PROCESS
    return decode(paths, PixelSettings(height, width, **settings), world=world, **called)
