"""People answer on a page while a run trains, and the page and the run are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from fastreid_al.answers.ledger import Ledger
from fastreid_al.config import QuestionConfig, RunConfig, WebConfig
from fastreid_al.engine.checkpoint import load_checkpoint
from fastreid_al.engine.console import Reporter
from fastreid_al.runs import run_training
from fastreid_al.runs.data import read_set
from tests.support.tiny import tiny_config
from tests.support.web_people import WebPerson, end_server, free_port, server_process

pytest.importorskip("httpx")
pytest.importorskip("starlette")

#: Kills of the page and of the run, each.
KILLS = int(os.environ.get("FASTREID_AL_KILLS", "4"))


def config_with(run_dir: Path, annotator: str, port: int = 0, per_epoch: int = 12) -> RunConfig:
    return replace(
        tiny_config(run_dir),
        model="resnet18",
        ask="gain",
        annotator=annotator,
        questions=QuestionConfig(start=1, per_epoch=per_epoch, window=4),
        web=WebConfig(port=port),
    )


def identities(config: RunConfig) -> dict[str, int]:
    images = read_set(config, config.dataset, Reporter())
    return {
        record.path.relative_to(images.root).as_posix(): record.identity for record in images.train
    }


@contextmanager
def people(port: int, config: RunConfig) -> Iterator[list[WebPerson]]:
    ledger = Path(config.run_dir) / "answers.sqlite"
    truth = identities(config)
    found = [WebPerson(port, ledger, truth, seed) for seed in (0, 1)]
    for person in found:
        person.start()
    try:
        yield found
    finally:
        for person in found:
            person.stop()
        end_server(ledger)


def check(config: RunConfig, expected: Path, found: list[WebPerson]) -> None:
    """Every acknowledged answer is in force, and the weights are those of an oracle's answers."""
    with Ledger.open(str(Path(config.run_dir) / "answers.sqlite"), write=False) as ledger:
        assert ledger.integrity() == []
        events = [event for event in ledger.events() if event.kind == "answer"]
    written = {(event.question, event.verdict) for event in events}
    for person in found:
        assert set(person.acknowledged.values()) <= written
    # No question was decided by both.
    assert len({event.question for event in events}) == len(events)
    weights = [
        load_checkpoint(path / "last.pt")["model"] for path in (expected, Path(config.run_dir))
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_people_on_a_page_train_the_weights_that_an_oracle_trains(tmp_path: Path) -> None:
    oracle = config_with(tmp_path / "oracle", "oracle")
    run_training(oracle)
    port = free_port()
    config = config_with(tmp_path / "people", "web", port)
    with people(port, config) as found:
        run_training(config)
        assert server_process(Path(config.run_dir) / "answers.sqlite") is None
    assert sum(len(person.acknowledged) for person in found) >= 12
    check(config, tmp_path / "oracle", found)


def train(config: RunConfig, threads: int) -> None:
    torch.set_num_threads(threads)
    run_training(config, resume=True)


def acknowledged(found: list[WebPerson]) -> int:
    return sum(len(person.acknowledged) for person in found)


def wait_for_kill(process: BaseProcess, found: list[WebPerson], draw: random.Random) -> None:
    """Wait until some answers more are acknowledged; in one case of five for a random time."""
    if draw.random() < 0.2:
        process.join(draw.uniform(0.0, 3.0))
        return
    enough = acknowledged(found) + draw.randint(1, 8)
    while process.is_alive() and acknowledged(found) < enough:
        process.join(0.02)
    process.join(draw.uniform(0.0, 0.05))


@pytest.mark.slow
def test_nothing_is_lost_when_the_page_and_the_run_are_killed(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    # Two epochs ask questions, about 15 for each kill.
    per_epoch = 15 * KILLS
    oracle = config_with(tmp_path / "oracle", "oracle", per_epoch=per_epoch)
    # The default set has 64 images, which a few hundred answers know.
    more = 1 + KILLS // 8
    synthetic = replace(oracle.synthetic, train_identities=8 * more, train_images=64 * more)
    oracle = replace(oracle, synthetic=synthetic)
    run_training(oracle)
    port = free_port()
    config = config_with(tmp_path / "people", "web", port, per_epoch=per_epoch)
    config = replace(config, synthetic=synthetic)
    ledger = Path(config.run_dir) / "answers.sqlite"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastreid_al.runs.train", "tests.support.tiny", __name__])
    draw = random.Random(0)
    kills = {"run": 0, "page": 0}
    with people(port, config) as found:
        while True:
            process = context.Process(target=train, args=(config, threads))
            process.start()
            while process.is_alive():
                wait_for_kill(process, found, draw)
                left = [victim for victim, count in kills.items() if count < KILLS]
                if not left:
                    process.join()
                if not process.is_alive():
                    continue
                victim = draw.choice(left)
                page = server_process(ledger)
                if victim == "run":
                    process.kill()
                elif page is None:
                    continue
                else:
                    os.kill(page, signal.SIGKILL)
                kills[victim] += 1
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            time.sleep(0.05)
    print(f"kills {kills}, acknowledged answers {acknowledged(found)}")
    assert min(kills.values()) >= KILLS // 2, kills
    check(config, tmp_path / "oracle", found)
