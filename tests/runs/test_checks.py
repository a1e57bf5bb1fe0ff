"""Checks before expensive work starts: batches, devices, libraries, warnings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastreid_al.clustering import backends
from fastreid_al.config import (
    BatchConfig,
    ClusterConfig,
    ImageConfig,
    NetworkConfig,
    OracleConfig,
    RunConfig,
    recipe,
)
from fastreid_al.data import load
from fastreid_al.engine.console import Reporter
from fastreid_al.errors import SettingError, UserError
from fastreid_al.runs.checks import (
    check_parts,
    check_run_folder,
    check_settings,
    pick_device,
    warn_of_settings,
    working_on,
)
from tests.support.image_sets import put

PAPER = RunConfig(dataset="market1501")


@pytest.mark.parametrize(
    ("size", "per_identity", "group", "processes", "message"),
    [
        (62, 4, 16, 1, "divides into `batch.per_identity` 4, such as 60 or 64"),
        (24, 4, 16, 1, "divides into groups of `network.bn_group` 16, such as 16 or 32"),
        (24, 4, 4, 4, "divides into 4 ranks of groups of `network.bn_group` 4, such as 16 or 32"),
        (6, 2, 0, 4, "divides into 4 ranks, such as 4 or 8"),
        (6, 6, 16, 4, "divides into 4 ranks of groups of `network.bn_group` 16, such as 192"),
    ],
)
def test_batches_that_cannot_be_divided_are_refused_with_sizes_that_can(
    size: int, per_identity: int, group: int, processes: int, message: str
) -> None:
    batch = BatchConfig(size=size, per_identity=per_identity)
    config = replace(PAPER, batch=batch, network=NetworkConfig(bn_group=group))
    with pytest.raises(SettingError) as refused:
        check_parts(config, processes)
    assert str(refused.value) == f"`batch.size`: got {size}, expected a size that {message}"


def test_batches_that_can_be_divided_are_accepted() -> None:
    check_parts(PAPER, 1)
    check_parts(PAPER, 4)
    small = replace(PAPER, batch=BatchConfig(size=8))
    check_parts(small, 1)
    odd = replace(PAPER, method="nnct", batch=BatchConfig(size=7))
    check_parts(replace(odd, network=NetworkConfig(bn_group=0)), 1)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (ClusterConfig(dbscan="cuml"), "`cluster.dbscan`: got 'cuml', expected auto or graph with"),
        (ClusterConfig(neighbours="ivf"), "`cluster.neighbours`: got 'ivf', expected exact with 2"),
    ],
)
def test_what_runs_in_a_single_process_is_refused_on_several(
    cluster: ClusterConfig, message: str
) -> None:
    config = replace(PAPER, cluster=cluster)
    with pytest.raises(SettingError, match=message):
        check_parts(config, 2)
    check_parts(config, 1)
    check_parts(replace(config, method="supervised"), 2)


def test_shares_of_the_oracle_that_sum_to_more_than_1_are_refused() -> None:
    check_settings(replace(PAPER, oracle=OracleConfig(error=0.1, unsure=0.2, not_comparable=0.7)))
    with pytest.raises(SettingError) as refused:
        check_settings(replace(PAPER, oracle=OracleConfig(error=0.5, unsure=0.6)))
    expected = "at most 0.4, which `oracle.unsure` and `oracle.not_comparable` leave"
    assert str(refused.value) == f"`oracle.error`: got 0.5, expected {expected}"


def test_a_clustering_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    config = replace(PAPER, cluster=ClusterConfig(dbscan="cuml"))
    with pytest.raises(UserError, match=r"`cluster\.dbscan`: 'cuml' is not installed"):
        check_settings(config)
    check_settings(replace(config, method="supervised"))


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=f"`device`: got '{name}', expected "):
        pick_device(name)


def test_devices_that_exist_are_returned() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")


class Lines(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        ({}, []),
        ({"neighbours_k": 3}, ["`neighbours_k` does nothing"]),
        (
            {"image": ImageConfig(height=32, width=32, crop_area=(0.64, 1.0))},
            ["no random crop will be made: at 32 x 32 "],
        ),
    ],
)
def test_settings_without_effect_are_warned_of(changes: dict[str, Any], starts: list[str]) -> None:
    reporter = Lines()
    warn_of_settings(replace(PAPER, **changes), reporter)
    assert len(reporter.warnings) == len(starts)
    for line, start in zip(reporter.warnings, starts, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("method", ["ucal", "supervised", "nnct"])
@pytest.mark.parametrize("ask", ["none", "ucal", "gain"])
def test_a_recipe_does_not_warn_of_its_own_values(method: Any, ask: str) -> None:
    for name in ("paper", "small", "reid"):
        reporter = Lines()
        config = recipe("market1501", name, method)  # type: ignore[arg-type]
        warn_of_settings(replace(config, ask=ask if method == "ucal" else "none"), reporter)
        assert [line for line in reporter.warnings if "does nothing" in line] == []


def test_the_device_of_a_run_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    def exchange(index: int) -> int:
        before, current[0] = current[0], index
        return before

    monkeypatch.setattr("torch.cuda._exchange_device", exchange)
    monkeypatch.setattr("torch.cuda._maybe_exchange_device", exchange)
    with working_on(torch.device("cuda:1")):
        assert current == [1]
    assert current == [0]
    with working_on(torch.device("cpu")):
        assert current == [0]


@pytest.mark.parametrize("folder", ["crops", "crops/ann", "crops/../crops/ann"])
def test_a_run_is_not_written_among_the_images_of_its_set(tmp_path: Path, folder: str) -> None:
    put(tmp_path / "crops", "ann/1.jpg", "ben/2.jpg")
    images = load("folder", tmp_path / "crops", verbose=False)
    with pytest.raises(
        SettingError, match=r"`run_dir`: got .* it holds [12] \(first: .*ann/1\.jpg"
    ):
        check_run_folder(tmp_path / folder, images)


@pytest.mark.parametrize("folder", [".", "crops/runs/1", "crops/an", "elsewhere"])
def test_a_run_is_written_beside_or_above_the_images_of_its_set(
    tmp_path: Path, folder: str
) -> None:
    put(tmp_path / "crops", "ann/1.jpg", "ben/2.jpg")
    check_run_folder(tmp_path / folder, load("folder", tmp_path / "crops", verbose=False))


def test_a_run_may_be_written_where_a_manifest_names_images(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    (tmp_path / "images.csv").write_text("path\n1.jpg\n")
    check_run_folder(tmp_path, load("manifest", tmp_path / "images.csv", verbose=False))
