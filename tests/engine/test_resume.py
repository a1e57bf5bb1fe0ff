"""What a run continues from, and which checkpoints do not fit it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastreid_al.config import MemoryConfig, RunConfig
from fastreid_al.errors import CheckpointError
from fastreid_al.runs import run_training
from fastreid_al.synthetic.dataset import cached_synthetic


def test_checkpoint_of_another_model_or_method_is_refused(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    with pytest.raises(CheckpointError, match=r"`model` tiny, the run asks for `model` resnet18"):
        run_training(replace(config, model="resnet18"), resume=True)
    with pytest.raises(
        CheckpointError, match=r"`method` ucal, the run asks for `method` supervised"
    ):
        run_training(replace(config, method="supervised"), resume=True)
    shutil.copy(Path(str(config.run_dir)) / "best.pt", Path(str(config.run_dir)) / "last.pt")
    with pytest.raises(CheckpointError, match=r"only weights"):
        run_training(config, resume=True)


def test_settings_that_the_state_depends_on_may_not_change_on_resume(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    with pytest.raises(
        CheckpointError, match=r"`memory.kind` instance, the run asks for `memory.kind` cluster"
    ):
        run_training(replace(config, memory=MemoryConfig(kind="cluster")), resume=True)
    with pytest.raises(
        CheckpointError, match=r"`batch.iterations` 4, the run asks for `batch.iterations` 2"
    ):
        run_training(replace(config, batch=replace(config.batch, iterations=2)), resume=True)


@pytest.fixture
def copied(config: RunConfig, tmp_path: Path) -> RunConfig:
    """The tiny set, copied so that it can be damaged."""
    shutil.copytree(cached_synthetic(config.synthetic), tmp_path / "MSMT17_V1")
    return replace(config, dataset="msmt17", data_root=str(tmp_path))


def train_images(config: RunConfig) -> list[Path]:
    return sorted((Path(config.data_root) / "MSMT17_V1" / "train").rglob("*.jpg"))


def test_changed_images_are_refused_on_resume_with_the_difference(copied: RunConfig) -> None:
    run_training(replace(copied, epochs=1))
    query = sorted((Path(copied.data_root) / "MSMT17_V1" / "test").rglob("*.jpg"))[0]
    original = query.read_bytes()
    query.write_bytes(original + b" ")
    with pytest.raises(CheckpointError, match=rf"1 changed \(first: test/.*{query.name}\)"):
        run_training(copied, resume=True)
    # At equal size and time of modification.
    changed = bytearray(original)
    changed[len(changed) // 2] ^= 1
    before = query.stat()
    query.write_bytes(changed)
    os.utime(query, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointError, match=rf"1 changed \(first: test/.*{query.name}\)"):
        run_training(copied, resume=True)
    query.write_bytes(original)
    first, second, *_ = train_images(copied)
    Image.new("RGB", (20, 40)).save(first)
    with pytest.raises(
        CheckpointError,
        match=rf"not those the run began with: 1 changed \(first: train/.*{first.name}\)",
    ):
        run_training(copied, resume=True)
    second.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"1 missing \(first: .*\), 1 changed"):
        run_training(copied, resume=True)
