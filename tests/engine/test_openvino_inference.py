"""Features by OpenVINO: the same as PyTorch's, also after the weights have changed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastreid_al.config import EngineConfig
from fastreid_al.engine import openvino_inference
from fastreid_al.engine.network import Network
from fastreid_al.engine.openvino_inference import OpenVinoInference, pays
from fastreid_al.errors import TrainingError, UserError
from fastreid_al.models import build_model
from tests.support.tiny import MODEL

SIZE = (64, 32)
CPU = torch.device("cpu")


def network(name: str = MODEL, setting: str = "openvino", **more: Any) -> Network:
    torch.manual_seed(0)
    model = build_model(name, "none", **{"bn_group": 0, **more})
    disturb(model)
    model = model.to(memory_format=torch.channels_last)
    engine = EngineConfig(inference=setting)  # type: ignore[arg-type]
    lines: list[str] = []
    made = Network(model.eval(), engine, CPU, lines.append, lines.append)
    made.lines = lines  # type: ignore[attr-defined]
    return made


def disturb(model: nn.Module, seed: int = 1) -> None:
    """Change all weights and running statistics in place, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.mul_(1 + 0.1 * noise)
                if "mean" in name or "bias" in name:
                    value.add_(0.05 * noise)


def pixels(count: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=generator)


def features(
    made: Network, images: Tensor, stage: Any = "bn", count: int = 1000, **more: Any
) -> Tensor:
    with torch.inference_mode():
        return made.feature_pass(count, stage, **more)(images)


def by_pytorch(made: Network, images: Tensor, stage: Any = "bn", **more: Any) -> Tensor:
    plain = Network(made.model, EngineConfig(inference="torch"), CPU)
    return features(plain, images, stage, **more)


@pytest.mark.parametrize(
    ("name", "stage", "flip"),
    [("osnet_x0_25", "bn", False), ("resnet18", "pool5", True), (MODEL, "pool5", False)],
)
def test_features_are_those_of_pytorch(name: str, stage: str, flip: bool) -> None:
    made = network(name)
    got = features(made, pixels(), stage, flip=flip)
    assert made.lines[0].startswith("features by OpenVINO")
    torch.testing.assert_close(got, by_pytorch(made, pixels(), stage, flip=flip))


def test_new_weights_are_taken_over_without_another_conversion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversions = counted(monkeypatch, "_convert")
    compilations = counted(monkeypatch, "_compile")
    made = network()
    for round_ in range(3):
        disturb(made.model, round_ + 2)
        got = features(made, pixels(seed=round_))
        torch.testing.assert_close(got, by_pytorch(made, pixels(seed=round_)))
    features(made, pixels(seed=9))
    assert len(conversions) == 1
    # Not again for the weights that are compiled already.
    assert len(compilations) == 3
    assert len(made.lines) == 1


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[None]:
    calls: list[None] = []
    plain: Callable[..., Any] = getattr(OpenVinoInference, name)

    def counting(self: OpenVinoInference, *arguments: Any) -> Any:
        calls.append(None)
        return plain(self, *arguments)

    monkeypatch.setattr(OpenVinoInference, name, counting)
    return calls


def test_the_bits_are_the_same_in_another_network_of_the_same_weights() -> None:
    assert features(network(), pixels()).equal(features(network(), pixels()))


def test_each_domain_has_its_own_batchnorms() -> None:
    made = network(domain_bn=True)
    target = features(made, pixels(), domain="target")
    source = features(made, pixels(), domain="source")
    assert not torch.allclose(target, source, atol=1e-3)
    torch.testing.assert_close(source, by_pytorch(made, pixels(), domain="source"))
    torch.testing.assert_close(target, features(made, pixels(), domain="target"))


def test_a_network_in_training_stays_in_training_with_its_groups() -> None:
    made = network(bn_group=4)
    made.model.train()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    inference = OpenVinoInference(made.model, "bn", "target", flip=False)
    reference = build_model(MODEL, "none", bn_group=0).eval()
    reference.load_state_dict(before)
    with torch.inference_mode():
        wanted = Network(reference, EngineConfig(inference="torch"), CPU)
        assert inference.load(pixels(), lambda images: features(wanted, images))
    assert made.model.training
    for name, value in made.model.state_dict().items():
        assert value.equal(before[name]), name


def test_auto_takes_openvino_where_it_pays() -> None:
    assert pays(build_model("osnet_x0_25", "none"), 256, 128)
    assert pays(build_model("osnet_x1_0", "none"), 128, 64)
    assert not pays(build_model("resnet18", "none"), 96, 48)
    assert pays(build_model("resnet50", "none"), 256, 128)


@pytest.mark.parametrize(
    ("name", "images", "lines"),
    [("osnet_x0_25", 1000, 1), ("osnet_x0_25", 999, 0), ("resnet18", 5000, 0)],
)
def test_auto_decides_by_the_network_and_the_number_of_images(
    name: str, images: int, lines: int
) -> None:
    made = network(name, "auto")
    features(made, pixels(), count=images)
    assert len(made.lines) == lines


@pytest.mark.usefixtures("_always_pays", "_other_features")
def test_other_features_than_those_of_pytorch_are_refused() -> None:
    made = network(setting="auto")
    got = features(made, pixels())
    torch.testing.assert_close(got, by_pytorch(made, pixels()))
    assert made.lines[0].startswith("OpenVINO computes other features than PyTorch (lowest cosine")
    assert made.lines[0].endswith("PyTorch extracts the features")
    features(made, pixels())
    assert len(made.lines) == 1
    with pytest.raises(TrainingError, match=r"set `engine\.inference` to torch"):
        features(network(), pixels())


@pytest.fixture
def _always_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_inference, "pays", lambda *_: True)


@pytest.fixture
def _other_features(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OpenVinoInference.__call__
    monkeypatch.setattr(OpenVinoInference, "__call__", lambda self, x: plain(self, x.flip(1)))


@pytest.mark.usefixtures("_always_pays")
def test_a_network_that_cannot_be_converted_is_run_by_pytorch() -> None:
    made = network(setting="auto")
    made.model.backbone = Untraceable(made.model.backbone)
    got = features(made, pixels())
    torch.testing.assert_close(got, by_pytorch(made, pixels()))
    assert made.lines[0].startswith(f"OpenVINO cannot run {MODEL} (")


def test_a_network_that_cannot_be_copied_is_run_by_pytorch() -> None:
    made = network("osnet_x0_25", setting="auto")
    made.model.lock = threading.Lock()
    got = features(made, pixels())
    torch.testing.assert_close(got, by_pytorch(made, pixels()))
    assert made.lines[0].startswith("OpenVINO cannot run osnet_x0_25 (")
    features(made, pixels())
    assert len(made.lines) == 1


@pytest.mark.usefixtures("_always_pays")
def test_a_later_pass_is_computed_as_by_a_run_that_resumes_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = OpenVinoInference.__call__
    made, resumed = network(setting="auto"), network(setting="auto")
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoInference, "__call__", lambda self, x: plain(self, x.flip(1)))
        features(made, pixels())
    for one in (made, resumed):
        disturb(one.model, 2)
    compared: list[int] = []

    def noting(self: OpenVinoInference, images: Tensor) -> Tensor:
        compared.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(OpenVinoInference, "__call__", noting)
    later = pixels(70, seed=3)
    assert features(made, later).equal(features(resumed, later))
    assert compared == [64, 70, 64, 70]


def test_a_network_that_has_diverged_is_no_fault_of_openvino() -> None:
    made = network()
    features(made, pixels())
    with torch.no_grad():
        for parameter in made.model.backbone.parameters():
            parameter.fill_(1e38)
    lines = list(made.lines)
    assert not features(made, pixels()).isfinite().all()
    assert made.lines == lines


class Untraceable(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise NotImplementedError("no trace")
        return self.backbone(images)


def test_openvino_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_inference, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'fastreid_al\[cpu\]'"):
        network(setting="openvino")
    made = network(setting="auto")
    features(made, pixels())
    assert made.lines == []


def test_openvino_is_refused_for_a_compiled_network() -> None:
    lines: list[str] = []
    engine = EngineConfig(inference="openvino", compile="default")
    Network(build_model("resnet18", "none"), engine, CPU, lines.append)
    assert lines == [
        "`engine.inference` openvino is for a CPU, without `engine.compile`: PyTorch extracts "
        "the features"
    ]


SIGNALS = """
import gc, os, signal
import torch
from tests.engine.test_openvino_inference import features, network, pixels
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append(1))
made = [network() for _ in range(3)]
for one in made:
    features(one, pixels())
del one
while made:
    # The first one first: each is gone before the one that was made after it.
    del made[0]
    gc.collect()
    os.kill(os.getpid(), signal.SIGINT)
print(len(caught))
"""


def test_signals_reach_their_handler_after_networks_of_openvino_are_gone() -> None:
    command = [sys.executable, "-W", "ignore", "-c", SIGNALS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr[-2_000:]
