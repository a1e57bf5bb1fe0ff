"""Reads what the page sends: every field is checked, and an error is one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..answers.question import Verdict
from ..answers.tasks import TAGS, Submission
from .problems import ProblemError

#: Numbers of JavaScript that are exact go up to here.
_LARGEST = 2**53 - 1
_MOST_ITEMS = 1000
_MOST_SECONDS = 24 * 3600.0
_LONGEST_TEXT = 2000
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,64}")
_VERDICTS = tuple(verdict.value for verdict in Verdict)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        ProblemError: It is not one (400).
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, "the body of the request is not JSON") from error
    if not isinstance(found, dict):
        raise ProblemError(400, "the body of the request is not a JSON object")
    return found


def number_in(values: Mapping[str, Any], name: str) -> int:
    """Return a field that is the number of a task, an image or an event.

    Raises:
        ProblemError: It is missing, or not such a number (400).
    """
    return _number(name, values.get(name))


def numbers_in(values: Mapping[str, Any], name: str) -> list[int]:
    """Return a field that is a list of numbers.

    Raises:
        ProblemError: It is missing, or not such a list (400).
    """
    found = values.get(name)
    if not isinstance(found, list) or len(found) > _MOST_ITEMS:
        raise ProblemError(400, f"{name}: expected a list of at most {_MOST_ITEMS} numbers")
    return [_number(name, value) for value in found]


def parse_number(name: str, text: str | None) -> int:
    """Return a number that is part of an address.

    Args:
        name: What it is, for the message.
        text: The text.

    Raises:
        ProblemError: It is missing, or not such a number (400).
    """
    fits = text is not None and text.isascii() and text.isdecimal() and len(text) <= 16
    return _number(name, int(text) if fits and text is not None else None)


def text_in(values: Mapping[str, Any], name: str) -> str:
    """Return a field that is text, empty where it is missing.

    Raises:
        ProblemError: It is not text, or too long (400).
    """
    found = values.get(name, "")
    found = "" if found is None else found
    if not isinstance(found, str) or len(found) > _LONGEST_TEXT:
        raise ProblemError(400, f"{name}: expected text of at most {_LONGEST_TEXT:,} characters")
    # A lone surrogate is no character, and no file or database can hold it.
    return found.encode("utf-8", "replace").decode().strip()


def parse_submission(values: Mapping[str, Any]) -> Submission:
    """Return the answer to a task.

    Raises:
        ProblemError: A field is missing or wrong (400).
    """
    token = values.get("token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ProblemError(400, "token: expected 8 to 64 letters, digits, - or _")
    verdicts = values.get("verdicts")
    if not isinstance(verdicts, dict) or not 0 < len(verdicts) <= _MOST_ITEMS:
        raise ProblemError(400, "verdicts: expected a verdict by the number of each question")
    said = {parse_number("verdicts", key): _verdict(value) for key, value in verdicts.items()}
    confirmed = values.get("all_confirmed", False)
    if not isinstance(confirmed, bool):
        raise ProblemError(400, "all_confirmed: expected true or false")
    tags = values.get("tags", [])
    if not isinstance(tags, list) or not all(_is_text(tag) and tag in TAGS for tag in tags):
        raise ProblemError(400, f"tags: expected a list of {', '.join(TAGS)}")
    return Submission(
        task_id=number_in(values, "task"),
        token=token,
        verdicts=said,
        odd=numbers_in(values, "odd") if "odd" in values else [],
        other_side=numbers_in(values, "other_side") if "other_side" in values else [],
        all_confirmed=confirmed,
        comment=text_in(values, "comment") or None,
        tags=[tag for tag in TAGS if tag in tags],
        active_seconds=seconds_in(values, "active_seconds"),
        idle_seconds=seconds_in(values, "idle_seconds"),
        source="web",
        shown=numbers_in(values, "shown") if "shown" in values else None,
    )


def _number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise ProblemError(400, f"{name}: expected a whole number, 0 or more")
    return value


def _verdict(value: Any) -> Verdict:
    if not _is_text(value) or value not in _VERDICTS:
        raise ProblemError(400, f"verdicts: expected one of {', '.join(_VERDICTS)}")
    return Verdict(value)


def seconds_in(values: Mapping[str, Any], name: str) -> float:
    """Return a field that is seconds, 0 where it is missing and a day at most.

    Raises:
        ProblemError: It is no such number (400).
    """
    value = values.get(name, 0.0)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise ProblemError(400, f"{name}: expected seconds, 0 or more")
    # A tablet that slept for days must not count them. Some whole numbers fit into no float.
    return float(min(max(value, 0.0), _MOST_SECONDS))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
