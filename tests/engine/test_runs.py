"""Whole runs: what they write, how they stop, how they go on, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastreid_al.config import MemoryConfig, RunConfig
from fastreid_al.engine import Interrupted, TrainingLoop, checkpoint
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.errors import CheckpointError, DataError, TrainingError, UserError
from fastreid_al.evaluate import main as evaluate_main
from fastreid_al.runs import dry_run, run_training
from fastreid_al.synthetic.dataset import cached_synthetic


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(run) / "last.pt")["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(run: str | Path) -> list[dict]:
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "speed")}
        for line in lines
    ]


def elsewhere(config: RunConfig, name: str, **changes: object) -> RunConfig:
    return replace(config, run_dir=str(Path(str(config.run_dir)).parent / name), **changes)  # type: ignore[arg-type]


VARIANTS = {
    "instance memory": {},
    "cluster memory": {"memory": MemoryConfig(kind="cluster", hardest=True)},
    "supervised": {"method": "supervised"},
}


def variant(config: RunConfig, name: str) -> RunConfig:
    config = replace(config, **VARIANTS[name])  # type: ignore[arg-type]
    source = "extract" if name == "cluster memory" else "memory"
    return replace(config, cluster=replace(config.cluster, source=source))


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of the given step."""
    original, done = TrainingLoop._augmented, [0]

    def counting(*args: Any) -> Any:
        done[0] += 1
        if done[0] == steps:
            os.kill(os.getpid(), signum)
        return original(*args)

    monkeypatch.setattr(TrainingLoop, "_augmented", counting)


def test_a_run_leaves_config_versions_metrics_checkpoints_and_figure(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = run_training(config)
    names = sorted(p.name for p in finished.folder.iterdir())
    assert names == [
        "best.pt",
        "config.json",
        "curves.png",
        "last.pt",
        "metrics.jsonl",
        "versions.json",
    ]
    assert Image.open(finished.folder / "curves.png").size[0] > 500
    assert [r["epoch"] for r in metrics(finished.folder)] == [0, 1, 2, 3]
    last = metrics(finished.folder)[-1]
    assert {"loss", "clusters", "mAP", "rank1", "pair_precision", "pair_recall"} <= last.keys()
    assert json.loads((finished.folder / "versions.json").read_text())["torch"].startswith(
        torch.__version__.split("+")[0]
    )
    printed = capsys.readouterr().out
    assert "untrained: mAP" in printed
    assert "best was chosen on the test set" in printed
    assert load_checkpoint(finished.folder / "best.pt")["epoch"] in (1, 2, 3)


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(config: RunConfig) -> None:
    first = run_training(config)
    second = run_training(elsewhere(config, "again"))
    other = run_training(elsewhere(config, "other", seed=1))
    assert same(weights(first.folder), weights(second.folder))
    assert metrics(first.folder) == metrics(second.folder)
    assert not same(weights(first.folder), weights(other.folder))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_stopped_run_resumes_to_bit_identical_weights(
    config: RunConfig,
    name: str,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = variant(config, name)
    whole = run_training(elsewhere(config, "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted) as stopped:
            run_training(config)
    assert stopped.value.signum == signal.SIGTERM
    assert f"--run-dir {config.run_dir} --resume" in capsys.readouterr().out
    assert load_checkpoint(Path(str(config.run_dir)) / "last.pt")["step"] == step % 4
    resumed = run_training(config, resume=True)
    assert same(weights(resumed.folder), weights(whole.folder))
    assert metrics(resumed.folder) == metrics(whole.folder)


def test_ctrl_c_saves_like_sigterm_and_handlers_are_restored(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    stop_after(monkeypatch, 3, signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        run_training(config)
    assert stopped.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_of_a_finished_run_changes_nothing(config: RunConfig) -> None:
    finished = run_training(config)
    before = weights(finished.folder)
    assert run_training(config, resume=True).history == finished.history
    assert same(before, weights(finished.folder))


def test_a_run_folder_is_not_overwritten(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    with pytest.raises(UserError, match=r"already holds a run: continue it with --resume"):
        run_training(config)


def test_more_epochs_can_be_asked_for_on_resume(config: RunConfig) -> None:
    run_training(replace(config, epochs=2))
    longer = run_training(config, resume=True)
    assert same(weights(longer.folder), weights(run_training(elsewhere(config, "whole")).folder))


def test_checkpoint_of_another_model_or_method_is_refused(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    with pytest.raises(
        CheckpointError, match=r"`model` osnet_x0_25, the run asks for `model` resnet18"
    ):
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


def test_a_lower_learning_rate_on_resume_is_used(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    lower = replace(config, optimizer=replace(config.optimizer, lr=1e-5))
    resumed = run_training(lower, resume=True)
    assert [r["lr"] for r in resumed.history[1:]] == pytest.approx([1e-3, 1e-5, 1e-6])


def test_a_run_folder_that_cannot_be_written_is_named_before_anything_slow(
    config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        CheckpointError, match=r"cannot write into .*name another folder with `run_dir`"
    ):
        run_training(replace(config, run_dir=str(tmp_path / "file")))


def test_a_run_inside_the_image_folder_does_not_train_on_its_own_figure(
    config: RunConfig, tmp_path: Path
) -> None:
    crops = tmp_path / "crops"
    shutil.copytree(cached_synthetic(config.synthetic) / "train", crops)
    inside = replace(
        config, dataset="folder", data_root=str(crops), run_dir=str(crops / "runs" / "a"), epochs=1
    )
    finished = run_training(inside)
    assert (finished.folder / "curves.png").exists()
    run_training(replace(inside, epochs=2), resume=True)


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


def test_unreadable_images_are_named_counted_and_left_out(
    copied: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = train_images(copied)[5]
    damaged.write_bytes(damaged.read_bytes()[:200])
    run_training(replace(copied, epochs=1))
    printed = capsys.readouterr().out
    assert "warning: 1 train image(s) could not be read and are left out:" in printed
    assert damaged.name in printed


def test_too_few_readable_images_are_refused(copied: RunConfig) -> None:
    for path in train_images(copied):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="0 readable training images"):
        run_training(copied)


def test_few_unlabelled_images_of_one_camera_train_with_warnings(
    copied: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crops").mkdir()
    for number, path in enumerate(train_images(copied)[:7]):
        shutil.copy(path, tmp_path / "crops" / f"{number}_c1.jpg")
    none = replace(copied.cluster, min_samples=8)
    config = replace(copied, dataset="folder", data_root=str(tmp_path / "crops"), cluster=none)
    finished = run_training(config)
    printed = capsys.readouterr().out
    assert "7 images are fewer than --cluster.k1 8" in printed
    assert "7 images are fewer than a batch of 16" in printed
    assert "mAP" not in finished.history[-1]
    assert "pair_precision" not in finished.history[-1]
    with pytest.raises(UserError, match="7 of 7 images have no identity"):
        run_training(elsewhere(config, "supervised", method="supervised"))


def test_nothing_to_contrast_stops_with_one_line_and_keeps_the_checkpoint(
    config: RunConfig,
) -> None:
    run_training(replace(config, epochs=1))
    before = (Path(str(config.run_dir)) / "last.pt").read_bytes()
    harsh = replace(config, cluster=replace(config.cluster, noise="drop", min_samples=60))
    with pytest.raises(TrainingError, match="every image is noise"):
        run_training(harsh, resume=True)
    assert (Path(str(config.run_dir)) / "last.pt").read_bytes() == before


def test_divergence_stops_with_one_line_and_keeps_the_checkpoint(config: RunConfig) -> None:
    run_training(replace(config, epochs=1))
    run = Path(str(config.run_dir))
    state = load_checkpoint(run / "last.pt")
    state["optimizer"]["param_groups"][0]["lr"] = float("inf")
    save_checkpoint(run / "last.pt", state)
    with pytest.raises(TrainingError, match=r"not finite.*optimizer.lr"):
        run_training(config, resume=True)
    assert all(torch.isfinite(v).all() for v in weights(run).values())


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


def test_evaluation_of_checkpoint_and_bare_weights_repeats_the_run(
    config: RunConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    finished = run_training(replace(config, epochs=1))
    last = finished.history[-1]
    flags = [f"--synthetic.{k}={v}" for k, v in vars(config.synthetic).items()]
    capsys.readouterr()
    evaluate_main(["--checkpoint", str(finished.folder / "best.pt"), *flags])
    assert f"{100 * last['mAP']:.1f}" in capsys.readouterr().out
    torch.save(weights(finished.folder), tmp_path / "bare.pth")
    size = ["--height", "48", "--width", "24"]
    evaluate_main(
        ["--checkpoint", str(tmp_path / "bare.pth"), "--model", "osnet_x0_25", *size, *flags]
    )
    assert f"{100 * last['mAP']:.1f}" in capsys.readouterr().out
    with pytest.raises(UserError, match="name its backbone with --model"):
        evaluate_main(["--checkpoint", str(tmp_path / "bare.pth"), *flags])
    with pytest.raises(CheckpointError, match="trained with --model osnet_x0_25, not resnet18"):
        evaluate_main(
            ["--checkpoint", str(finished.folder / "best.pt"), "--model", "resnet18", *flags]
        )


def test_dry_run_writes_nothing(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(config)
    assert "none was started" in capsys.readouterr().out
    assert not Path(str(config.run_dir)).exists()


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"device": "cuda:99"}, {"device": "gpu"}, {"seed": -1}]
)
def test_settings_that_cannot_work_are_refused_at_once(config: RunConfig, change: dict) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(change))}"):
        run_training(replace(config, **change))
    assert not Path(str(config.run_dir)).exists()
