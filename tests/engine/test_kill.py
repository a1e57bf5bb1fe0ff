"""SIGKILL at random instants: `--resume` always ends in the weights of the undisturbed run."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import torch
from tiny import tiny_config

from fastreid_al.config import RunConfig
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.methods import run_training

KILLS = 20


def train(config: RunConfig, threads: int) -> None:
    """What a child process does: begin, or go on from whatever is there."""
    torch.set_num_threads(threads)
    run_training(config, resume=True)


def test_killed_at_twenty_random_instants_the_weights_are_those_of_the_undisturbed_run(tmp_path: Path) -> None:
    # A fork server that has imported everything makes a fresh process in milliseconds, so that kills fall into the run.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastreid_al.methods", "tiny"])
    threads = torch.get_num_threads()

    def start(run: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=train, args=(tiny_config(tmp_path / run), threads))
        process.start()
        return process

    start("warm").join()
    began = time.monotonic()
    whole = start("whole")
    whole.join()
    length = time.monotonic() - began
    assert whole.exitcode == 0
    expected = load_checkpoint(tmp_path / "whole" / "last.pt")["model"]

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
        found = load_checkpoint(tmp_path / run / "last.pt")["model"]
        assert all(torch.equal(found[name], expected[name]) for name in expected), f"kill {kill}"
    assert landed >= KILLS // 2
