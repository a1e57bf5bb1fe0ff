"""Published sets are recognised, and not trained on as a folder."""

from __future__ import annotations

from pathlib import Path

from fastreid_al.data import load
from fastreid_al.data.layouts import fitting_sets
from tests.support.image_sets import fails, put, put_market, put_msmt


def test_layouts_are_recognised(tmp_path: Path) -> None:
    put_market(tmp_path / "Market-1501-v15.09.15")
    put_msmt(tmp_path / "msmt17" / "MSMT17_V1")
    assert fitting_sets(tmp_path) == ["market1501", "msmt17"]
    assert fitting_sets(tmp_path / "msmt17" / "MSMT17_V1") == ["msmt17"]
    assert fitting_sets(tmp_path / "Market-1501-v15.09.15")[0] == "market1501"
    put(tmp_path / "crops", "train/a.jpg")
    assert fitting_sets(tmp_path / "crops") == []


def test_a_published_set_is_not_read_as_a_folder(tmp_path: Path) -> None:
    put_market(tmp_path / "m")
    put_msmt(tmp_path / "s", "mask_train_v2", "mask_test_v2")
    fails("layout of market1501 or dukemtmcreid.*`dataset` market1501", "folder", tmp_path / "m")
    fails("layout of msmt17", "folder", tmp_path / "s")
    assert len(load("folder", tmp_path / "m" / "bounding_box_train", verbose=False).train) == 3
