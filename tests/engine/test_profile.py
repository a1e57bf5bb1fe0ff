"""What a run records of its speed: phases, images a second, TensorBoard, a profile."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastreid_al.config import BatchConfig, RunConfig
from fastreid_al.runs import run_training


@pytest.mark.slow
def test_a_profiled_run_writes_phases_trace_table_and_tensorboard(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = BatchConfig(size=16, iterations=12)
    config = replace(
        config, epochs=1, batch=batch, evaluate_every=0, tensorboard=True, profile=True
    )
    finished = run_training(config)
    [record] = finished.history
    seconds, speed = record["seconds"], record["speed"]
    assert {
        "labels",
        "training",
        "extraction",
        "clustering",
        "data",
        "network",
        "memory",
        "optimizer",
    } <= seconds.keys()
    phases = sum(seconds[name] for name in ("data", "network", "memory", "optimizer"))
    assert 0.5 * seconds["training"] < phases <= seconds["training"] + 0.01
    assert speed["images_per_second"] == pytest.approx(12 * 16 / seconds["training"], rel=0.05)
    assert 0.05 < speed["memory_gb"] < 64
    assert "images/s" in capsys.readouterr().out

    trace = json.loads((finished.folder / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"data", "network", "memory", "optimizer"} <= names
    table = (finished.folder / "profile.txt").read_text()
    assert "clustering" in table and "in all" in table and "aten::" in table

    board = EventAccumulator(str(finished.folder / "tensorboard"))
    board.Reload()
    assert {"loss", "mAP", "seconds/network", "speed/images_per_second"} <= set(
        board.Tags()["scalars"]
    )
    [scalar] = board.Scalars("mAP")
    assert (scalar.step, scalar.value) == (1, pytest.approx(record["mAP"], rel=1e-6))
