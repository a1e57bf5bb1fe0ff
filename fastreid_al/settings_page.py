"""`python -m fastreid_al.settings_page > docs/settings.md`: write the reference of all settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .cli import SECTIONS, TRAINING_OPTIONS, as_options, option, written
from .config import (
    AnnotationConfig,
    EvaluationConfig,
    ExportConfig,
    ExtractionConfig,
    ReportConfig,
    RunConfig,
    SearchConfig,
    SimulationConfig,
    SyntheticConfig,
    recipe,
)
from .settings import Setting, flatten, groups_of, settings_of

_INTRODUCTION = """# Settings

<!-- Written by `python -m fastreid_al.settings_page > docs/settings.md`; do not edit. -->

Every setting is an option of the command line, a key of a YAML file that `--config` reads, and a
field of a configuration class in `fastreid_al.config`. The option `--batch.size` is the key `size`
below `batch` in YAML, and `batch.size` of a `RunConfig` in Python. An option may be written with
dashes or underscores.

`fastreid-al train --print-config > settings.yaml` writes all settings of a run into a file.

- **Default** names the recipes whose default differs: *small* (chosen for the synthetic set, or by
  `--recipe small`), *nnct* and *nnct small* (with `--method nnct`), *reid* (`--recipe reid`),
  *msmt17* (that image set).
- **Resume** says whether the value may change when a run is resumed.
- **Read with** names the settings without which the value has no effect. A run in which such a
  value was changed warns.
"""
_RECIPES: Mapping[str, RunConfig] = {
    "msmt17": recipe("msmt17", "paper", "ucal"),
    "small": recipe("market1501", "small", "ucal"),
    "reid": recipe("market1501", "reid", "ucal"),
    "nnct": recipe("market1501", "paper", "nnct"),
    "nnct small": recipe("market1501", "small", "nnct"),
}
#: Settings that choose the recipe.
_CHOOSE = ("dataset", "method")


def page() -> str:
    """Return the reference of all settings as Markdown."""
    parts = [_INTRODUCTION, *_training()]
    evaluation = settings_of(EvaluationConfig)
    parts += ["## Options of evaluate\n", _short_table(evaluation, ("engine", "synthetic"))]
    commands = {
        **{"export": ExportConfig, "extract": ExtractionConfig},
        **{"search": SearchConfig, "report": ReportConfig},
    }
    for command, cls in commands.items():
        parts += [f"## Options of {command}\n", _short_table(settings_of(cls), ("engine",))]
    parts += ["## Options of annotate\n", _short_table(settings_of(AnnotationConfig), ())]
    simulation = settings_of(SimulationConfig)
    parts.append("## Options of simulate\n")
    parts.append(_short_table(simulation, ("cluster", "questions", "oracle")))
    parts += ["## Options of synthesize\n", _short_table(settings_of(SyntheticConfig), ())]
    return "\n".join(parts)


def _training() -> list[str]:
    known = dict(settings_of(RunConfig))
    known |= {setting.key: setting for setting in TRAINING_OPTIONS}
    usual = {name: flatten(config) for name, config in _RECIPES.items()}
    parts = ["## Options of train\n"]
    for title, keys in SECTIONS.items():
        settings = [known[key] for key in keys if key in known]
        parts += [f"### {title}\n", _table(settings, usual)]
    for name, help in groups_of(RunConfig).items():
        settings = [s for key, s in known.items() if key.rpartition(".")[0] == name]
        parts += [f"### `{option(name)}.*`\n", f"{help}\n", _table(settings, usual)]
    return parts


def _table(settings: Iterable[Setting], usual: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for setting in settings:
        resume = "yes" if setting.resumable else "no"
        only = _with_options(", ".join(str(condition) for condition in setting.only))
        default = _default(setting, usual)
        help = _with_options(setting.sentence)
        rows.append([_name(setting), default, _allowed(setting), resume, only, help])
    return _markdown(["Option", "Default", "Allowed", "Resume", "Read with", "Meaning"], rows)


def _short_table(known: Mapping[str, Setting], groups: Iterable[str]) -> str:
    """The settings of a command, without those of groups that training has as well."""
    rows = []
    for setting in known.values():
        if "." in setting.key:
            continue
        default = "required" if setting.default is ... else _value(setting.default)
        help = _with_options(setting.sentence)
        rows.append([_name(setting), default, _allowed(setting), help])
    text = _markdown(["Option", "Default", "Allowed", "Meaning"], rows)
    names = " and ".join(f"`{option(group)}.*`" for group in groups)
    return f"{text}\n{names} as for training.\n" if names else text


def _name(setting: Setting) -> str:
    return f"`{option(setting.key)}`"


def _default(setting: Setting, usual: Mapping[str, Mapping[str, Any]]) -> str:
    values = [_value(setting.default)]
    for name, values_of in usual.items():
        value = values_of.get(setting.key, setting.default)
        if value != setting.default and setting.key not in _CHOOSE:
            values.append(f"{name}: {_value(value)}")
    return "; ".join(values)


def _value(value: Any) -> str:
    return "" if value is None else f"`{written(value)}`"


def _allowed(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(setting.choices)
    kinds = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    kind = "two numbers" if setting.is_pair else kinds[setting.kind]
    return f"{kind}, {_with_options(setting.range)}" if setting.range else kind


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table whose cells may contain vertical bars."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(text.replace("|", "\\|") for text in row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def _with_options(text: str) -> str:
    """Replace keys in backquotes by options in backquotes."""
    words = text.split("`")
    for place in range(1, len(words), 2):
        words[place] = as_options(f"`{words[place]}`").strip("`")
    return "`".join(words)


if __name__ == "__main__":
    print(page(), end="")
