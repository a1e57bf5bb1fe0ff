"""The command that exports a network: what it writes, what it proves, what it refuses."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastreid_al.config import EngineConfig, EvaluationConfig, ExportConfig
from fastreid_al.engine.console import Reporter
from fastreid_al.errors import UserError
from fastreid_al.exports import write
from fastreid_al.exports.deployed import DeployedNet
from fastreid_al.exports.packages import quiet
from fastreid_al.models import split_batchnorm
from fastreid_al.runs import run_training, train
from fastreid_al.runs.evaluate import evaluate_file
from fastreid_al.runs.export import export_run
from fastreid_al.runs.export_network import GATE_IMAGES
from fastreid_al.runs.trained import load_trained
from tests.support.exported import calibrated, exported, put_run
from tests.support.tiny import MODEL, SYNTHETIC, tiny_config

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was trained for one epoch."""
    config = replace(tiny_config(tmp_path_factory.mktemp("trained") / "run"), epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_curves", lambda *_: None)
        yield run_training(config).folder


def export(run: Path, what: Any, out: Path, **more: Any) -> None:
    export_run(ExportConfig(str(run), what, str(out), **more))


FORMS = {
    "onnx": "net.onnx",
    "openvino": "net.xml",
    "torchscript": "net.pt",
    "torch-export": "net.pt2",
    "safetensors": "net.safetensors",
}


@pytest.mark.parametrize(("form", "name"), FORMS.items())
def test_a_trained_network_is_written_and_proven_and_can_be_checked_later(
    form: str, name: str, trained_run: Path, tmp_path: Path, capsys: Printed
) -> None:
    out = tmp_path / name
    export(trained_run, form, out)
    assert (
        f"{out}: written; {GATE_IMAGES} training images: lowest cosine 1.0"
        in capsys.readouterr().out
    )
    files = [name, "net.bin"] if form == "openvino" else [name]
    assert sorted(os.listdir(tmp_path)) == sorted(files)
    assert out.stat().st_mode & 0o077 == 0
    before = out.read_bytes()
    export(trained_run, form, out, check=True)
    assert f"{out}: computes the features of the run" in capsys.readouterr().out
    assert out.read_bytes() == before


def test_an_exported_safetensors_file_needs_no_model_to_be_scored(
    trained_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "net.safetensors"
    export(trained_run, "safetensors", out)
    options = {"dataset": "synthetic", "synthetic": SYNTHETIC}
    own = evaluate_file(EvaluationConfig(str(trained_run / "last.pt"), **options))  # type: ignore[arg-type]
    again = evaluate_file(EvaluationConfig(str(out), **options))  # type: ignore[arg-type]
    assert own is not None and again is not None
    assert own.mAP == again.mAP
    reporter = Reporter()
    run, file = (load_trained(path, reporter) for path in (trained_run / "last.pt", out))
    assert file.digest() == run.digest()
    assert (file.image, file.stage, file.model.name) == (run.image, run.stage, MODEL)


@pytest.mark.parametrize(
    ("form", "stage"), [("torchreid", "bn"), ("torchreid", "pool5"), ("boxmot", "bn")]
)
def test_weights_for_a_tracker_say_which_features_it_computes(
    form: str, stage: Any, tmp_path: Path, capsys: Printed
) -> None:
    size = (256, 128) if form == "boxmot" else (64, 32)
    run = put_run(tmp_path / "run", calibrated("osnet_x0_25", (64, 32)), stage=stage, size=size)
    out = tmp_path / "osnet_x0_25_mine.pt"
    export(run, form, out)
    printed = capsys.readouterr().out
    assert f"{out}: written" in printed
    assert ("before the last BatchNorm (pool5)" in printed) == (stage == "bn")
    assert torch.load(out, weights_only=True)["fastreid_al"]["stage"] == "pool5"


def test_batchnorms_of_the_target_are_exported(tmp_path: Path) -> None:
    model = calibrated()
    own = copy.deepcopy(model)
    model.switch = split_batchnorm(model)
    for name, tensor in model.state_dict().items():
        if ".source_norm." in name and tensor.is_floating_point():
            tensor += 5
    run = put_run(tmp_path / "run", model)
    export(run, "torchscript", tmp_path / "net.pt")
    with quiet():
        state = torch.jit.load(tmp_path / "net.pt").state_dict()
    assert {f"model.{name}" for name in own.state_dict()} <= state.keys()
    assert not [name for name in state if "source" in name]
    for name, value in own.state_dict().items():
        assert torch.equal(state[f"model.{name}"], value)


class SwappedNet(DeployedNet):
    """A network that takes BGR for RGB."""

    def forward(self, images: Tensor) -> Tensor:
        """Features of images with red and blue exchanged."""
        return super().forward(images.flip(1))


@pytest.mark.parametrize(("form", "name"), [("torchscript", "x.pt"), ("openvino", "x.xml")])
def test_a_file_that_computes_other_features_is_not_kept(
    form: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = put_run(tmp_path / "run", calibrated())
    monkeypatch.setattr(write, "DeployedNet", SwappedNet)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / name
    with pytest.raises(UserError) as said:
        export(run, form, out)
    assert f"{out} is not written, because the file would compute other features" in str(said.value)
    assert "images with red and blue exchanged" in str(said.value)
    assert os.listdir(tmp_path / "out") == []


def test_a_wrong_file_of_the_users_own_is_reported_and_stays(tmp_path: Path) -> None:
    run = put_run(tmp_path / "run", calibrated())
    other = calibrated()
    nn.init.normal_(other.neck.weight)
    out = tmp_path / "theirs.onnx"
    exported("onnx", other, out)
    with pytest.raises(UserError, match=r"theirs\.onnx does not compute the features of the run"):
        export(run, "onnx", out, check=True)
    assert out.exists()
    out.write_bytes(b"no such file")
    with pytest.raises(UserError, match="cannot be opened as onnx"):
        export(run, "onnx", out, check=True)
    with pytest.raises(UserError, match="is not a file; name one that exists"):
        export(run, "onnx", tmp_path / "none.onnx", check=True)


def test_an_existing_file_is_kept_unless_force_is_given(tmp_path: Path) -> None:
    run = put_run(tmp_path / "run", calibrated())
    for name in ("net.xml", "net.bin"):
        kept = tmp_path / name
        kept.write_text("precious")
        with pytest.raises(UserError, match=f"{name} exists: name another file"):
            export(run, "openvino", tmp_path / "net.xml")
        assert kept.read_text() == "precious"
        kept.unlink()
    (tmp_path / "net.pt").write_text("old")
    export(run, "torchscript", tmp_path / "net.pt", force=True)
    assert (tmp_path / "net.pt").read_bytes().startswith(b"PK")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match=r"folder\.pt is a folder"):
        export(run, "torchscript", tmp_path / "folder.pt", force=True)


def test_a_full_disk_is_one_line_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = put_run(tmp_path / "run", calibrated())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fastreid_al.runs.export_network.write_form", full)
    out = tmp_path / "net.pt"
    out.write_text("old")
    with pytest.raises(UserError, match=r"could not write .*net\.pt \(No space left on device\)"):
        export(run, "torchscript", out, force=True)
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["net.pt", "run"]


def test_images_that_were_moved_are_named_by_data_root(tmp_path: Path) -> None:
    run = put_run(
        tmp_path / "run", calibrated(), dataset="folder", data_root=str(tmp_path / "gone")
    )
    with pytest.raises(UserError, match="name their folder with `data_root`"):
        export(run, "torchscript", tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()


def test_features_of_mirror_images_are_no_part_of_the_file(tmp_path: Path, capsys: Printed) -> None:
    run = put_run(tmp_path / "run", calibrated(), engine=EngineConfig(flip_features=True))
    export(run, "torchscript", tmp_path / "net.pt")
    assert "`engine.flip_features` is not part of the file" in capsys.readouterr().out


def test_half_precision_is_for_openvino(tmp_path: Path) -> None:
    run = put_run(tmp_path / "run", calibrated())
    with pytest.raises(UserError, match="`half`: got True, expected false with `what` onnx"):
        export(run, "onnx", tmp_path / "net.onnx", half=True)
    export(run, "openvino", tmp_path / "net.xml", half=True)
    numbers = sum(p.numel() for p in calibrated().parameters())
    assert (tmp_path / "net.bin").stat().st_size < 3 * numbers


def test_a_folder_of_a_run_with_unusual_bytes_in_its_name_is_read(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b'r\xffn, "a"\n')
    folder.mkdir()
    run = put_run(folder / "run", calibrated())
    for form in ("openvino", "torchscript"):
        export(run, form, folder / FORMS[form])


@pytest.mark.parametrize("text", ["no JSON", '{"network": {"name": 3}}', "[" * 10**5])
def test_damaged_metadata_of_a_safetensors_file_is_one_line(text: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors", {"fastreid_al": text})
    with pytest.raises(UserError) as said:
        load_trained(tmp_path / "x.safetensors", Reporter())
    assert "x.safetensors is" in str(said.value) and "\n" not in str(said.value)


def test_a_run_without_images_or_checkpoint_is_refused(tmp_path: Path) -> None:
    run = put_run(tmp_path / "run", calibrated())
    saved = json.loads((run / "config.json").read_text())
    (run / "last.pt").unlink()
    with pytest.raises(UserError, match="has not saved a checkpoint yet"):
        export(run, "onnx", tmp_path / "net.onnx")
    assert saved["model"] == MODEL
    shutil.rmtree(run)
    with pytest.raises(UserError, match="does not exist; name the folder of a run"):
        export(run, "onnx", tmp_path / "net.onnx")


@pytest.mark.parametrize("key", ["check", "half"])
def test_options_of_a_network_are_refused_for_identities(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"`{key}`: got True, expected false with `what` labels"):
        export(tmp_path, "labels", tmp_path / "x.csv", **{key: True})
