"""Signals that stop a run."""

from __future__ import annotations

import os
import signal

import pytest

from fastreid_al.config import RunConfig
from fastreid_al.engine import Interrupted, StopSignal
from fastreid_al.runs import run_training
from tests.support.tiny import stop_after


def test_ctrl_c_saves_like_sigterm_and_handlers_are_restored(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    stop_after(monkeypatch, 3, signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        run_training(config)
    assert stopped.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("ends_phases", [True, False])
def test_a_signal_ends_a_phase_only_where_phases_may_end(ends_phases: bool) -> None:
    stop = StopSignal(ends_phases)
    progress: list[tuple[int, int]] = []
    update = stop.checked(lambda done, total: progress.append((done, total)))
    with stop.listening():
        update(1, 3)
        os.kill(os.getpid(), signal.SIGTERM)
        if ends_phases:
            with pytest.raises(Interrupted):
                update(2, 3)
        else:
            update(2, 3)
    assert progress == [(1, 3), (2, 3)]
    with pytest.raises(Interrupted) as stopped:
        stop.check()
    assert stopped.value.signum == signal.SIGTERM


def test_a_second_ctrl_c_has_the_default_handler() -> None:
    stop = StopSignal()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
