"""Signals that stop a run."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from fastreid_al.config import RunConfig
from fastreid_al.engine import Interrupted, TrainingLoop
from fastreid_al.runs import run_training


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of the given step."""
    original, done = TrainingLoop._augmented, [0]

    def counting(*args: Any) -> Any:
        done[0] += 1
        if done[0] == steps:
            os.kill(os.getpid(), signum)
        return original(*args)

    monkeypatch.setattr(TrainingLoop, "_augmented", counting)


def test_ctrl_c_saves_like_sigterm_and_handlers_are_restored(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    stop_after(monkeypatch, 3, signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        run_training(config)
    assert stopped.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
