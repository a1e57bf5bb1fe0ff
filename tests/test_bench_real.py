"""The scripts of bench/real, on the synthetic set at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench" / "real"))

import oracle_edits  # noqa: E402

from fastreid_al.metrics import cluster_scores  # noqa: E402


def clusters() -> tuple[torch.Tensor, torch.Tensor]:
    """Labels with fragments, wrong images and images outside, and identities."""
    draw = torch.Generator().manual_seed(1)
    identities = torch.randint(0, 20, (400,), generator=draw)
    labels = 3 * identities + torch.randint(0, 3, (400,), generator=draw)
    labels[::9] = 5
    labels[torch.rand(400, generator=draw) < 0.2] = -1
    return labels, identities


@pytest.mark.parametrize("name", oracle_edits.EDITS)
def test_a_correction_improves_what_it_corrects(name: str) -> None:
    labels, identities = clusters()
    before = cluster_scores(labels, identities)
    after = cluster_scores(oracle_edits.EDITS[name](labels, identities), identities)
    assert after.bcubed_f1 is not None and before.bcubed_f1 is not None
    if name in ("split", "drop", "split-merge"):
        assert after.bcubed_precision == after.class_purity == 1
    if name in ("merge", "noise", "split-merge", "true-10", "true-30"):
        assert after.bcubed_f1 > before.bcubed_f1


def test_split_and_merge_leave_images_outside_clusters_there() -> None:
    labels, identities = clusters()
    for name in ("split", "merge", "drop", "split-merge"):
        edited = oracle_edits.EDITS[name](labels, identities)
        assert (edited[labels < 0] == -1).all()
    assert (oracle_edits.EDITS["noise"](labels, identities) >= 0).all()


@pytest.mark.slow
def test_arms_train_and_are_summarised(tmp_path: Path) -> None:
    settings = {
        "synthetic.train_identities": 8,
        "synthetic.train_images": 64,
        "synthetic.test_identities": 6,
        "synthetic.query_images": 12,
        "synthetic.gallery_images": 36,
        "synthetic.height": 64,
        "batch.size": 16,
        "cluster.k1": 8,
        "cluster.k2": 2,
    }
    command = [
        *(sys.executable, "bench/real/run.py", "--dataset", "synthetic"),
        *("--out", str(tmp_path / "out"), "--sizes", "48x24", "--seeds", "0"),
        *("--arms", "base,linkage-white,gain,linked-oracle-merge,nnct-1"),
        *("--epochs", "2", "--iterations", "3", "--start", "1", "--per-epoch", "5"),
        *(f"--set={key}={json.dumps(value)}" for key, value in settings.items()),
    ]
    environment = {**os.environ, "FASTREID_AL_CACHE": str(tmp_path / "cache")}
    for _ in range(2):  # The second time every run is finished.
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
    results = {
        r["arm"]: r["values"] for r in json.loads((tmp_path / "out/results.json").read_text())
    }
    assert set(results) == {*("base", "linkage-white", "gain", "linked-oracle-merge", "nnct-1")}
    assert all(0 < values["mAP"][0] <= 1 for values in results.values())
    assert results["gain"]["questions_total"] == [5]
    table = (tmp_path / "out/results.md").read_text()
    assert "| 48x24 | gain | 1 |" in table
