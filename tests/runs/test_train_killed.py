"""SIGKILL at random instants: a resumed run ends in the same weights, and no answer is lost."""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastreid_al.answers import Ledger
from fastreid_al.config import QuestionConfig, RunConfig
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.runs import run_training
from tests.support.tiny import tiny_config


def asking_config(run_dir: Path) -> RunConfig:
    """A tiny run that asks questions from its second epoch on."""
    return replace(
        tiny_config(run_dir), ask="gain", questions=QuestionConfig(start=1, per_epoch=15)
    )


def answers(run_dir: Path) -> list[tuple[int, int, str]]:
    """The pairs that were asked about, in their order."""
    with Ledger.open(str(run_dir / "answers.sqlite"), write=False) as ledger:
        assert ledger.integrity() == []
        return [(e.epoch, e.left, e.right, e.verdict) for e in ledger.events()]


def train(config: RunConfig, threads: int) -> None:
    """Start a run in a child process, or resume it from whatever is there."""
    torch.set_num_threads(threads)
    run_training(config, resume=True)


#: Kills while the run trains.
KILLS = 6


@pytest.mark.slow
def test_a_run_killed_at_random_instants_resumes_to_the_same_weights(tmp_path: Path) -> None:
    # A fork server that has imported everything starts a process in milliseconds, so that kills
    # fall into the run.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *("fastreid_al.runs.train", "fastreid_al.active.strategies.gain"),
            *("matplotlib.backends.backend_agg", "sqlalchemy.dialects.sqlite", __name__),
        ]
    )
    threads = torch.get_num_threads()

    def start(run: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=train, args=(asking_config(tmp_path / run), threads))
        process.start()
        return process

    start("warm").join()
    began = time.monotonic()
    whole = start("whole")
    whole.join()
    length = time.monotonic() - began
    assert whole.exitcode == 0
    expected = load_checkpoint(tmp_path / "whole" / "last.pt")["model"]
    asked = answers(tmp_path / "whole")
    assert len(asked) > 10

    instants = random.Random(0)
    landed = 0
    for kill in range(KILLS):
        run = f"killed{kill}"
        process = start(run)
        process.join(instants.uniform(0, length))
        process.kill()
        process.join()
        landed += process.exitcode == -9
        resumed = start(run)
        resumed.join()
        assert resumed.exitcode == 0
        got = load_checkpoint(tmp_path / run / "last.pt")["model"]
        assert all(torch.equal(got[name], expected[name]) for name in expected), f"kill {kill}"
        assert answers(tmp_path / run) == asked, f"kill {kill}"
    assert landed >= KILLS // 2
