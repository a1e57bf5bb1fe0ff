"""A strategy is found as a function, by a built-in name, or by the entry point of a package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastreid_al import plugins
from fastreid_al.active import refine
from fastreid_al.active.strategies import load_strategy
from fastreid_al.annotators import Oracle, load_annotator
from fastreid_al.answers import Asker
from fastreid_al.errors import SettingError

MODULE = """
from fastreid_al.answers import Verdict

def ask_first_and_last(features, labels, asker, config):
    asker.ask_pair(0, len(features) - 1)

class Always:
    name = "always"
    def __init__(self, context):
        self.context = context
    def answer(self, question):
        return Verdict.SAME
"""
ENTRY_POINTS = """
[fastreid_al.strategies]
first_and_last = other_package_module:ask_first_and_last
[fastreid_al.annotators]
always = other_package_module:Always
"""


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with a strategy and an annotator."""
    (tmp_path / "other_package_module.py").write_text(MODULE)
    folder = tmp_path / "other_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.available.cache_clear()
    yield
    plugins.available.cache_clear()


def test_a_function_is_a_strategy() -> None:
    def ask_one_pair(features, labels, asker, config):  # type: ignore[no-untyped-def]
        asker.ask_pair(torch.tensor(0), torch.tensor(3))

    labels = torch.tensor([0, 0, 1, 1])
    asker = Asker(Oracle(torch.zeros(4, dtype=torch.int64)))
    refined, spent = refine(torch.eye(4), labels, asker, ask_one_pair)
    assert spent.questions == 1
    assert refined.tolist() == [0, 0, 0, 0]
    (event,) = asker.ledger.events()
    assert (event.reason, event.similarity, event.epoch) == ("merge", 0.0, 0)


def test_a_pair_of_one_image_is_refused() -> None:
    asker = Asker(Oracle(torch.arange(4)))
    with pytest.raises(ValueError, match="got image 1 twice"):
        refine(torch.eye(4), torch.zeros(4).long(), asker, lambda f, y, a, c: a.ask_pair(1, 1))


def test_an_entry_point_is_a_strategy(other_package: None) -> None:
    asker = Asker(Oracle(torch.arange(4)))
    refined, spent = refine(torch.eye(4), torch.zeros(4).long(), asker, "first_and_last")
    assert spent.questions == 1
    assert refined[0] != refined[3]


def test_an_entry_point_is_an_annotator(other_package: None) -> None:
    annotator = load_annotator("always")("the context")  # type: ignore[arg-type]
    assert annotator.name == "always"
    assert annotator.context == "the context"  # type: ignore[attr-defined]
    labels = torch.tensor([0, 0, 1, 1])
    refined = refine(torch.eye(4), labels, Asker(annotator), "first_and_last").labels
    assert refined.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", plugins.BUILT_IN[plugins.STRATEGIES])
def test_built_in_strategies_are_found(name: str) -> None:
    assert callable(load_strategy(name))


@pytest.mark.parametrize("name", plugins.BUILT_IN[plugins.ANNOTATORS])
def test_built_in_annotators_are_found(name: str) -> None:
    assert callable(load_annotator(name))


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SettingError, match=r"`ask`: got 'gian'.*did you mean gain"):
        load_strategy("gian")
