"""bench/proven_share.py: which features of a file are searched."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("pytest_benchmark", reason="the benchmarks need pytest-benchmark")
sys.path.insert(0, str(ROOT / "bench"))

from proven_share import load_features  # noqa: E402

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def saved(folder: Path, suffix: str) -> Path:
    """The rows in a file of a format, with identities where it holds several arrays."""
    path = folder / f"features{suffix}"
    identities = np.arange(3)
    if suffix == ".npy":
        np.save(path, ROWS)
    elif suffix == ".npz":
        np.savez(path, rows=ROWS, identities=identities)
    elif suffix == ".safetensors":
        header = b'{"rows":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}'
        path.write_bytes(len(header).to_bytes(8, "little") + header + ROWS.tobytes())
    else:
        rows = torch.from_numpy(ROWS)
        torch.save({"features": rows, "other": rows + 1, "ids": torch.arange(3)}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_features_of_each_format_are_loaded(tmp_path: Path, suffix: str) -> None:
    assert load_features(saved(tmp_path, suffix)).tolist() == ROWS.tolist()


def test_a_file_with_several_matrices_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "two.npz"
    np.savez(path, one=ROWS, two=ROWS)
    with pytest.raises(ValueError, match=r"two\.npz: got 2 matrices of floats"):
        load_features(path)
