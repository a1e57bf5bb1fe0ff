"""Reads settings from a YAML or JSON file, within fixed bounds of size, depth and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import UserError, printable
from .settings import flatten

#: Most bytes of a file of settings; that of a run takes 6 kB.
_LARGEST = 2**20
#: Most values and groups of a file, and how deep they are nested.
_MOST = 20_000
_DEEPEST = 10
#: Most characters of a value; those of a number that Python converts from text.
_LONGEST = 4096


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML or JSON file, by key.

    Args:
        path: The file.

    Raises:
        UserError: It cannot be read, is no YAML, is larger or more deeply nested than settings are,
            or holds aliases, which can stand for any amount of values.
    """
    import yaml

    try:
        text = _read(path)
        _check_bounds(text)
        content = yaml.safe_load(text)
        _check_keys(content)
    except Exception as error:  # PyYAML raises a wide range of types on values that are none.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise UserError(f"{printable(path)} cannot be read as settings ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{printable(path)} holds no settings; write some with `print_config`")
    return flatten(content)


def _read(path: Path) -> str:
    with open(path, "rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes")
    return content.decode()


def _check_bounds(text: str) -> None:
    """Refuse what would take long to build, from the events of the parser alone."""
    import yaml

    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it holds the alias *{event.anchor}; write the value itself")
        if depth > _DEEPEST:
            raise ValueError(f"its values are nested more than {_DEEPEST} deep")
        if number > _MOST:
            raise ValueError(f"it holds more than {_MOST} values")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST:
            raise ValueError(f"a value has more than {_LONGEST} characters")


def _check_keys(content: object) -> None:
    """Refuse keys that are not names, at any depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise ValueError(f"got the key {key!r}, expected the name of a setting")
            _check_keys(value)
    elif isinstance(content, list):
        for value in content:
            _check_keys(value)
