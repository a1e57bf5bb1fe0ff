"""bench/report.py and bench/growth.py: results of either kind become a table, a roofline, a plot of
growth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "bench" / "report.py"


def operator(form: str, ms: float, **more: Any) -> dict[str, Any]:
    """A figure of one operator, as the benchmarks note it."""
    info = {
        "operator": "similarity_topk",
        "form": form,
        "size": "4 x 90 x 8, k = 3",
        "dtype": "float32",
        "device": "cpu",
        "GB_per_s": 12.5,
        "TFLOP_per_s": 0.0405,
        "operations_per_byte": 64.0,
        "roofline_share": 0.456,
        "peaks": {"copy": 20.0, "float32": 0.08},
        "peak_extra_MiB": 1234.5,
        "error_vs_float64": 1.23e-7,
        "error_of_eager": 2.5e-7,
        **more,
    }
    return {
        "name": f"test[{form}]",
        "group": "g",
        "stats": {"median": ms / 1e3},
        "extra_info": info,
    }


OTHER = {
    "name": "test_ranking[500-blocks]",
    "group": "ranking, 500",
    "stats": {"median": 0.25},
    "extra_info": {"device": "cpu", "peak_extra_MiB": 20.0},
}


def pseudo_labels(
    form: str, seconds: float, mib: float, n: int = 12_936, **more: Any
) -> dict[str, Any]:
    """A figure of the step, as its benchmark notes it."""
    info = {
        "step": "pseudo-labels",
        "form": form,
        "n": n,
        "dim": 512,
        "device": "cpu",
        "threads": 2,
        "peak_extra_MiB": mib,
        "precision": 0.973,
        "recall": 0.418,
        **more,
    }
    group = f"pseudo-labels, {n:,} x 512"
    return {
        "name": f"test[{form}]",
        "group": group,
        "stats": {"median": seconds},
        "extra_info": info,
    }


def report(folder: Path, *contents: Any) -> subprocess.CompletedProcess[str]:
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(json.dumps(content))
    command = [sys.executable, str(REPORT), *map(str, paths), "--out", str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def rows(folder: Path) -> list[list[str]]:
    """The cells of the report's lines."""
    lines = (folder / "out" / "report.md").read_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]


def test_an_operator_stands_beside_eager_with_its_rates_and_errors(tmp_path: Path) -> None:
    done = report(
        tmp_path, {"benchmarks": [operator("eager", 30.0), operator("ours", 12.0), OTHER]}
    )
    assert done.returncode == 0, done.stderr
    head, eager, ours, _, other = rows(tmp_path)
    assert head[3:6] == ["implementation", "median ms", "times eager's speed"]
    assert eager[3:6] == ["eager", "30.0", "1.00"]
    assert ours[:6] == ["similarity_topk", "4 x 90 x 8, k = 3", "float32", "ours", "12.0", "2.50"]
    assert ours[6:] == ["12.5", "0.0405", "46 %", "1,234", "1.2e-07 (2.5e-07)"]
    assert other == ["ranking, 500", "500-blocks", "250", "20.0"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "copy 20.0 GB/s, float32 0.0800 TFLOP/s" in text
    assert "(roofline-cpu.png)" in text
    assert (tmp_path / "out" / "roofline-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_gpu_check_are_read_by_the_device_s_own_clock(tmp_path: Path) -> None:
    figures = [
        operator("eager", 9.0),
        operator("ours", 9.0, cuda_event_median_ms=3.0, dtype="bfloat16"),
    ]
    for figure in figures:
        figure["median_s"] = figure.pop("stats")["median"]
        figure["extra_info"]["device"] = "NVIDIA H200"
    content = {
        "device": "NVIDIA H200",
        "parts": [
            {"part": "test_kernels", "figures": []},
            {"part": "proven", "figures": [{"name": "share", "median_s": None}]},
            {"part": "bench_similarity_topk", "figures": figures},
        ],
    }
    done = report(tmp_path, content, {"benchmarks": [OTHER]})
    assert done.returncode == 0, done.stderr
    _, eager, ours, *_ = rows(tmp_path)
    assert (eager[4], ours[2], ours[4]) == ("9.00", "bfloat16", "3.00")
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["roofline-nvidia-h200.png"]


def test_a_group_without_eager_has_no_ratio(tmp_path: Path) -> None:
    assert report(tmp_path, {"benchmarks": [operator("ours", 2.0)]}).returncode == 0
    assert rows(tmp_path)[1][5] == "-"


def test_what_holds_no_figures_is_refused_by_name(tmp_path: Path) -> None:
    assert "0.json is not a results file" in report(tmp_path, {"runs": 3}).stderr
    assert "no figures" in report(tmp_path, {"benchmarks": []}).stderr


def test_pseudo_labels_stand_beside_the_dense_form(tmp_path: Path) -> None:
    ours = pseudo_labels("ours", 1.25, 100.0, neighbours_s=0.8, graph_s=0.43, clusters_s=0.0204)
    alone = pseudo_labels("ours", 100.0, 2000.0, n=200_000)
    done = report(
        tmp_path,
        {
            "benchmarks": [
                ours,
                alone,
                pseudo_labels("dense", 12.0, 1500.0, labels_differing=0),
                OTHER,
            ]
        },
    )
    assert done.returncode == 0, done.stderr
    _, both, single, _, other = rows(tmp_path)
    assert both[:4] == ["12,936 x 512", "2", "1.25", "0.80 + 0.43 + 0.020"]
    assert both[4:] == ["12.0", "9.60", "100", "1,500", "6.7 %", "0", "0.97, 0.42"]
    assert single == [
        "200,000 x 512",
        "2",
        "100",
        "-",
        "-",
        "-",
        "2,000",
        "-",
        "-",
        "-",
        "0.97, 0.42",
    ]
    assert other[0] == "ranking, 500"


def nnct(form: str, seconds: float, mib: float, **more: Any) -> dict[str, Any]:
    """A figure of one of the forms of NNCT's step, or of its network, as the benchmark notes it."""
    problem = "resnet50 256 x 128, 64 of 32,621"
    info = {
        "step": "NNCT",
        "form": form,
        "problem": problem,
        "device": "cpu",
        "threads": 1,
        "peak_extra_MiB": mib,
        **more,
    }
    return {
        "name": f"test[{form}]",
        "group": f"NNCT step, {problem}",
        "stats": {"median": seconds},
        "extra_info": info,
    }


PARTS = {
    "labels_s": 0.5,
    "neighbours_s": 0.25,
    "losses_s": 0.2,
    "updates_s": 0.05,
    "labels_per_image": 21.2,
}


def test_the_parts_of_an_nnct_step_stand_beside_the_published_ones_and_the_network(
    tmp_path: Path,
) -> None:
    figures = [
        nnct("ours", 1.0, 150.0, label_memory_MB=133.0, **PARTS),
        nnct(
            "eager, as published", 8.0, 90.0, label_memory_MB=4257.0, **(PARTS | {"labels_s": 7.5})
        ),
        nnct("network", 20.0, 6000.0),
    ]
    done = report(tmp_path, {"benchmarks": figures})
    assert done.returncode == 0, done.stderr
    _, line = rows(tmp_path)
    assert line[:4] == [
        "resnet50 256 x 128, 64 of 32,621",
        "1",
        "0.50 + 0.25 + 0.20 + 0.050",
        "7.5 + 0.25 + 0.20 + 0.050",
    ]
    assert line[4:9] == ["1.00", "8.00", "8.00", "20.0", "21.0, 28.0"]
    assert line[9:] == ["150", "90.0", "133, 4,257", "21.2"]


def test_an_nnct_step_without_the_published_form_or_the_network_has_dashes(tmp_path: Path) -> None:
    assert report(tmp_path, {"benchmarks": [nnct("ours", 1.0, 150.0)]}).returncode == 0
    assert rows(tmp_path)[1][2:] == [
        "-",
        "-",
        "1.00",
        "-",
        "-",
        "-",
        "-, -",
        "150",
        "-",
        "-, -",
        "-",
    ]


def epoch(**more: Any) -> dict[str, Any]:
    """A figure of a whole epoch, as its benchmark notes it."""
    problem = "ucal, resnet50 256 x 128, 800 x 64 of 32,621"
    info = {
        **{
            "step": "epoch",
            "problem": problem,
            "device": "cpu",
            "threads": 1,
            "precision": "bf16",
            "epoch_s": 20.0,
        },
        **{
            "extraction_s": 3.5,
            "clustering_s": 0.75,
            "questions_s": 0.5,
            "data_s": 0.25,
            "network_s": 14.0,
        },
        **{
            "memory_s": 0.5,
            "optimizer_s": 0.45,
            "training_images_per_s": 3400.0,
            "extraction_images_per_s": 9320.3,
        },
        **{"ranking_s": 1.5, "peak_MiB": 9876.5},
        **more,
    }
    return {
        "name": "test_epoch",
        "group": f"epoch, {problem}",
        "stats": {"median": 33.0},
        "extra_info": info,
    }


def test_an_epoch_stands_beside_the_plain_loop_with_the_goals_it_misses(tmp_path: Path) -> None:
    rates = {"training_images_per_s": 500.0, "extraction_images_per_s": 2000.0}
    plain = {
        **rates,
        **{f"ours_{name}": 7 * rate for name, rate in rates.items()},
        "epoch_s": 118.0,
        "peak_MiB": 2e4,
    }
    goals = {"training_images_per_s": {"met": False}, "epoch_s": {"met": True}}
    share = {
        "step": "share",
        "problem": "resnet18",
        "device": "cpu",
        "threads": 2,
        "share": 0.0512,
        "goal": 0.1,
    }
    share |= {"data": 0.5, "memory": 0.1, "optimizer": 0.4, "network": 18.5}
    alone = {"name": "test_share", "group": "share", "stats": {"median": 21.0}, "extra_info": share}
    done = report(
        tmp_path, {"benchmarks": [epoch(plain=plain, goals=goals), epoch(), alone, OTHER]}
    )
    assert done.returncode == 0, done.stderr
    _, beside, without, _, steps, _, other = rows(tmp_path)
    assert beside[1:5] == [
        "bf16, 1",
        "3.5 + 0.75 + 0.50 + 0.25 + 14 + 0.50 + 0.45",
        "20.0, 118",
        "5.90",
    ]
    assert beside[5:8] == ["3,400; 3,500, 500", "9,320; 14,000, 2,000", "1.50"]
    assert beside[8:] == ["9,876, 20,000", "1 of 2, not training_images_per_s"]
    assert without[3:6] == ["20.0, -", "-", "3,400; -, -"]
    assert without[8:] == ["9,876, -", "-"]
    assert steps == ["resnet18", "2", "0.50 + 0.10 + 0.40", "18.5", "5.1 %, 10 %"]
    assert other[0] == OTHER["group"]


@pytest.mark.slow
def test_growth_is_measured_by_size_and_drawn_and_reported(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="the benchmarks need pytest-benchmark")
    figures, plot = tmp_path / "growth.json", tmp_path / "growth.png"
    command = [
        sys.executable,
        str(ROOT / "bench" / "growth.py"),
        "--json",
        str(figures),
        "--plot",
        str(plot),
    ]
    command += ["--sizes", "90", "60", "--dim", "16", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    content = json.loads(figures.read_text())
    assert [(b["extra_info"]["n"], b["extra_info"]["form"]) for b in content["benchmarks"]] == [
        (60, "ours"),
        (90, "ours"),
    ]
    for part in content["benchmarks"]:
        info = part["extra_info"]
        assert part["stats"]["median"] > 0
        assert info["threads"] == 1
        assert info["peak_extra_MiB"] >= 0
        assert part["stats"]["median"] >= info["neighbours_s"] + info["clusters_s"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert report(tmp_path, content).returncode == 0
    assert [row[1] for row in rows(tmp_path)[1:]] == ["60x16-ours", "90x16-ours"]
