"""The folder of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastreid_al.config import RunConfig
from fastreid_al.errors import CheckpointError
from fastreid_al.runs import run_training


def test_a_folder_that_cannot_be_written_is_refused_before_decoding(
    config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        CheckpointError, match=r"cannot write into .*name another folder with `run_dir`"
    ):
        run_training(replace(config, run_dir=str(tmp_path / "file")))
