"""Strategies against an oracle on saved features."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_al import files
from fastreid_al.cli import run_main
from fastreid_al.config import (
    ClusterConfig,
    OracleConfig,
    QuestionConfig,
    RunConfig,
    SimulationConfig,
)
from fastreid_al.engine.console import Reporter
from fastreid_al.errors import UserError
from fastreid_al.evaluate import main as evaluate_main
from fastreid_al.runs import run_simulation, run_training
from fastreid_al.runs.simulate import simulate
from fastreid_al.simulate import main as simulate_main
from tests.support.asking import crowded
from tests.support.tiny import SYNTHETIC


@pytest.fixture
def asking(config: RunConfig) -> RunConfig:
    return replace(config, ask="gain", questions=QuestionConfig(start=1, per_epoch=15))


def test_saved_features_are_simulated(
    asking: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(replace(asking, ask="none", epochs=1))
    file = tmp_path / "features.npz"
    sizes = [f"--synthetic.{k.replace('_', '-')}={v}" for k, v in vars(SYNTHETIC).items()]
    evaluate_main([f"--checkpoint={asking.run_dir}/last.pt", f"--save-features={file}", *sizes])
    with np.load(file) as saved:
        assert (
            saved["features"].shape[0]
            == SYNTHETIC.train_images
            == len(saved["identities"])
            == len(saved["cameras"])
        )
    simulate_main(
        [
            f"--features={file}",
            "--budget=40",
            "--every=10",
            f"--out={tmp_path / 'out'}",
            "--cluster.k1=8",
        ]
    )
    lines = (tmp_path / "out" / "curves.csv").read_text().splitlines()
    assert lines[0] == (
        "strategy,questions,share,precision,recall,f1,bcubed_precision,bcubed_recall,bcubed_f1,"
        "class_purity,class_completeness,cross_camera_recall,identities_covered,"
        "seconds,changed,next_changed,next_questions,gestures,members"
    )
    assert all(0 <= float(score) <= 1 for line in lines[1:] for score in line.split(",")[3:13])
    assert {line.split(",")[0] for line in lines[1:]} == {"ucal", "gain", "spal", "random"}
    assert Image.open(tmp_path / "out" / "curves.png").size
    config = SimulationConfig(str(file), "gain", 40, 10, str(tmp_path / "out2"))
    assert run_simulation(config, Reporter()) == run_simulation(config, Reporter())


def test_sheets_are_simulated_and_their_seconds_counted(tmp_path: Path) -> None:
    features, identities, _ = crowded()
    np.savez(tmp_path / "f.npz", features=features.numpy(), identities=identities.numpy())
    config = SimulationConfig(
        str(tmp_path / "f.npz"),
        "gain",
        60,
        out=str(tmp_path),
        questions=QuestionConfig(sheet=5),
        oracle=OracleConfig(seconds=4, seconds_more=0.5),
    )
    first, *_, last = run_simulation(config)
    assert (first.seconds, last.questions) == (0, 60)
    of_gain = run_simulation(replace(config, every=10))
    assert of_gain[0].changed == 0 and of_gain[0].next_changed is None
    assert all(point.changed > 0 for point in of_gain[1:-1])
    assert all((point.next_changed or 0) > 0 for point in of_gain[1:-1])
    # Between all answers on sheets of five, and all about pairs.
    assert 60 / 5 * 6 < last.seconds < 60 * 4


@pytest.mark.parametrize("strategy", ["gain", "ucal"])
def test_judged_thumbnails_change_a_curve_before_their_round_ends(strategy: str) -> None:
    features, identities, labels = crowded()
    questions = QuestionConfig(thumbnails=True, k_max_rule="root")
    config = SimulationConfig("", budget=60, every=59, questions=questions)
    *_, before, end = simulate(features, labels, identities, strategy, config)
    assert (before.questions, end.questions) == (59, 60) and before.members > 300
    # One question changes little; the thumbnails of all questions change hundreds of pairs.
    assert end.changed < 50


def test_a_score_that_is_undefined_is_an_empty_cell_and_a_dash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 64))
    # No cameras, and no cluster: every image is alone.
    np.savez(tmp_path / "f.npz", features=features, identities=np.arange(40) // 2)
    config = SimulationConfig(
        str(tmp_path / "f.npz"), "random", 0, out=str(tmp_path), cluster=ClusterConfig(eps=0.1)
    )
    [point] = run_simulation(config)
    assert point.class_purity is None and point.cross_camera_recall is None
    assert "class purity - %, completeness - %" in capsys.readouterr().out
    [_, row] = (tmp_path / "curves.csv").read_text().splitlines()
    assert row.endswith(f",{point.bcubed_f1},,,,0.0,0.0,0,,,0,0")
    assert Image.open(tmp_path / "curves.png").size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ask=gian"], "`ask`: got 'gian', expected one of ucal, gain"),
        (["--budget=-1"], "`budget`: got -1, expected 0 or more"),
        (["--questions.budget=3"], "a simulation has one `budget`"),
    ],
)
def test_a_simulation_that_cannot_work_is_refused(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        simulate_main(["--features=nowhere.npz", f"--out={tmp_path}", *arguments])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.eye(3)}, "no array identities"),
        ({"features": np.eye(3), "identities": np.arange(2)}, "expected"),
        ({"features": np.zeros((3, 2)), "identities": np.arange(3)}, "not zero"),
        ({"features": np.full((3, 2), np.nan), "identities": np.arange(3)}, "finite"),
    ],
)
def test_feature_files_that_cannot_be_used_are_refused(
    tmp_path: Path, arrays: dict, message: str
) -> None:
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match=message):
        simulate_main([f"--features={tmp_path / 'f.npz'}", f"--out={tmp_path}"])
    (tmp_path / "g.npz").write_bytes(b"nonsense")
    for name in ("g.npz", "missing.npz"):
        with pytest.raises(UserError, match=r"cannot be read as \.npz"):
            simulate_main([f"--features={tmp_path / name}", f"--out={tmp_path}"])


def test_a_simulation_whose_clustering_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "f.npz", features=np.eye(5), identities=np.arange(5))
    monkeypatch.setattr(
        "fastreid_al.clustering.backends.importlib.util.find_spec", lambda name: None
    )
    with pytest.raises(UserError, match=r"`cluster.dbscan`: 'cuml' is not installed"):
        simulate_main(
            [f"--features={tmp_path / 'f.npz'}", f"--out={tmp_path}", "--cluster.dbscan=cuml"]
        )


@pytest.mark.parametrize(("name", "status"), [("curves.csv", 2), ("curves.png", 0)])
def test_a_full_disk_names_the_option_of_this_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    status: int,
) -> None:
    def full(path: Path, *arguments: object, **options: object) -> object:
        if Path(path).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replacing(path, *arguments, **options)  # type: ignore[arg-type]

    replacing = files.replacing
    monkeypatch.setattr(files, "replacing", full)
    np.savez(tmp_path / "f.npz", features=np.eye(4), identities=np.arange(4) // 2)
    arguments = [f"--features={tmp_path / 'f.npz'}", "--ask=gain", "--budget=1"]
    monkeypatch.setattr("sys.argv", ["simulate", *arguments, f"--out={tmp_path / 'out'}"])
    code = 0
    try:
        run_main(simulate_main)
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = "".join(capsys.readouterr())
    assert code == status
    assert "could not write the curves (No space left on device); name another folder with" in said
    assert "resume" not in said
