"""The scripts of bench/questions, at toy size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench" / "questions"))

import marks  # noqa: E402
import window  # noqa: E402


def run(script: str, folder: Path, *options: str) -> tuple[dict[str, object], str]:
    """Run a script at toy size, and return its figures and its tables."""
    command = [sys.executable, f"bench/questions/{script}", "--scale", "tiny", *options]
    command += ["--json", str(folder / "figures.json"), "--table", str(folder / "table.md")]
    environment = {**os.environ, "FASTREID_AL_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((folder / "figures.json").read_text())
    return figures, (folder / "table.md").read_text()


def curve(f1: list[float], members: int, *, thumbnails: bool) -> window.Curve:
    """A curve with a place every ten questions, and so many thumbnails in each decision."""
    setting = window.Setting("set", "gain", 1, thumbnails, 0.0, 0.0)
    each = window.SECONDS + members * window.SECONDS_MORE
    return window.Curve(
        setting,
        [
            window.Place(10 * at, 10 * at, 10 * at * members, 10 * at * each, value, value)
            for at, value in enumerate(f1)
        ],
    )


def test_a_score_between_two_places_is_reached_between_them() -> None:
    plain = curve([0.1, 0.2, 0.2, 0.4], 0, thumbnails=False)
    assert window.questions_until(plain, "f1", 0.3) == pytest.approx(25)
    assert window.questions_until(plain, "f1", 0.2) == pytest.approx(10)
    assert window.questions_until(plain, "f1", 0.1) == 0
    assert window.questions_until(plain, "f1", 0.5) is None
    assert window.value_at(plain, 15, "f1") == pytest.approx(0.2)
    assert window.value_at(plain, 60, "f1", "seconds") == pytest.approx(0.2)


def test_a_judged_decision_that_replaces_two_pairs_is_worth_two() -> None:
    plain = curve([0.0, 0.1, 0.2, 0.3, 0.4], 0, thumbnails=False)
    judged = curve([0.0, 0.2, 0.4, 0.6, 0.8], 5, thumbnails=True)
    lines = window.thumbnail_table([plain, judged]).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    row = dict(zip([title.strip() for title in lines[0].split("|")[1:-1]], cells, strict=True))
    assert row["decisions"] == "10" and row["worth in pairs"] == "2.0"
    # Four seconds for five thumbnails.
    assert row["break-even s/thumbnail"] == "0.80"


def test_curves_of_several_seeds_are_averaged_as_far_as_all_go() -> None:
    long = curve([0.0, 0.2, 0.4, 0.6], 0, thumbnails=False)
    short = curve([0.0, 0.4, 0.8], 0, thumbnails=False)
    short = short._replace(setting=short.setting._replace(seed=1))
    (mean,) = window.over_seeds([long, short])
    assert [place.questions for place in mean.places] == [0, 10, 20]
    assert [place.f1 for place in mean.places] == pytest.approx([0.0, 0.3, 0.6])


def test_windows_are_compared_at_toy_size(tmp_path: Path) -> None:
    figures, table = run("window.py", tmp_path, "--budget=20", "--windows=1,4", "--seeds=1")
    curves = figures["curves"]
    assert isinstance(curves, list) and len(curves) == 2 * 2 * 2 * 2
    assert all(c["places"][-1][0] <= 20 for c in curves)
    judged = [c for c in curves if c["thumbnails"]]
    assert any(c["places"][-1][2] > 0 for c in judged)
    assert all(c["places"][-1][2] == 0 for c in curves if not c["thumbnails"])
    assert "W = 4" in table


def marked_curve(arm: str, f1: list[float], members: int) -> marks.Curve:
    """A curve with a place every hundred decisions, and so many small images in each."""
    setting = marks.Setting("set", "now", arm, "pairs", 1, 0.0, 0.0, 0)
    rows = []
    for at, value in enumerate(f1):
        judged = 100 * at * members
        seconds = 100 * at * marks.SECONDS + judged * marks.SECONDS_MORE
        rows.append([100 * at, 100 * at, judged, seconds, value, value, value, 1.0])
    return marks.Curve(setting, np.array(rows))


def test_marks_that_save_a_pair_are_worth_its_seconds() -> None:
    plain = marked_curve("pairs", [0.0, 0.1, 0.2, 0.3, 0.4], 0)
    judged = marked_curve("pairs, marked", [0.0, 0.2, 0.4], 8)
    assert marks.value_at([judged], "f1", 400.0, "seconds", 0.0) == pytest.approx(0.2)
    # A small image takes as long as half a pair: a decision takes 20 seconds.
    assert marks.value_at([judged], "f1", 2000.0, "seconds", 2.0) == pytest.approx(0.2)
    assert marks.value_at([judged], "f1", 5000.0, "seconds", 2.0) is None
    line = marks.worth_table(marks.over_seeds([plain, judged])).splitlines()[2]
    # Four seconds for eight small images.
    assert [cell.strip() for cell in line.split("|")[8:10]] == ["8.0", "0.50"]


def test_marks_are_measured_at_toy_size_and_go_on_from_a_file(tmp_path: Path) -> None:
    options = ("--budget=0.03", "--windows=1", "--errors=0", "--arms=pairs;pairs, marked")
    figures, table = run("marks.py", tmp_path, *options)
    curves = figures["curves"]
    assert isinstance(curves, list) and len(curves) == 2
    plain, judged = (dict(zip(marks.PLACES, c["places"][-1], strict=True)) for c in curves)
    assert plain["members"] == 0 < judged["members"]
    assert plain["seconds"] == plain["gestures"] * marks.SECONDS
    assert "small images in each" in table
    shutil.copy(tmp_path / "figures.json", tmp_path / "earlier.json")
    again, _ = run("marks.py", tmp_path, *options, "--from", str(tmp_path / "earlier.json"))
    assert again["curves"] == curves


@pytest.mark.slow
def test_people_answer_while_a_toy_run_trains(tmp_path: Path) -> None:
    options = ("--out", str(tmp_path / "out"), "--modes=all;none", "--epoch-minutes=0.5")
    figures, table = run("idle.py", tmp_path, *options)
    runs = figures["runs"]
    assert isinstance(runs, list)
    of_mode = {found["mode"]: found for found in runs}
    assert of_mode["none"]["trainer_waits"] == 0
    assert of_mode["all"]["trainer_waits"] > 0
    assert all(found["answers"] > 0 and found["epochs"] >= 1 for found in runs)
    assert "`questions.wait`" in table
