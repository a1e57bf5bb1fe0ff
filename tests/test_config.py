"""Defaults, recipes and the relations between settings."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from fastreid_al.cli import parse_training
from fastreid_al.config import (
    AdaptationConfig,
    ClusterConfig,
    EvaluationConfig,
    ImageConfig,
    RunConfig,
    SimulationConfig,
    SyntheticConfig,
    recipe,
)
from fastreid_al.errors import SettingError
from fastreid_al.settings import settings_of, validate


def test_recipes_are_defaults_of_their_image_set() -> None:
    assert parse_training([])[0] == recipe("synthetic")
    assert parse_training(["--dataset", "msmt17"])[0] == recipe("msmt17", "paper")
    assert parse_training(["--dataset", "msmt17"])[0].batch.iterations == 800
    assert parse_training(["--dataset", "market1501", "--recipe", "small"])[0] == recipe(
        "market1501", "small"
    )
    paper = RunConfig(dataset="market1501")
    assert (paper.epochs, paper.batch.size, paper.optimizer.lr, paper.optimizer.step) == (
        50,
        64,
        3.5e-4,
        20,
    )
    assert (
        paper.cluster.eps,
        paper.cluster.k1,
        paper.memory.temperature,
        paper.network.bn_group,
    ) == (
        0.6,
        30,
        0.05,
        16,
    )


@pytest.mark.parametrize("method", ["ucal", "nnct", "supervised"])
@pytest.mark.parametrize("name", ["paper", "small", "reid"])
@pytest.mark.parametrize("dataset", ["synthetic", "msmt17", "folder"])
def test_every_recipe_is_valid(dataset: str, name: str, method: str) -> None:
    config = recipe(dataset, name, method)  # type: ignore[arg-type]
    validate(config)
    assert (config.dataset, config.method) == (dataset, method)


def test_evaluation_and_simulation_share_the_facts_of_a_run() -> None:
    run = settings_of(RunConfig)
    evaluation = settings_of(EvaluationConfig)
    assert evaluation["height"].at_least == run["image.height"].at_least == 16
    assert evaluation["store_gib"].help == run["image.store_gib"].help
    assert settings_of(SimulationConfig)["cluster.k2"] == replace(run["cluster.k2"], only=())
    assert EvaluationConfig("x").height is None


def test_the_source_is_rendered_with_another_seed_than_the_target() -> None:
    assert SyntheticConfig().seed == 0
    assert AdaptationConfig().synthetic == SyntheticConfig(seed=1)
    assert settings_of(RunConfig)["adaptation.synthetic.seed"].default == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cluster": ClusterConfig(k1=5)}, "`cluster.k2`: got 6, expected 1 to `cluster.k1`"),
        ({"cluster": ClusterConfig(eps=0.01)}, "`cluster.eps`: got 0.01, expected `cluster.eps_"),
        ({"cluster": ClusterConfig(eps=0.99)}, "`cluster.eps`: got 0.99, expected `cluster.eps_"),
        (
            {"source": "synthetic", "method": "supervised"},
            "`source`: got 'synthetic', expected none with `method` supervised",
        ),
        (
            {"image": ImageConfig(erase_area=(0.4, 0.1))},
            r"`image.erase_area`: got \(0.4, 0.1\), expected \[low,high\], above 0, up to 1",
        ),
    ],
)
def test_settings_that_do_not_fit_one_another_are_refused(change: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        validate(replace(RunConfig(), **change))


def test_a_batch_may_be_smaller_than_k_where_k_is_not_read() -> None:
    paper = recipe("folder", "paper", "ucal")
    small = replace(paper.batch, size=2)
    with pytest.raises(SettingError, match=r"`batch\.per_identity`: got 4, expected 1 to"):
        validate(replace(paper, batch=small))
    validate(replace(paper, batch=small, method="nnct"))


def test_docstrings_of_configuration_classes_hold_the_help_of_every_field() -> None:
    for cls in (RunConfig, ImageConfig, EvaluationConfig):
        text = " ".join((cls.__doc__ or "").split())
        assert text.count("Args:") == 1
        for field in dataclasses.fields(cls):
            assert f" {field.name}: " in text


def test_the_recipe_for_reid_weights_changes_how_ucal_clusters_and_asks_alone() -> None:
    paper, reid = recipe("msmt17", "paper"), recipe("msmt17", "reid")
    assert reid.cluster.algorithm == "linkage" and reid.cluster.camera_norm == "standardise"
    assert reid.questions.aim == "classes" and reid.questions.sheet > 1
    assert replace(reid, cluster=paper.cluster, questions=paper.questions) == paper
    assert recipe("msmt17", "reid", "nnct") == recipe("msmt17", "paper", "nnct")
