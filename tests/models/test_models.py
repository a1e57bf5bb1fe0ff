"""Networks: shapes, published names, grouped BatchNorm, weights files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fastreid_al.errors import WeightsError
from fastreid_al.models import MODELS, build_model, group_batchnorm
from fastreid_al.models.norm import GroupedBatchNorm1d, GroupedBatchNorm2d
from tests.support.references import reference_grouped_batchnorm

IMAGES = torch.randn(4, 3, 64, 32)


@pytest.mark.parametrize("name", MODELS)
def test_every_backbone_gives_unit_features(name: str) -> None:
    model = build_model(name, "none", bn_group=0).eval()
    with torch.inference_mode():
        features = model(IMAGES)
    assert features.shape == (4, model.features)
    assert model.features == (2048 if name in ("resnet50", "resnet101") else 512)
    assert torch.allclose(features.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_last_stage_keeps_its_resolution(name: str) -> None:
    backbone = build_model(name, "none").backbone.eval()
    seen = {}
    backbone.layer4.register_forward_hook(
        lambda module, given, out: seen.update(inside=given[0].shape, out=out.shape)
    )
    with torch.inference_mode():
        backbone(torch.randn(1, 3, 256, 128))
    assert seen["inside"][2:] == seen["out"][2:] == (16, 8)


def test_neck_bias_is_frozen_and_weight_learns() -> None:
    model = build_model("resnet18", "none")
    model(torch.randn(32, 3, 64, 32)).sum().backward()
    assert model.neck.bias.grad is None
    assert not model.neck.bias.requires_grad
    assert model.neck.weight.grad is not None


def test_gem_of_large_power_approaches_the_maximum() -> None:
    pool = build_model("resnet18", "none", pool="gem").backbone.avgpool
    x = torch.rand(2, 3, 4, 5)
    with torch.no_grad():
        assert torch.allclose(pool(x)[..., 0, 0], x.pow(3).mean((2, 3)).pow(1 / 3), atol=1e-5)
        pool.p.fill_(200.0)
        assert torch.allclose(pool(x)[..., 0, 0], x.amax((2, 3)), atol=0.02)


def test_osnet_has_the_published_size_and_names() -> None:
    names = json.loads((Path(__file__).parent / "osnet_names.json").read_text())
    backbone = build_model("osnet_x1_0", "none").backbone
    assert {
        k: list(v.shape)
        for k, v in backbone.state_dict().items()
        if not k.endswith("num_batches_tracked")
    } == names
    assert 2.1e6 < sum(p.numel() for p in backbone.parameters()) < 2.3e6


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean osnet_x0_25"):
        build_model("osnet_x0_2", "none")
    with pytest.raises(ValueError, match="pool: got 'max'"):
        build_model("resnet18", "none", pool="max")


@pytest.mark.parametrize(("n", "group"), [(64, 16), (20, 16), (36, 16), (33, 8), (9, 4), (7, 16)])
@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_grouped_batchnorm_equals_the_reference(n: int, group: int, kind: str) -> None:
    shape = (n, 5) if kind == "1d" else (n, 5, 3, 2)
    x = torch.randn(shape, dtype=torch.float64)
    plain: nn.Module = nn.BatchNorm1d(5) if kind == "1d" else nn.BatchNorm2d(5)
    norm = group_batchnorm(nn.Sequential(plain.double()), group)[0]  # type: ignore[index]
    assert type(norm) is (GroupedBatchNorm1d if kind == "1d" else GroupedBatchNorm2d)
    with torch.no_grad():
        norm.weight.uniform_()
        norm.bias.uniform_()
    mean, var = torch.zeros(5).double(), torch.ones(5).double()
    for _ in range(2):
        expected, mean, var = (
            torch.as_tensor(a)
            for a in reference_grouped_batchnorm(
                x.numpy(),
                group,
                norm.weight.detach().numpy(),
                norm.bias.detach().numpy(),
                mean.numpy(),
                var.numpy(),
            )
        )
        assert torch.allclose(norm(x), expected)
    assert torch.allclose(norm.running_mean, mean)
    assert torch.allclose(norm.running_var, var)
    norm.eval()
    assert torch.allclose(
        norm(x), torch.nn.functional.batch_norm(x, mean, var, norm.weight, norm.bias)
    )


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("n", [12, 10])
def test_running_statistics_follow_one_group_after_the_other(
    momentum: float | None, n: int
) -> None:
    norm, plain = (nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2))
    group_batchnorm(nn.Sequential(norm), 4)
    for _ in range(2):
        x = torch.randn(n, 3, 2, 2).double()
        expected = torch.cat([plain(part) for part in x.tensor_split(list(range(4, n - 3, 4)))])
        torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    for (name, a), b in zip(norm.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


def test_groups_do_not_see_each_other_and_gradients_flow() -> None:
    norm = group_batchnorm(nn.Sequential(nn.BatchNorm2d(3)), 4)
    x = torch.randn(8, 3, 2, 2, requires_grad=True)
    norm(x)[:4].square().sum().backward()
    assert (x.grad[4:] == 0).all()
    assert (x.grad[:4] != 0).any()


@pytest.mark.parametrize("group", [1, -2])
def test_impossible_groups_are_refused(group: int) -> None:
    with pytest.raises(ValueError, match="bn_group"):
        build_model("resnet18", "none", bn_group=group)


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
    with pytest.raises(WeightsError, match=r"does not fit osnet_x0_5.*choose the --model"):
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
        match=r"put resnet50-\w+\.pth at .*checkpoints/resnet50-\w+\.pth, or .*--weights none",
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
