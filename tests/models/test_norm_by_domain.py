"""BatchNorm by domain: two sets of statistics in one network, the target's as in a plain one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fastreid_al.models import (
    ReIdNet,
    build_model,
    group_batchnorm,
    split_batchnorm,
    without_source,
)

NAME = "osnet_x0_25"
IMAGES = torch.randn(12, 3, 48, 24, generator=torch.Generator().manual_seed(1))


def split_network(weights: str = "none", bn_group: int = 0) -> ReIdNet:
    return build_model(NAME, weights, bn_group=bn_group, domain_bn=True)


def statistics(model: ReIdNet, source: bool) -> dict[str, torch.Tensor]:
    """Running means and variances by the names that the target has."""
    state = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    names = without_source(state)
    return (
        {k.replace("source_norm.", ""): v for k, v in state.items() if k not in names}
        if source
        else names
    )


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_target_keeps_the_names_of_the_plain_network() -> None:
    plain, model = build_model(NAME, "none"), split_network()
    assert without_source(model.state_dict()).keys() == plain.state_dict().keys()
    norms = [m for m in plain.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(model.state_dict()) == len(plain.state_dict()) + 5 * len(norms)
    assert build_model(NAME, "none", domain_bn=False).switch is None


def test_the_source_begins_as_a_copy_of_the_loaded_weights(tmp_path: Path) -> None:
    trained = build_model(NAME, "none", bn_group=0)
    trained(IMAGES)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    model = split_network(str(tmp_path / "weights.pth"))
    assert equal(statistics(model, source=True), statistics(model, source=False))
    assert equal(statistics(model, source=True), statistics(trained, source=False))
    assert not model.neck.bias.requires_grad
    assert not any(
        p.requires_grad for k, p in model.named_parameters() if k == "neck.source_norm.bias"
    )


@pytest.mark.parametrize("bn_group", [0, 4])
def test_two_domains_keep_separate_statistics(bn_group: int) -> None:
    model = split_network(bn_group=bn_group)
    before = statistics(model, source=False)
    model(IMAGES + 1, "raw", "source")
    assert equal(statistics(model, source=False), before)
    source = statistics(model, source=True)
    assert not any(torch.equal(source[k], before[k]) for k in before)
    model(IMAGES, "raw")
    assert equal(statistics(model, source=True), source)
    assert not equal(statistics(model, source=False), before)
    model.eval()
    with torch.no_grad():
        assert not torch.allclose(model(IMAGES), model(IMAGES, domain="source"))


def test_each_domain_is_normalised_in_groups() -> None:
    x = torch.randn(9, 3, 2, 2).double()
    norm = nn.Sequential(nn.BatchNorm2d(3).double())
    switch = split_batchnorm(group_batchnorm(norm, 4))
    for domain in ("target", "source"):
        switch.domain = domain  # type: ignore[assignment]
        plain = group_batchnorm(nn.Sequential(nn.BatchNorm2d(3).double()), 4)
        expected = plain(x)
        assert torch.allclose(norm(x), expected, atol=1e-12)
        assert torch.allclose(expected[:4].mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-12)
        got = norm[0] if domain == "target" else norm[0].source_norm
        assert torch.allclose(got.running_mean, plain[0].running_mean)  # type: ignore
        x = x + 1


def test_weights_of_a_split_network_are_read_as_the_targets(tmp_path: Path) -> None:
    model = split_network()
    model(IMAGES, "raw")
    model(IMAGES + 1, "raw", "source")
    torch.save({"model": model.state_dict()}, tmp_path / "last.pt")
    plain = build_model(NAME, tmp_path / "last.pt").eval()
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), model.eval()(IMAGES))
        again = split_network(str(tmp_path / "last.pt")).eval()
        assert torch.equal(again(IMAGES, domain="source"), plain(IMAGES))
