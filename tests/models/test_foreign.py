"""The same backbone in the files of other code bases, under their names and wrappers."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from fastreid_al.errors import WeightsError
from fastreid_al.models import ReIdNet, build_model, weights
from fastreid_al.models.weights import load_weights_file

State = dict[str, Tensor]

FULL: State = torchvision.models.resnet18(weights=None).state_dict()
BODY = {name: tensor for name, tensor in FULL.items() if not name.startswith("fc.")}
OTHER = {name: tensor + 1 for name, tensor in BODY.items()}
#: The layers of a Sequential: with and without those that have no weights.
PLACES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
NO_RELU = ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4")


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def numbered(state: State, places: tuple[str, ...] = PLACES) -> State:
    renamed = {}
    for name, tensor in state.items():
        head, _, tail = name.partition(".")
        renamed[f"{places.index(head)}.{tail}"] = tensor
    return renamed


def neck(prefix: str) -> State:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{name}": torch.ones(512) for name in names}


def momentum(prefix: str = "module.") -> State:
    queue = {f"{prefix}queue": torch.zeros(4, 4), f"{prefix}queue_ptr": torch.zeros(1).long()}
    return {**under(f"{prefix}encoder_k.", OTHER), **under(f"{prefix}encoder_q.", FULL), **queue}


CLASSIFIER = {"classifier.weight": torch.zeros(9, 512)}
FILES: dict[str, Any] = {
    "torchvision": FULL,
    "strong baseline": {**under("base.", BODY), **neck("bottleneck"), **CLASSIFIER},
    "a strong baseline with DataParallel": under("module.base.", BODY),
    "SpCL": {
        "state_dict": {**under("module.base.", numbered(BODY)), **neck("module.feat_bn")},
        "epoch": 1,
    },
    "SpCL, one number less": {"state_dict": under("module.base.", numbered(BODY, NO_RELU))},
    "Cluster Contrast": {"state_dict": under("module.base.0.", BODY), "best_mAP": 0.5},
    "Cluster Contrast, numbered": {"state_dict": under("module.base.0.", numbered(BODY))},
    "fast-reid": {
        "model": {
            **under("backbone.", BODY),
            **neck("heads.bottleneck.0"),
            "heads.weight": torch.zeros(9, 512),
            "pixel_mean": torch.zeros(1, 3, 1, 1),
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{}]},
        "iteration": 5,
    },
    "MoCo, LUPerson": {"state_dict": momentum(), "arch": "resnet50", "optimizer": {"state": {}}},
    "MoCo without a wrapper": momentum(""),
    "an encoder": under("encoder.", FULL),
    "DINO": {
        "student": under("module.backbone.", OTHER),
        "teacher": {**under("backbone.", BODY), "head.mlp.0.weight": torch.zeros(4, 512)},
        "args": argparse.Namespace(arch="resnet18", lr=0.1),
        "epoch": 3,
    },
    "a student alone": {"student": under("module.backbone.", BODY)},
    "means of weights": {"state_dict": OTHER, "state_dict_ema": BODY},
    "means of weights, flat": {**under("model.", OTHER), **under("ema.", BODY)},
    "layumi": {**under("model.", FULL), "classifier.add_block.0.weight": torch.zeros(4, 512)},
    "torch.compile": under("_orig_mod.", BODY),
    "torch.compile of the parts": {
        name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in BODY.items()
    },
    "Lightning": {
        "state_dict": under("model.net.", BODY),
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "2.0",
    },
    "many wrappers": {"state_dict": under("module._orig_mod.model.net.backbone.module.", BODY)},
    "timm": {"state_dict": under("backbone.body.", FULL), "arch": "resnet18"},
    "nested dictionaries": {"net": {"backbone": BODY, "head": neck("bn")}},
    "a list": [{"lr": 1}, under("net.", BODY)],
    "double precision": {n: t.double() if t.is_floating_point() else t for n, t in BODY.items()},
    "an ordered dictionary": OrderedDict(under("module.", FULL)),
    "without counters": {n: t for n, t in BODY.items() if not n.endswith("batches_tracked")},
    "half precision": {n: t.half() if t.is_floating_point() else t for n, t in BODY.items()},
    "strange names beside": {**BODY, "\x1b[31m.\udcd5": torch.zeros(1), "": torch.zeros(1)},
}


#: Files that are written and read; of the others, what is read of them is given.
WRITTEN = ("DINO", "MoCo, LUPerson", "an ordered dictionary", "strange names beside")


@pytest.fixture(scope="module")
def model() -> ReIdNet:
    return build_model("resnet18", "none", bn_group=0)


def loaded(model: ReIdNet, content: Any) -> str:
    """Load what is read of a file; returns the line that says what was left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "read_tensors", lambda path: content)
        return load_weights_file(model, Path("w.pth"))


@pytest.mark.parametrize("what", FILES)
def test_the_backbone_is_found(what: str, tmp_path: Path, model: ReIdNet) -> None:
    content = FILES[what]
    if what in WRITTEN:
        torch.save(content, tmp_path / "w.pth")
        content = weights.read_tensors(tmp_path / "w.pth")
    for tensor in model.state_dict().values():
        tensor.fill_(7)
    assert "\n" not in loaded(model, content)
    got = model.backbone.state_dict()
    tolerance = 1e-3 if what == "half precision" else 0.0
    for name, tensor in BODY.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(got[name], tensor, atol=tolerance), name


def said(content: Any, tmp_path: Path) -> str:
    torch.save(content, tmp_path / "w.pth")
    lines: list[str] = []
    build_model("resnet18", tmp_path / "w.pth", report=lines.append)
    return "".join(lines)


def test_one_line_says_what_was_left_out(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    assert said(BODY, tmp_path) == ""
    assert said(FULL, tmp_path) == (
        f"{path}: took the 120 tensors of resnet18; left out 2 others: fc.* (2)"
    )
    line = said(FILES["MoCo, LUPerson"], tmp_path)
    assert "under state_dict.module.encoder_q.*; left out " in line
    assert "state_dict.module.encoder_k.* (100)" in line
    line = said(FILES["fast-reid"], tmp_path)
    assert "under model.backbone.*" in line and "model.heads.* (5)" in line
    assert "optimizer" in line


def without(*names: str) -> State:
    return {name: tensor for name, tensor in BODY.items() if name not in names}


def grown(*names: str) -> Callable[[], State]:
    return lambda: {**BODY, **dict.fromkeys(names, torch.zeros(3))}


DEEPER = torchvision.models.resnet34(weights=None).state_dict()
REFUSED: dict[str, tuple[Any, str]] = {
    "a deeper network": (DEEPER, "120 of 100"),
    "a deeper network in a wrapper": (under("base.", DEEPER), "left over"),
    "another width": ({n: t[:1] for n, t in BODY.items() if t.ndim}, "is (1,"),
    "one convolution missing": (without("layer3.1.conv2.weight"), "looked for layer3.1.conv2"),
    "one BatchNorm missing": (under("base.", without("bn1.weight")), "looked for base.bn1.weight"),
    "half of it": (dict(list(BODY.items())[:60]), "looked for layer"),
    "squeeze and excitation": (grown("layer1.0.se.fc.weight")(), "1 further tensors"),
    "instance normalisation": (
        {n.replace("layer1.0.bn1.", "layer1.0.bn1.BN."): t for n, t in BODY.items()},
        "found layer1.0.bn1.BN.weight",
    ),
    "whole numbers": ({n: t.to(torch.int8) for n, t in BODY.items()}, "0 of 100 tensors fit"),
    "not finite": ({**BODY, "bn1.weight": torch.full((64,), float("nan"))}, "is not finite"),
    "another network": (under("blocks.0.", neck("norm")), "0 of 100 tensors fit; looked for conv1"),
    "a tensor alone": ({"x": torch.zeros(2)}, "found x"),
    "numbers, one missing": (numbered(without("layer3.1.conv2.weight")), "layer3.1.conv2.weight"),
    "not finite as float32": (
        {
            **{n: t.double() for n, t in BODY.items()},
            "bn1.weight": torch.full((64,), 1e300, dtype=torch.float64),
        },
        "bn1.weight is not finite",
    ),
    "on no device": (
        {**BODY, "bn1.weight": torch.ones(64, device="meta")},
        "looked for bn1.weight",
    ),
    "sparse": ({**BODY, "bn1.weight": torch.ones(64).to_sparse()}, "looked for bn1.weight"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_partial_match_is_refused_with_what_was_looked_for_and_found(
    what: str, model: ReIdNet
) -> None:
    content, expected = REFUSED[what]
    with pytest.raises(WeightsError) as refused:
        loaded(model, content)
    message = str(refused.value)
    assert expected.replace("120 of 100", "left over") in message
    assert "\n" not in message and len(message) < 600
    if "finite" not in what:
        assert "does not fit resnet18" in message and "choose the `model`" in message


def test_osnet_is_found_too(tmp_path: Path) -> None:
    state = build_model("osnet_x0_25", "none").backbone.state_dict()
    state = {name: torch.rand_like(t.float()).to(t.dtype) for name, t in state.items()}
    layers = ("conv1", "maxpool", "conv2", "conv3", "conv4", "conv5", "pool", "fc")
    for content in (
        {"state_dict": {**under("module.", state), **CLASSIFIER}},
        {"model": under("backbone.", state)},
        under("module.base.", numbered(state, layers)),
    ):
        torch.save(content, tmp_path / "w.pth")
        backbone = build_model("osnet_x0_25", tmp_path / "w.pth").backbone
        assert torch.equal(backbone.state_dict()["fc.0.weight"], state["fc.0.weight"])


def test_a_file_of_this_library_is_loaded_as_a_whole(tmp_path: Path) -> None:
    model = build_model("resnet18", "none", pool="gem")
    torch.nn.init.uniform_(model.neck.weight)
    for content in (
        model.state_dict(),
        {"model": under("_orig_mod.", model.state_dict())},
        {"state_dict": under("module.", model.state_dict())},
    ):
        torch.save(content, tmp_path / "w.pth")
        again = build_model("resnet18", tmp_path / "w.pth", pool="gem")
        assert all(torch.equal(again.state_dict()[n], t) for n, t in model.state_dict().items())
