"""Checkpoints of a single process: full disks, damaged files, other formats."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastreid_al.config import RunConfig
from fastreid_al.engine import checkpoint
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.errors import CheckpointError
from fastreid_al.runs import run_training


def test_a_full_disk_leaves_the_old_checkpoint(config: RunConfig) -> None:
    """A file size limit makes the kernel refuse the write, as a full disk does."""
    run_training(replace(config, epochs=1))
    run = Path(str(config.run_dir))
    before = (run / "last.pt").read_bytes()
    program = f"""
import resource, signal
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from fastreid_al.engine.checkpoint import save_checkpoint
import torch
from fastreid_al.cli import run_main
run_main(lambda: save_checkpoint(Path({str(run / "last.pt")!r}), {{"model": torch.zeros(10**6)}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "could not write" in done.stderr
    assert "the one before it is intact" in done.stderr
    assert (run / "last.pt").read_bytes() == before
    assert [p for p in run.iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"junk"])
def test_a_damaged_checkpoint_is_named(config: RunConfig, content: bytes) -> None:
    path = Path(str(config.run_dir))
    path.mkdir()
    (path / "last.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        run_training(config, resume=True)


def test_a_checkpoint_of_a_newer_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        save_checkpoint(tmp_path / "x.pt", {"model": {}})
    with pytest.raises(CheckpointError, match="newer fastreid_al"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_checkpoint_of_the_first_format_is_refused_with_advice(config: RunConfig) -> None:
    run = Path(str(config.run_dir))
    run.mkdir()
    torch.save({"format": 1, "model": {}, "optimizer": {}, "facts": {}}, run / "last.pt")
    with pytest.raises(CheckpointError, match="an earlier version of fastreid_al") as refused:
        run_training(config, resume=True)
    assert "resume it with that version" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
