"""bench/gpu_check.py without a device: order, limits, what is repeated, and the report."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import gpu_check  # noqa: E402
import gpu_model  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_processes  # noqa: E402
import gpu_report  # noqa: E402
import gpu_results  # noqa: E402
from gpu_parts import Part, all_parts, chosen  # noqa: E402
from gpu_results import Results, breaking_test, outcomes  # noqa: E402

DEVICE = {"name": "NVIDIA H200", "library": None, "capability": "90"}
FIGURE = '{"name": "one", "group": "g", "median_s": 1.0, "extra_info": {}}'


def options(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"limit": 60.0, "only": [], **more})


def check(folder: Path, seconds: float = 60.0, *, forks: bool = False) -> gpu_check.Check:
    results = Results.open(folder / "out", DEVICE, "tiny")
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return gpu_check.Check(results, scratch, time.monotonic() + seconds, forks, None)


def script(folder: Path, *lines: str, limit: float = 30.0) -> Part:
    """A part that runs lines which may write figures to `figures`."""
    path = folder / "part.py"
    start = "import os, sys, time\nfigures = open(sys.argv[sys.argv.index('--figures') + 1], 'a')\n"
    path.write_text(start + "\n".join(lines) + "\n")
    return Part("part", "kernels", limit, str(path), "tiny")


def record(results: Results) -> dict[str, Any]:
    written = json.loads(results.path.read_text())
    return next(part for part in written["parts"] if part["part"] == "part")


def test_correctness_comes_first_then_proofs_kernels_operators_steps_and_exercises() -> None:
    parts = all_parts("goals")
    kinds = list(dict.fromkeys(part.kind for part in parts))
    assert kinds == ["tests", "proven", "kernels", "bench", "exercises"]
    names = [part.name for part in parts]
    assert names[0] == gpu_check.BESIDE_BUILD
    benches = [part.name for part in parts if part.kind == "bench"]
    assert benches[:2] == ["bench_similarity_topk", "bench_bank_contrast_loss"]
    assert benches[-3:] == ["bench_train_step", "bench_nnct_step", "bench_epoch"]
    assert len(set(names)) == len(names)


def test_all_parts_fit_the_limit_of_the_whole() -> None:
    assert sum(part.limit for part in all_parts("goals")) <= gpu_check.LIMIT == 1200


def test_every_file_with_gpu_tests_and_every_benchmark_is_a_part() -> None:
    files = {part.file for part in all_parts("goals")}
    benches = {f"bench/{path.name}" for path in (ROOT / "bench").glob("bench_*.py")}
    assert benches - files == {f"bench/{name}" for name in gpu_parts.ON_CPU}
    gpu = {f"tests/gpu/{path.name}" for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert gpu <= files
    marked = re.compile(r"^(pytestmark = \[?|@|    )pytest\.mark\.gpu\b", re.MULTILINE)
    elsewhere = [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "gpu"]
    assert [path for path in elsewhere if marked.search(path.read_text())] == []


def test_every_benchmark_has_a_tiny_size() -> None:
    for part in all_parts("tiny"):
        if part.kind == "bench":
            assert '"tiny"' in (ROOT / part.file).read_text(), part.file


def test_parts_are_chosen_by_their_name_or_that_of_their_file() -> None:
    parts = all_parts("goals")
    both = chosen(parts, ["bench_similarity_topk.py", "test_kernels"])
    assert [part.name for part in both] == [
        "test_kernels",
        "bench_similarity_topk",
        "bench_similarity_topk@chunked",
    ]
    assert [part.name for part in chosen(parts, ["memcheck"])] == ["memcheck"]
    assert chosen(parts, []) == parts
    with pytest.raises(ValueError, match="bench_nothing"):
        chosen(parts, ["bench_nothing"])


def test_an_unknown_part_is_an_error_of_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--out", str(tmp_path), "--only", "bench_nothing"])
    assert ended.value.code == 2
    assert "bench_nothing" in capsys.readouterr().err


def test_a_relative_path_of_features_is_that_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = gpu_check.read_options(["--out", "out", "--features", "real.npy"])
    assert options.features == tmp_path / "real.npy"


def test_the_list_names_parts_with_their_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--list", "--only", "bench_plmb", "kernels"]) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines == [["45", "kernels:"], ["20", "bench_plmb:"], ["65", "together,"]]


@pytest.mark.parametrize("forks", [True, False], ids=["forked", "command"])
def test_a_part_that_raises_has_failed_and_its_output_is_kept(tmp_path: Path, forks: bool) -> None:
    run = check(tmp_path, forks=forks)
    part = script(tmp_path, "print('before')", "raise ValueError('wrong shape')")
    run.run(part)
    found = record(run.results)
    assert (found["status"], found["exit"]) == ("failed", 1)
    assert "before" in found["output"]
    assert "ValueError: wrong shape" in found["output"]


@pytest.mark.parametrize("forks", [True, False], ids=["forked", "command"])
def test_a_part_that_hangs_is_stopped_with_its_children_and_keeps_its_figures(
    tmp_path: Path, forks: bool
) -> None:
    run = check(tmp_path, forks=forks)
    part = script(
        tmp_path,
        f"print({FIGURE!r}, file=figures, flush=True)",
        "import subprocess",
        "child = subprocess.Popen(['sleep', '600'])",
        "print('child', child.pid, flush=True)",
        "time.sleep(600)",
        limit=4.0,
    )
    begin = time.monotonic()
    run.run(part)
    assert time.monotonic() - begin < 60
    found = record(run.results)
    assert (found["status"], found["exit"]) == ("stopped", None)
    assert [figure["name"] for figure in found["figures"]] == ["one"]
    child = int(found["output"].split("child ")[1].split()[0])
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_part_that_writes_figures_and_ends_has_passed(tmp_path: Path) -> None:
    run = check(tmp_path)
    run.run(script(tmp_path, f"print({FIGURE!r}, file=figures)"))
    found = record(run.results)
    assert (found["status"], len(found["figures"])) == ("passed", 1)
    assert "cut_offs" not in found


@pytest.mark.parametrize("forks", [True, False], ids=["forked", "command"])
def test_a_part_needs_no_installed_project(
    tmp_path: Path, forks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run = check(tmp_path, forks=forks)
    lines = ("import fastreid_al, reid_kernels", f"print({FIGURE!r}, file=figures)")
    run.run(script(tmp_path, *lines))
    assert record(run.results)["status"] == "passed"


def test_a_part_that_measures_nothing_has_failed(tmp_path: Path) -> None:
    run = check(tmp_path)
    run.run(script(tmp_path, "pass"))
    assert record(run.results)["status"] == "failed"


def test_a_part_at_the_end_of_the_call_is_cut_off_and_runs_again(tmp_path: Path) -> None:
    part = script(tmp_path, "time.sleep(600)", limit=9.0)
    run = check(tmp_path, 4.0)
    run.run(part)
    assert record(run.results)["status"] == "cut off"
    again = Results.open(tmp_path / "out", DEVICE, "tiny")
    assert again.pending([part], again=False, failed=False) == [part]


def test_a_part_is_not_started_with_less_than_a_quarter_of_its_limit(tmp_path: Path) -> None:
    run = check(tmp_path, 2.0)
    run.run(script(tmp_path, "pass", limit=30.0))
    assert run.results.content["parts"] == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    line = "raise ModuleNotFoundError(\"No module named 'pytest_benchmark'\")\n"
    (absent / "pytest_benchmark.py").write_text(line)
    path = os.pathsep.join([str(absent), str(ROOT), str(ROOT / "kernels")])
    monkeypatch.setenv("PYTHONPATH", path)
    run = check(tmp_path)
    run.run(script(tmp_path, f"sys.path.insert(0, {str(ROOT / 'bench')!r})", "import harness"))
    found = record(run.results)
    assert found["status"] == "failed"
    assert "No module named 'pytest_benchmark'" in found["output"]


def built(
    folder: Path, monkeypatch: pytest.MonkeyPatch, setup: str, library: str | None
) -> tuple[gpu_check.Check, dict[str, dict[str, Any]]]:
    """A check after the exercises, with a program in place of setup.py."""
    (folder / "setup.py").write_text(setup)
    monkeypatch.setattr(gpu_processes, "ROOT", folder)
    monkeypatch.setattr(gpu_check, "tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(gpu_check, "find_device", lambda: ({**DEVICE, "library": library}, True))
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: name)
    run = check(folder)
    with run.building(DEVICE, needed=True):
        run.run(Part("exercises", "exercises", 20.0, "", "tiny"))
    written = json.loads(run.results.path.read_text())["parts"]
    return run, {part["part"]: part for part in written}


def test_parts_wait_for_the_build_of_the_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = "import sys, time\ntime.sleep(1)\nopen('built', 'w').write(' '.join(sys.argv[1:]))\n"
    run, parts = built(tmp_path, monkeypatch, setup, "/nowhere/native.so")
    assert (tmp_path / "built").read_text() == "-q build_ext --inplace"
    assert parts["build"]["status"] == "passed"
    assert run.library == "/nowhere/native.so"
    # There is no such library, which the exercises find.
    assert parts["exercises"]["status"] == "failed"


def test_a_failed_build_is_reported_and_costs_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, parts = built(tmp_path, monkeypatch, "raise SystemExit('nvcc: error')\n", None)
    assert parts["build"]["status"] == "failed"
    assert "nvcc: error" in parts["build"]["output"]
    assert parts["exercises"]["reason"] == "no extension with a CUDA part"
    assert not run.results.done(["build"])


PARTS = [Part(name, "kernels", 1.0, f"{name}.py", "tiny") for name in ("a", "b", "c", "d", "e")]


def test_what_has_a_result_is_repeated_only_when_asked(tmp_path: Path) -> None:
    results = Results.open(tmp_path, DEVICE, "tiny")
    for part, status in zip(PARTS, ("passed", "failed", "not run", "stopped"), strict=False):
        results.begin(part)
        results.end(part, {"status": status})

    def pending(**asked: bool) -> str:
        again = Results.open(tmp_path, DEVICE, "tiny")
        given = {"again": False, "failed": False, **asked}
        return "".join(part.name for part in again.pending(PARTS, **given))

    assert pending() == "e"
    assert pending(failed=True) == "bde"
    assert pending(again=True) == "abcde"


def test_a_part_during_which_a_call_ended_runs_again_and_after_two_ends_comes_last(
    tmp_path: Path,
) -> None:
    orders = []
    for _ in range(3):
        results = Results.open(tmp_path, DEVICE, "tiny")
        orders.append("".join(p.name for p in results.pending(PARTS, again=False, failed=False)))
        results.begin(PARTS[1])
    assert orders == ["abcde", "abcde", "acdeb"]


def test_results_go_on_for_the_same_device_commit_and_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path(device: str = "NVIDIA H200", scale: str = "tiny") -> Path:
        results = Results.open(tmp_path, {"name": device}, scale)
        results.save()
        return results.path

    monkeypatch.setattr(gpu_results, "commit", lambda: "one")
    first = path()
    assert first.name.startswith("gpu-nvidia-h200-2")
    assert path() == first
    assert path(scale="goals").name == f"{first.stem}-2.json"
    assert path(device="A100").name.startswith("gpu-a100-")
    monkeypatch.setattr(gpu_results, "commit", lambda: "two")
    assert path().name == f"{first.stem}-3.json"


def test_a_file_that_was_cut_in_the_middle_is_left_alone(tmp_path: Path) -> None:
    first = Results.open(tmp_path, DEVICE, "tiny")
    first.save()
    first.path.write_text(first.path.read_text()[:40])
    second = Results.open(tmp_path, DEVICE, "tiny")
    second.save()
    assert second.path != first.path


LOG = """\
collecting ... collected 5 items

tests/gpu/test_kernels.py::test_a PASSED                                 [ 20%]
tests/gpu/test_kernels.py::test_b[a b-1] FAILED                          [ 40%]
tests/gpu/test_kernels.py::test_c SKIPPED (no device)                    [ 60%]
tests/gpu/test_kernels.py::test_d """
SUMMARY = """FAILED                          [ 80%]
tests/gpu/test_kernels.py::test_e FAILED                                 [100%]
=========================== short test summary info ============================
SKIPPED [1] tests/gpu/test_kernels.py:42: no device
FAILED tests/gpu/test_kernels.py::test_b[a b-1] - AssertionError: 1
FAILED tests/gpu/test_kernels.py::test_d - torch.AcceleratorError: CUDA error: an illegal memory...
FAILED tests/gpu/test_kernels.py::test_e - torch.AcceleratorError: CUDA error: an illegal memory...
"""


def test_outcomes_of_tests_are_read_from_output_that_ends_early() -> None:
    found = outcomes(LOG)
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["failures"] == ["tests/gpu/test_kernels.py::test_b[a b-1]"]
    assert found["during"] == "tests/gpu/test_kernels.py::test_d"
    assert "during" not in outcomes(LOG + SUMMARY)


def test_tests_after_one_that_broke_the_device_are_to_run_again() -> None:
    name = "tests/gpu/test_kernels.py::test_{}".format
    done = [name("a"), name("b[a b-1]"), name("c"), name("d")]
    assert breaking_test(LOG + SUMMARY) == done
    # The process ended during the test.
    assert breaking_test(LOG + "\nFatal Python error: Segmentation fault\n") == done
    assert breaking_test(LOG + SUMMARY.replace("CUDA error", "error")) == []


def test_tests_run_again_after_a_test_that_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Names of tests are relative to the root.
    monkeypatch.setattr(gpu_processes, "ROOT", tmp_path)
    path = tmp_path / "test_ends.py"
    path.write_text(
        "import os, pytest\npytestmark = pytest.mark.gpu\n"
        "def test_a(): pass\ndef test_b(): os.kill(os.getpid(), 11)\ndef test_c(): pass\n"
    )
    run = check(tmp_path, forks=True)
    run.run(Part("part", "tests", 60.0, path.name, "tiny"))
    found = record(run.results)
    assert found["status"] == "failed"
    assert found["counts"] == {"passed": 2}, found["output"]
    assert found["during"].endswith("::test_b")


def test_a_file_whose_tests_are_all_skipped_is_not_run_with_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "test_skips.py"
    path.write_text(
        "import pytest\npytestmark = [pytest.mark.gpu, pytest.mark.skip(reason='two devices')]\n"
        "def test_a(): pass\n"
    )
    run = check(tmp_path, forks=True)
    run.run(Part("part", "tests", 60.0, str(path), "tiny"))
    found = record(run.results)
    assert (found["status"], found["reason"]) == ("not run", "two devices")


def test_without_a_device_nothing_runs_and_nothing_is_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--out", str(tmp_path / "out")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "no CUDA device: nothing was run and nothing is claimed" in done.stdout
    assert not (tmp_path / "out").exists()


def figure(ms: float, passed: bool = True, **info: Any) -> dict[str, Any]:
    more = {"device": "NVIDIA H200", "cuda_event_median_ms": ms, "peaks": {"copy": 4300.0}}
    names = {"GB_per_s": 1.0, "TFLOP_per_s": 1.0, "roofline_share": 0.25}
    return {
        "name": f"test[{ms}]",
        "group": f"g, {ms}",
        "median_s": ms / 1e3,
        "passed": passed,
        "extra_info": {**more, **names, **info},
    }


CONTRAST = {"operator": "bank_contrast_loss", "dtype": "bfloat16", "size": "64 x 100,000 x 2,048"}
LABELS = {"step": "pseudo-labels", "form": "ours", "precision": 1.0, "recall": 1.0, "threads": 2}
RESULTS: dict[str, Any] = {
    "device": "NVIDIA H200",
    "date": "2026-12-01T10:00:00+00:00",
    "commit": "abc",
    "parts": [
        {
            "part": "test_kernels",
            "kind": "tests",
            "status": "failed",
            "seconds": 61.0,
            "counts": {"passed": 130, "failed": 1, "skipped": 2},
            "failures": ["tests/gpu/test_kernels.py::test_b"],
            "figures": [],
        },
        {"part": "memcheck", "kind": "exercises", "status": "not run", "reason": "no tool"},
        {
            "part": "bench_bank_contrast_loss",
            "kind": "bench",
            "status": "stopped",
            "seconds": 50.0,
            "figures": [
                figure(0.9, form="eager", **CONTRAST, peak_extra_MiB=9.0),
                figure(0.456, form="ours", **CONTRAST, peak_extra_MiB=1.5),
                figure(0.01, False, form="ours", **CONTRAST, peak_extra_MiB=1.5),
                figure(30.0, n=32_621, dim=2_048, **LABELS),
                figure(90_000.0, n=1_000_000, dim=512, **LABELS),
            ],
        },
    ],
}


def cells(text: str, start: str) -> list[list[str]]:
    """The cells of the rows of a table that begin with a word."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_report_sets_model_measurement_and_goal_side_by_side() -> None:
    text = gpu_report.text(RESULTS)
    row = cells(text, "bank_contrast_loss | B = 64")[0]
    assert row[2:] == ["0.392", "0.456", "0.152", "3.00", "25%"]
    other = cells(text, "bank_contrast_loss | B = 256")[0]
    assert other[3] == other[5] == other[6] == "not measured"
    assert cells(text, "pseudo-labels | n = 32,621")[0][2:6] == ["-", "30", "1e+03", "0.03"]
    eager = next(row for row in cells(text, "bank_contrast_loss") if row[2] == "eager")
    assert eager[3:] == ["1.97 x as fast", "at least 2 x as fast", "no"]


def test_the_report_begins_with_correctness_and_names_the_worst_gaps() -> None:
    text = gpu_report.text(RESULTS)
    head = text.index("## Correctness")
    assert head < text.index("## Model, measurement and goal") < text.index("## Everything else")
    assert "130 tests passed" in text
    assert "`tests/gpu/test_kernels.py::test_b`" in text
    assert "memcheck: not run, no tool" in text
    assert "benchmark with a wrong result: `test[0.01]`" in text
    assert (
        "Worst gaps to the goals: bank_contrast_loss at B = 64, n = 1e5, D = 2,048, bfloat16: "
        "3.0 x; pseudo-labels at n = 1e6, D = 512: 1.5 x." in text
    )


def test_a_figure_that_the_report_does_not_know_does_not_end_the_check(tmp_path: Path) -> None:
    results = Results.open(tmp_path, DEVICE, "tiny")
    results.begin(PARTS[0])
    results.end(PARTS[0], {"status": "passed", "figures": [{"median_s": 1.0, "extra_info": {}}]})
    assert json.loads(results.path.read_text())["parts"][0]["status"] == "passed"
    assert "could not be made" in results.path.with_suffix(".md").read_text()


def test_every_row_of_the_model_that_has_a_goal_is_in_the_report() -> None:
    keys = {(goal.operator, goal.shape) for goal in gpu_report.GOALS}
    assert {row.key for row in gpu_model.rows() if row.goal is not None} <= keys


def test_kernels_stand_beside_the_model() -> None:
    shape = gpu_model.CONTRAST[64]
    info = {"step": "kernels", "form": "bank_contrast_loss", "problem": shape, "launches": 13}
    parts = [
        {
            "part": "kernels",
            "kind": "kernels",
            "status": "passed",
            "figures": [figure(0.02, kernel="weighted_kernel", **info)],
        }
    ]
    text = gpu_report.text({**RESULTS, "parts": parts})
    model = 1e3 * gpu_model.kernels()["weighted_kernel", shape]
    row = next(row for row in cells(text, "bank_contrast_loss") if row[2] == "weighted_kernel")
    assert row[3:] == [f"{model:.3g}", "0.02", "13"]
