"""Errors that the user can act on: one line that says what is wrong and what to do.

File names may hold any bytes: terminal sequences, line breaks, bytes that are no text. `printable`
writes such a name into a message so that it can be read back, and a message is always one line.
"""

from __future__ import annotations

import os
import re
import unicodedata

_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG = {escape: char for char, escape in _SHORT.items()}
_ESCAPE = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
#: Most characters of a setting's value in a message.
_LONGEST = 200
#: Python's stand-ins (surrogates) for bytes of a name that are not UTF-8 begin here.
_BYTES = 0xDC00


def printable(name: str | bytes | os.PathLike[str]) -> str:
    r"""Return a file name, or other text of unknown origin, as a terminal may show it.

    Backslashes, control characters, line breaks, characters that change the direction of text, and
    bytes that are not UTF-8 are escaped as in Python: `\\`, `\n`, `\x1b`, `\u202e`; a byte that is
    not UTF-8 is `\xNN`. Other characters stay, of any script. `parse_printable` is the inverse.

    Args:
        name: The name.
    """
    text = os.fsdecode(name)
    return "".join(_escaped(char) for char in text) if _needs_escape(text) else text


def parse_printable(text: str) -> str:
    """Return the name that `printable` turned into `text`."""
    return _ESCAPE.sub(lambda found: _unescaped(found[0]), text)


def one_line(text: str) -> str:
    """Return a message as one line that a terminal may show; printable names in it do not change.

    Args:
        text: The message.
    """
    return text if text.isprintable() else "".join(map(_escaped_in_message, text))


def counted(count: int, one: str, many: str) -> str:
    """Return a number and what it counts: "1 query", "2,000 queries".

    Args:
        count: The number.
        one: The noun for one.
        many: The noun for any other number.
    """
    return f"{count:,} {one if count == 1 else many}"


def _needs_escape(text: str) -> bool:
    return "\\" in text or not text.isprintable()


def _escaped_in_message(char: str) -> str:
    return char if char == "\\" else _escaped(char)


def _escaped(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    if char.isprintable() or unicodedata.category(char) == "Zs":
        return char
    code = ord(char)
    if code < 0x80 or _BYTES + 0x80 <= code <= _BYTES + 0xFF:
        return f"\\x{code & 0xFF:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _unescaped(escape: str) -> str:
    if escape in _LONG:
        return _LONG[escape]
    code = int(escape[2:], 16)
    if escape[1] == "x" and code >= 0x80:
        code += _BYTES
    return chr(code) if code <= 0x10FFFF else escape


class UserError(Exception):
    """Something that the user can act on; entry points print its message and exit with status 2.

    The message is one line that a terminal may show, whatever names it holds.
    """

    #: Whether another process of the run says the same.
    said = False

    def __str__(self) -> str:
        return one_line(super().__str__())


def _shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write numbers of more than 4,300 digits.
        text = "a number of very many digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class SettingError(UserError):
    """A setting whose value cannot be used.

    The message names settings by their key in backquotes, such as `batch.size`. The command line
    prints them as options; library code never spells an option.

    Args:
        key: Key of the setting, such as "batch.size".
        got: Its value.
        expected: What the setting takes, such as "2 or more".
        hint: What to do, as a clause; empty when `expected` says enough.
    """

    def __init__(self, key: str, got: object, expected: str, hint: str = "") -> None:
        super().__init__(
            f"`{key}`: got {_shown(got)}, expected {expected}" + (f"; {hint}" if hint else "")
        )
        self.key = key
        self.got = got
        self.expected = expected
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the arguments, not the message: ranks send each other their errors."""
        return type(self), (self.key, self.got, self.expected, self.hint)


class DataError(UserError):
    """An image set that cannot be read as asked."""


class WeightsError(UserError):
    """A weights file that is missing or does not fit the network."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read, or continued."""


class TrainingError(UserError):
    """A run that cannot continue; its last checkpoint is intact."""


class DivergedError(TrainingError):
    """A loss, weights or features that are not finite. The training loop adds what to do."""


class LedgerError(UserError):
    """A ledger of answers that cannot be used as asked."""
