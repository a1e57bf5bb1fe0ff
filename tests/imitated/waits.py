"""The list of lines that make the host wait for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

#: For each case its name, and then its lines: file, function, what is called, source.
LIST = Path(__file__).with_name("waits.txt")


def listed() -> dict[str, list[str]]:
    """The lines of each case that has any."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in LIST.read_text().splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            found[name] = []
        elif line and not line.startswith("#"):
            found[name].append(line)
    return found


def write(cases: Mapping[str, Sequence[str]]) -> None:
    """Write the list.

    Args:
        cases: Lines by case.
    """
    parts = [
        "# Lines that make the host wait for the device, by case of cases.py. Steps of a training\n"
        "# wait for the sizes of label lists alone; the rest is done once in an epoch or less.\n"
    ]
    for name, lines in cases.items():
        if lines:
            parts.append("\n".join([f"[{name}]", *lines]) + "\n")
    LIST.write_text("\n".join(parts))
