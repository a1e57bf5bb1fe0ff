"""Weights files load strictly, are never executed, and are named where they are wrong."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from fastreid_al.errors import WeightsError
from fastreid_al.models import build_model


def test_published_osnet_checkpoint_loads_strictly(tmp_path: Path) -> None:
    donor = build_model("osnet_x0_25", "none")
    state = {
        f"module.{k}": torch.randn_like(v.float()).to(v.dtype)
        for k, v in donor.backbone.state_dict().items()
    }
    state["module.classifier.weight"] = torch.randn(751, 512)
    state["module.classifier.bias"] = torch.randn(751)
    torch.save(
        {"state_dict": state, "epoch": 250, "rank1": np.float64(0.9)}, tmp_path / "model.pth.tar"
    )
    model = build_model("osnet_x0_25", tmp_path / "model.pth.tar")
    assert torch.equal(model.backbone.conv1.conv.weight, state["module.conv1.conv.weight"])
    with pytest.raises(WeightsError, match=r"does not fit osnet_x0_5.*choose the `model`"):
        build_model("osnet_x0_5", tmp_path / "model.pth.tar")


def test_torchvision_resnet_loads_without_its_classifier(tmp_path: Path) -> None:
    donor = torchvision.models.resnet18(weights=None)
    # As in torchvision's own oldest files, which lack the counters.
    state = {k: v for k, v in donor.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet18.pth")
    model = build_model("resnet18", tmp_path / "resnet18.pth", pool="gem")
    assert torch.equal(model.backbone.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)


def test_imagenet_weights_come_from_the_hub_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"put osnet_x0_25_imagenet.pth .*checkpoints/osnet_x0_25_imagenet.pth"
    ):
        build_model("osnet_x0_25", "imagenet")
    donor = build_model("osnet_x0_25", "none").backbone.state_dict()
    donor["classifier.weight"] = torch.zeros(1000, 512)
    (tmp_path / "checkpoints").mkdir()
    torch.save(donor, tmp_path / "checkpoints" / "osnet_x0_25_imagenet.pth")
    model = build_model("osnet_x0_25", "imagenet")
    assert torch.equal(model.backbone.conv1.conv.weight, donor["conv1.conv.weight"])


def test_failed_download_names_the_file_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(
        WeightsError,
        match=r"put resnet50-\w+\.pth at .*checkpoints/resnet50-\w+\.pth, or .*`weights` none",
    ):
        build_model("resnet50", "imagenet")


class Pickled:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_pickled_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Pickled()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="holds pickled code, which is never run"):
        build_model("resnet18", tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Pickled()))
    with pytest.raises(WeightsError):
        build_model("resnet18", tmp_path / "plain.pkl")
    assert not (tmp_path / "executed").exists()


def test_a_pickle_in_the_hub_folder_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    torch.save(Pickled(), tmp_path / "checkpoints" / Path(url).name)
    with pytest.raises(WeightsError, match="holds pickled code, which is never run"):
        build_model("resnet18", "imagenet")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read|not a plain"),
        (b"junk" * 100, "cannot be read|not a plain"),
        (None, "does not exist"),
    ],
)
def test_damaged_weights_files_are_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        build_model("resnet18", path)
    assert "\n" not in str(error.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds no state_dict"):
        build_model("resnet18", tmp_path / "x.pth")


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(10**6)}, tmp_path / "x.pth")
    plain = zipfile.ZipFile(tmp_path / "x.pth")
    with plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(WeightsError, match="it is compressed, and holds 4"):
        build_model("resnet18", tmp_path / "bomb.pth")
