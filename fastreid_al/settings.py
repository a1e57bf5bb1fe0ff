"""Declares a setting once, as metadata of its dataclass field, and derives everything else.

A field of a configuration class is declared with `setting`: its default, its sentence of help,
its range, whether it may change when a run is resumed, and when it is read. The checks, the command
line, the docstrings and docs/settings.md are made from these declarations.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from . import plugins
from .errors import SettingError

T = TypeVar("T")
C = TypeVar("C")

_KINDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}
#: The words of YAML.
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_BOUNDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


@dataclass(frozen=True)
class When:
    """A condition on another setting, without which a setting is not read.

    Args:
        key: Key of the other setting.
        values: Its values that the condition names.
        named: Whether the other setting must have one of these values, or must have none of them.
    """

    key: str
    values: tuple[Any, ...]
    named: bool = True

    def __str__(self) -> str:
        values = " or ".join("none" if v is None else str(v) for v in self.values)
        return f"`{self.key}` {values}" if self.named else f"`{self.key}` other than {values}"


def when(key: str, *values: Any) -> When:
    """The condition that the setting `key` has one of these values."""
    return When(key, values)


def unless(key: str, *values: Any) -> When:
    """The condition that the setting `key` has none of these values."""
    return When(key, values, named=False)


@dataclass(frozen=True)
class Setting:
    """Everything known of one setting.

    Args:
        help: One sentence.
        default: Its default; `...` when it must be given.
        unset: What holds when the value is None, as a phrase.
        at_least: Lowest value: a number, or the key of another setting.
        above: Number or key that the value exceeds.
        at_most: Highest value: a number, or the key of another setting.
        below: Number or key that the value stays under.
        also: Values outside the range that are allowed as well.
        names: Group of `plugins` whose names are allowed, besides those in `also`.
        replaced: Values of earlier versions, each with the value that replaces it in files and on
            command lines.
        resumable: Whether the value may change when a run is resumed.
        path: Whether it names a file or folder, in which `~` stands for the user's home.
        several: Whether the value may be several of its names, with commas between.
        only: Conditions without which it is not read.
        key: Its key, such as "batch.size".
        type: Its annotation.
    """

    help: str
    default: Any = ...
    unset: str = ""
    at_least: float | str | None = None
    above: float | str | None = None
    at_most: float | str | None = None
    below: float | str | None = None
    also: tuple[Any, ...] = ()
    names: str = ""
    replaced: tuple[tuple[str, str], ...] = ()
    resumable: bool = False
    path: bool = False
    several: bool = False
    only: tuple[When, ...] = ()
    key: str = ""
    type: Any = None

    @property
    def optional(self) -> bool:
        """Whether None is allowed."""
        return type(None) in get_args(self.type)

    @property
    def kind(self) -> Any:
        """The type of a value that is not None: int, float, bool, str, Literal, pair of floats."""
        if get_origin(self.type) not in (Union, UnionType):
            return self.type
        # Of a number or a word, the word is in `also`.
        return next(t for t in get_args(self.type) if t is not type(None))

    @property
    def is_pair(self) -> bool:
        """Whether a value is two numbers."""
        return get_origin(self.kind) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that are allowed; empty where any value of the type is."""
        if get_origin(self.kind) is Literal:
            return get_args(self.kind)
        return (*self.also, *plugins.available(self.names)) if self.names else ()

    @property
    def sentence(self) -> str:
        """The help, with what holds when no value is given."""
        return f"{self.help.rstrip('.')}; {self.unset} when not given." if self.unset else self.help

    @property
    def range(self) -> str:
        """The allowed values in words; empty where every value of the type is allowed."""
        low, high = self._bound("at_least"), self._bound("at_most")
        above, below = self._bound("above"), self._bound("below")
        if low:
            text = f"{low} to {high}" if high else f"{low} to less than {below}" if below else ""
            text = text or f"{low} or more"
        elif above:
            text = f"above {above}" + (f", up to {high}" if high else "")
            text += f" and below {below}" if below else ""
        else:
            return ""
        return ", or ".join([text, *map(str, self.also)])

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            one = "one or more, with commas between, of" if self.several else "one of"
            return f"{one} {', '.join(self.choices)}"
        kind = "[low,high], two numbers" if self.is_pair else _KINDS[self.kind]
        return f"{kind}, {self.range}" if self.range else kind

    def convert(self, value: Any) -> Any:
        """The value from a word of the command line, or from a YAML file.

        Raises:
            SettingError: It is not of the setting's type, or not one of its names.
        """
        if self.optional and value in (None, "null"):
            return None
        if self.choices:
            return self._one_of_choices(value)
        if isinstance(value, str) and value in self.also:
            return value
        if self.path and isinstance(value, str) and value.startswith("~"):
            return os.path.expanduser(value)
        try:
            return _converted(self.kind, value)
        except (ValueError, TypeError):
            raise SettingError(self.key, value, self.expected) from None

    def check(self, value: Any, others: Mapping[str, Any]) -> None:
        """Refuse a value of the wrong type or out of range.

        Args:
            value: The value.
            others: All settings by key, for bounds that are other settings. A bound that is missing
                here is not checked.

        Raises:
            SettingError: The value cannot be used.
        """
        if value is None and self.optional:
            return
        if self.choices:
            self._one_of_choices(value)
        elif isinstance(value, str) and value in self.also:
            return
        elif not _is_a(self.kind, value):
            raise SettingError(self.key, value, self.expected)
        elif value not in self.also and not self._in_range(value, others):
            pair = "[low,high], " if self.is_pair else ""
            raise SettingError(self.key, value, pair + self.range)

    def _bound(self, name: str) -> str:
        bound = getattr(self, name)
        if bound is None:
            return ""
        return f"`{bound}`" if isinstance(bound, str) else f"{bound:g}"

    def _in_range(self, value: Any, others: Mapping[str, Any]) -> bool:
        values = tuple(value) if self.is_pair else (value,)
        if self.is_pair and values[0] > values[1]:
            return False
        for name, compare in _BOUNDS.items():
            bound = getattr(self, name)
            bound = others.get(bound) if isinstance(bound, str) else bound
            if bound is not None and not all(compare(v, bound) for v in values):
                return False
        return True

    def _one_of_choices(self, value: Any) -> str:
        if isinstance(value, str):
            names = separated(value) if self.several else [value]
            if names and all(name in self.choices for name in names):
                return value
        raise SettingError(self.key, value, self.expected, did_you_mean(value, self.choices))


def separated(text: str) -> list[str]:
    """The parts of a text with commas between, without white space around them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def did_you_mean(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "did you mean X?" for a wrong word, or "" when no known word is near."""
    near = difflib.get_close_matches(str(word), list(known), 1, cutoff)
    return f"did you mean {near[0]}?" if near else ""


def _converted(kind: Any, value: Any) -> Any:
    """The value of a kind from text or from a value of YAML, or ValueError or TypeError."""
    text = isinstance(value, str)
    if kind is bool and text:
        value = _TRUTH.get(value.lower(), value)
    elif kind in (int, float) and text:
        value = kind(value)
        if kind is float and not math.isfinite(value):
            raise ValueError(value)
    elif get_origin(kind) is tuple:
        parts = _bracketed(value) if text else list(value)
        # YAML reads 1e-3, which has no point, as text.
        value = tuple(_converted(float, part) for part in parts)
    if not _is_a(kind, value):
        raise ValueError(value)
    return float(value) if kind is float else value


def _bracketed(text: str) -> list[str]:
    """The parts of `[a,b]`."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    return text[1:-1].split(",")


def _is_a(kind: Any, value: Any) -> bool:
    if get_origin(kind) is tuple:
        fits = isinstance(value, tuple | list) and len(value) == 2
        return fits and all(_is_a(float, v) for v in value)
    if kind in (int, float):
        number = Integral if kind is int else Real
        fits = isinstance(value, number) and not isinstance(value, bool)
        # PyTorch and NumPy take whole numbers of 64 bits.
        return fits and (not isinstance(value, Integral) or -(2**63) <= int(value) < 2**63)
    return isinstance(value, kind)


def setting(default: T, help: str, *, only: When | Iterable[When] = (), **facts: Any) -> T:
    """Declare a field of a configuration class.

    Args:
        default: Its default.
        help: One sentence of help.
        only: The condition, or conditions, without which the setting is not read.
        facts: The other facts of `Setting`: unset, at_least, above, at_most, below, also, names,
            replaced and resumable.
    """
    conditions = (only,) if isinstance(only, When) else tuple(only)
    facts = {"default": default, "only": conditions, **facts}
    field: Any = dataclasses.field(default=default, metadata={"setting": Setting(help, **facts)})
    return field


def required(help: str, **facts: Any) -> Any:
    """Declare a field of a configuration class that has no default."""
    return dataclasses.field(metadata={"setting": Setting(help, **facts)})


def like(cls: type, name: str, default: Any = ..., **facts: Any) -> Any:
    """Declare a field with the facts of a field of another class, and without its conditions.

    Args:
        cls: The other configuration class.
        name: Name of its field.
        default: Another default; the field's own when not given.
        facts: Facts that differ.
    """
    (field,) = (f for f in dataclasses.fields(cls) if f.name == name)
    known: Setting = field.metadata["setting"]
    default = known.default if default is ... else default
    facts = {"only": (), "resumable": False, **facts}
    changed = dataclasses.replace(known, default=default, **facts)
    return dataclasses.field(default=default, metadata={"setting": changed})


def group(cls: type[C], help: str, *, only: When | None = None, **changes: Any) -> C:
    """Declare a field of a configuration class that is a group of settings.

    Args:
        cls: The configuration class of the group.
        help: One sentence of help.
        only: The condition without which none of its settings is read.
        changes: Settings of the group whose default differs from that of its class.
    """
    conditions = () if only is None else (only,)
    metadata = {"group": help, "only": conditions, "changes": changes}
    field: Any = dataclasses.field(default_factory=lambda: cls(**changes), metadata=metadata)
    return field


def documented(cls: type[C]) -> type[C]:
    """Complete the docstring of a configuration class by the help of its fields."""
    lines = [cls.__doc__ or "", "", "Args:"]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        known = field.metadata.get("setting")
        sentence = known.sentence if known else field.metadata["group"]
        indent = " " * 8
        text = f"{field.name}: {sentence}"
        lines += textwrap.wrap(text, 96, initial_indent=" " * 4, subsequent_indent=indent)
    cls.__doc__ = "\n".join(lines) + "\n"
    return cls


def _once_per_class(function: Callable[[type], T]) -> Callable[[type], T]:
    """Call a function once for each configuration class."""
    return cast(Callable[[type], T], cache(function))


@_once_per_class
def settings_of(cls: type) -> Mapping[str, Setting]:
    """The settings of a configuration class by key, those of its groups included."""
    found: dict[str, Setting] = {}
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        metadata, kind = field.metadata, types[field.name]
        if "setting" in metadata:
            found[field.name] = dataclasses.replace(metadata["setting"], key=field.name, type=kind)
            continue
        for key, inner in settings_of(kind).items():
            found[f"{field.name}.{key}"] = dataclasses.replace(
                inner,
                key=f"{field.name}.{key}",
                only=metadata["only"] + inner.only,
                default=metadata["changes"].get(key, inner.default),
            )
    return found


@_once_per_class
def groups_of(cls: type) -> Mapping[str, str]:
    """The groups of a configuration class by key, with their sentence of help."""
    found: dict[str, str] = {}
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "group" in field.metadata:
            found[field.name] = field.metadata["group"]
            inner = groups_of(types[field.name])
            found |= {f"{field.name}.{key}": help for key, help in inner.items()}
    return found


@_once_per_class
def removed_settings(cls: type) -> Mapping[str, str]:
    """Settings of earlier versions by key, and what happens instead.

    A configuration class lists them as `removed`. Files and command lines that name them are
    accepted with a warning.
    """
    found = dict(getattr(cls, "removed", {}))
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "group" in field.metadata:
            inner = removed_settings(types[field.name])
            found |= {f"{field.name}.{key}": instead for key, instead in inner.items()}
    return found


def with_values(config: C, values: Mapping[str, Any]) -> C:
    """Return a configuration with other values, given by key."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if "group" in field.metadata:
            prefix = f"{field.name}."
            inner = {k[len(prefix) :]: v for k, v in values.items() if k.startswith(prefix)}
            changes[field.name] = with_values(getattr(config, field.name), inner)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def resumable_keys(cls: type) -> frozenset[str]:
    """Keys of the settings that may change when a run is resumed."""
    return frozenset(key for key, known in settings_of(cls).items() if known.resumable)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a configuration by key.

    `{"batch": {"size": 64}}` becomes `{"batch.size": 64}`.

    Args:
        config: A configuration object, or nested mappings of its values.
        prefix: Prepended to every key.
    """
    values = config if isinstance(config, Mapping) else dataclasses.asdict(config)
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def validate(config: Any, objects: Collection[str] = ()) -> None:
    """Refuse settings that cannot work.

    Args:
        config: A configuration object. Where a class has a method `relations`, it yields what must
            hold between several settings: the key to name, whether it holds, and what is expected.
        objects: Keys whose names are not checked, because the caller passes an object instead.

    Raises:
        SettingError: A value has the wrong type, is out of range, or does not fit another setting.
    """
    values = flatten(config)
    known = settings_of(type(config))
    for key, value in values.items():
        if key not in objects:
            # A bound that is another setting holds only where this setting is read.
            others = {} if _unmet(known[key], values, known, objects) else values
            known[key].check(value, others)
    for key, holds, expected in _relations(config):
        if not holds:
            raise SettingError(key, values[key], expected)


def _relations(config: Any, prefix: str = "") -> Iterable[tuple[str, bool, str]]:
    if hasattr(config, "relations"):
        for name, holds, expected in config.relations():
            yield prefix + name, holds, expected
    for field in dataclasses.fields(config):
        if "group" in field.metadata:
            yield from _relations(getattr(config, field.name), f"{prefix}{field.name}.")


def unread_settings(
    config: Any, recipes: Iterable[Any] = (), objects: Collection[str] = ()
) -> list[str]:
    """Settings that were changed and that nothing reads, each with the reason, in one line.

    Args:
        config: The configuration of a run.
        recipes: Configurations whose values count as unchanged, besides the defaults.
        objects: Keys of extensions for which the caller passes an object instead of a name.
    """
    known = settings_of(type(config))
    values = flatten(config)
    usual = [flatten(recipe) for recipe in recipes]
    lines = []
    for key, value in values.items():
        changed = value not in [known[key].default, *(r[key] for r in usual)]
        unmet = _unmet(known[key], values, known, objects) if changed else None
        if unmet is not None:
            lines.append(f"`{key}` does nothing {_reason(unmet, values[unmet.key])}")
    return lines


def _unmet(
    setting: Setting,
    values: Mapping[str, Any],
    known: Mapping[str, Setting],
    objects: Collection[str],
) -> When | None:
    """The first condition that does not hold, of a setting or of the settings it depends on."""
    for condition in setting.only:
        if condition.key not in values:
            continue
        unmet = _unmet(known[condition.key], values, known, objects)
        if unmet is not None:
            return unmet
        if condition.key not in objects and not _holds(condition, values, known):
            return condition
    return None


def _holds(condition: When, values: Mapping[str, Any], known: Mapping[str, Setting]) -> bool:
    value, other = values[condition.key], known[condition.key]
    if (value in condition.values) == condition.named:
        return True
    # An extension of another package may read any setting.
    built_in = (*other.also, *plugins.BUILT_IN[other.names]) if other.names else (value,)
    return value is not None and value not in built_in


def _reason(unmet: When, value: Any) -> str:
    if value in ("none", None):
        return f"without `{unmet.key}`"
    return f"with `{unmet.key}` {value}" + (f"; it is read with {unmet}" if unmet.named else "")
