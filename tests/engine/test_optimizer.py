"""The optimizer of a run, and changed settings of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastreid_al.config import RunConfig
from fastreid_al.runs import run_training


@pytest.mark.slow
def test_a_lower_learning_rate_on_resume_is_used(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    lower = replace(config, optimizer=replace(config.optimizer, lr=1e-5))
    resumed = run_training(lower, resume=True)
    assert [r["lr"] for r in resumed.history[1:]] == pytest.approx([1e-3, 1e-5, 1e-6])
