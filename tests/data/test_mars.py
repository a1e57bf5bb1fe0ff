"""MARS: some images of each tracklet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fastreid_al.data import load
from fastreid_al.data.mars import _spread
from fastreid_al.data.records import track_numbers
from tests.support.image_sets import fails, labels, put


@pytest.fixture
def root(tmp_path: Path) -> Path:
    info = tmp_path / "info"
    info.mkdir()
    train = [f"0001C1T0001F{frame:03}.jpg" for frame in range(1, 9)]
    train += [f"0003C2T0001F{frame:03}.jpg" for frame in range(1, 3)]
    test = [f"0002C1T0001F{frame:03}.jpg" for frame in range(1, 4)]
    test += [f"0002C4T0001F{frame:03}.jpg" for frame in range(1, 7)]
    test += ["00-1C2T0001F001.jpg"]
    for half, names in (("train", train), ("test", test)):
        put(tmp_path / f"bbox_{half}", *(f"{name[:4]}/{name}" for name in names))
        (info / f"{half}_name.txt").write_text("\n".join(names) + "\n")
    tracks = {"track_train_info": [[1, 8, 1, 1], [9, 10, 3, 2]]}
    savemat(info / "tracks_train_info.mat", tracks)
    savemat(
        info / "tracks_test_info.mat",
        {"track_test_info": [[1, 3, 2, 1], [4, 9, 2, 4], [10, 10, -1, 2]]},
    )
    savemat(info / "query_IDX.mat", {"query_IDX": np.array([[1]])})
    return tmp_path


def test_tracklets_are_sampled(root: Path) -> None:
    images = load("mars", root, verbose=False, frames=3)
    assert labels(images.train) == [(0, 1)] * 3 + [(1, 2)] * 2
    assert [r.path.stem[-3:] for r in images.train[:3]] == ["002", "005", "007"]
    assert labels(images.query) == [(4, 1)]
    assert images.query[0].path.stem == "0002C1T0001F002"
    assert labels(images.gallery) == [(4, 4)] * 3 + [(-1, 2)]
    assert images.train[0].caption == "frames 1 to 8 of the set, this is 2"
    assert track_numbers(images.train) == [0, 0, 0, 1, 1]


def test_frames_of_a_tracklet() -> None:
    assert _spread(5, 5, 4) == [5]
    assert _spread(1, 3, 4) == [1, 2, 3]
    assert _spread(11, 110, 4) == [23, 48, 73, 98]


def test_what_is_missing_is_named(root: Path) -> None:
    savemat(root / "info" / "query_IDX.mat", {"query_IDX": np.array([[7]])})
    fails("tracklets that do not exist", "mars", root)
    (root / "info" / "query_IDX.mat").write_bytes(b"MATLAB 5.0 MAT-file, or not")
    fails("cannot be read as a MATLAB file with query_IDX", "mars", root)
    savemat(root / "info" / "tracks_train_info.mat", {"track_train_info": [[1, 99, 1, 1]]})
    fails("track_train_info has rows", "mars", root)
