"""What is derived from the fields: checks, resume policy, idle settings, the page of settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest

from fastreid_al import plugins, settings_page
from fastreid_al.config import (
    AdaptationConfig,
    BatchConfig,
    NetworkConfig,
    NNCTConfig,
    OptimizerConfig,
    OracleConfig,
    QuestionConfig,
    RunConfig,
    StyleConfig,
    recipe,
)
from fastreid_al.errors import SettingError
from fastreid_al.settings import (
    documented,
    flatten,
    group,
    resumable_keys,
    setting,
    settings_of,
    unread_settings,
    validate,
    when,
    with_values,
)

ROOT = Path(__file__).parent.parent


@documented
@dataclass(frozen=True)
class Inner:
    """A group."""

    size: int = setting(3, "Size.", at_least=1, at_most="inner.most", resumable=True)
    most: int = setting(9, "Most.")
    share: float | None = setting(None, "Share", unset="one", above=0, below=1)


@documented
@dataclass(frozen=True)
class Outer:
    """A whole."""

    mode: Literal["a", "b"] = setting("a", "Mode.")
    pair: tuple[float, float] = setting((0.1, 0.2), "Pair.", above=0, at_most=1)
    zero: int = setting(0, "Zero, or many.", at_least=2, also=(0,))
    flag: bool = setting(False, "Flag.")
    inner: Inner = group(Inner, "Inner.", only=when("mode", "b"), most=7)  # noqa: RUF009


def test_docstrings_are_completed_by_the_help() -> None:
    assert Inner.__doc__ == (
        "A group.\n\nArgs:\n    size: Size.\n    most: Most.\n"
        "    share: Share; one when not given.\n"
    )


def test_settings_of_groups_have_keys_with_dots_and_the_conditions_of_the_group() -> None:
    known = settings_of(Outer)
    assert list(known)[-3:] == ["inner.size", "inner.most", "inner.share"]
    assert known["inner.size"].only == (when("mode", "b"),)
    assert (known["inner.most"].default, Outer().inner.most) == (7, 7)
    assert resumable_keys(Outer) == {"inner.size"}


def test_flatten_and_with_values_are_inverse() -> None:
    changed = with_values(Outer(), {"inner.size": 5, "mode": "b"})
    assert changed == Outer("b", inner=Inner(5, 7))
    assert flatten(changed) == flatten(asdict(changed))
    assert with_values(Outer(), flatten(changed)) == changed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "c"}, "`mode`: got 'c', expected one of a, b"),
        ({"pair": (0.2, 0.1)}, "`pair`: got (0.2, 0.1), expected [low,high], above 0, up to 1"),
        ({"pair": (0.0, 0.1)}, "`pair`: got (0.0, 0.1), expected [low,high], above 0, up to 1"),
        ({"pair": 0.5}, "`pair`: got 0.5, expected [low,high], two numbers, above 0, up to 1"),
        ({"zero": 1}, "`zero`: got 1, expected 2 or more, or 0"),
        ({"flag": 1}, "`flag`: got 1, expected true or false"),
        ({"inner.size": 0}, "`inner.size`: got 0, expected 1 to `inner.most`"),
        ({"inner.size": 8, "mode": "b"}, "`inner.size`: got 8, expected 1 to `inner.most`"),
        ({"inner.size": "x"}, "`inner.size`: got 'x', expected a whole number, 1 to `inner.most`"),
        ({"inner.size": 2.5}, "`inner.size`: got 2.5, expected a whole number, 1 to"),
        ({"inner.share": 1.0}, "`inner.share`: got 1.0, expected above 0 and below 1"),
        ({"inner.share": float("nan")}, "`inner.share`: got nan, expected above 0 and below 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_is_expected(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError) as refused:
        validate(with_values(Outer(), values))
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "values",
    [{"zero": 0}, {"zero": 2}, {"pair": (1, 1)}, {"inner.share": 0.5}, {"inner.size": 8}],
)
def test_values_in_range_are_accepted(values: dict[str, Any]) -> None:
    validate(with_values(Outer(), values))


#: What may change on resume, restated by hand.
RESUMABLE = (
    *("epochs", "evaluate_every", "device", "data_root", "source_root", "run_dir", "weights"),
    *("tensorboard", "profile", "ask", "annotator", "image.store_gib", "image.place"),
    *("image.cache", "image.cache_gib", "memory.one_read"),
    *("optimizer.lr", "optimizer.backbone_lr"),
    *("optimizer.momentum", "optimizer.weight_decay", "optimizer.step", "optimizer.gamma"),
)
RESUMABLE_GROUPS = ("engine.", "evaluation.", "cluster.", "questions.", "oracle.", "web.")


def test_settings_that_the_saved_state_depends_on_may_not_change_on_resume() -> None:
    expected = {
        key
        for key in settings_of(RunConfig)
        if key in RESUMABLE or key.startswith(RESUMABLE_GROUPS)
    }
    assert resumable_keys(RunConfig) == expected


def idle(config: RunConfig, **options: Any) -> list[str]:
    recipes = [recipe(config.dataset, name, config.method) for name in ("paper", "small")]
    return unread_settings(config, recipes, **options)


@pytest.mark.parametrize("method", ["ucal", "nnct", "supervised"])
@pytest.mark.parametrize("name", ["paper", "small"])
def test_no_recipe_has_settings_that_do_nothing(name: str, method: str) -> None:
    assert idle(recipe("market1501", name, method)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"source_root": "x"}, "`source_root` does nothing without `source`"),
        (
            {"adaptation": AdaptationConfig(weight=0.5)},
            "`adaptation.weight` does nothing without `source`",
        ),
        (
            {"adaptation": AdaptationConfig(weight=0.5), "source": "folder"},
            "`adaptation.weight` does nothing with `method` ucal; it is read with `method` nnct",
        ),
        (
            {"nnct": NNCTConfig(delta=1.0)},
            "`nnct.delta` does nothing with `method` ucal; it is read with `method` nnct",
        ),
        ({"neighbours_k": 2}, "`neighbours_k` does nothing with `method` ucal; it is read with"),
        ({"style": StyleConfig(band=0.1)}, "`style.band` does nothing without `camstyle`"),
        (
            {"style": StyleConfig(band=0.1), "camstyle": "colour"},
            "`style.band` does nothing with `camstyle` colour; it is read with `camstyle` fourier",
        ),
        ({"questions": QuestionConfig(budget=9)}, "`questions.budget` does nothing without `ask`"),
        (
            {"questions": QuestionConfig(l_max=9), "ask": "spal"},
            "`questions.l_max` does nothing with `ask` spal; it is read with `ask` ucal",
        ),
        (
            {"oracle": OracleConfig(error=0.1), "ask": "ucal", "annotator": "terminal"},
            "`oracle.error` does nothing with `annotator` terminal; it is read with `annotator` or",
        ),
        ({"oracle": OracleConfig(error=0.1)}, "`oracle.error` does nothing without `ask`"),
        (
            {"optimizer": OptimizerConfig(momentum=0.5)},
            "`optimizer.momentum` does nothing with `optimizer.name` adam; it is read with",
        ),
        (
            {"network": NetworkConfig(osnet_fc=False)},
            "`network.osnet_fc` does nothing with `model` resnet50",
        ),
        (
            {"batch": BatchConfig(per_identity=2), "method": "nnct"},
            "`batch.per_identity` does nothing with `method` nnct; it is read with `method` ucal",
        ),
        ({"data_root": "x", "dataset": "synthetic"}, "`data_root` does nothing with `dataset` sy"),
    ],
)
def test_a_setting_that_nothing_reads_is_named_with_the_reason(
    changes: dict[str, Any], warning: str
) -> None:
    config = replace(RunConfig(dataset="market1501"), **changes)
    lines = idle(config)
    assert [line for line in lines if line.startswith(warning)], lines
    assert len(lines) == 1 or changes.get("dataset") == "synthetic"


def test_an_object_in_place_of_a_name_is_not_checked_and_counts_as_set() -> None:
    config = RunConfig(dataset="market1501", ask="mine", questions=QuestionConfig(l_max=3))
    with pytest.raises(SettingError, match="`ask`: got 'mine', expected one of none, ucal"):
        validate(config)
    validate(config, objects=["ask"])
    plain = replace(config, ask="none")
    assert idle(plain) == ["`questions.l_max` does nothing without `ask`"]
    assert idle(plain, objects=["ask"]) == []


def test_names_of_other_packages_are_accepted_and_may_read_any_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = EntryPoint("mine", "nowhere:strategy", plugins.STRATEGIES)
    names = {**plugins.available(plugins.STRATEGIES), "mine": point}
    monkeypatch.setattr(plugins, "available", lambda group: names)
    config = RunConfig(dataset="market1501", ask="mine", questions=QuestionConfig(l_max=3))
    assert settings_of(RunConfig)["ask"].convert("mine") == "mine"
    assert idle(config) == []
    with pytest.raises(SettingError, match=r"got 'mone', .*; did you mean (mine|none)\?"):
        settings_of(RunConfig)["ask"].convert("mone")


@pytest.mark.usefixtures("released_models")
def test_the_page_of_settings_is_up_to_date() -> None:
    written = (ROOT / "docs" / "settings.md").read_text()
    command = "python -m fastreid_al.settings_page > docs/settings.md"
    assert written == settings_page.page(), f"docs/settings.md is stale; run {command}"
