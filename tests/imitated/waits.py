"""The list of lines that make the host wait for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

#: For each case its name, and then its lines: file, function, what is called, source.
LIST = Path(__file__).with_name("waits.txt")
#: Begins the names of the cases of rank_cases.py.
TWO_RANKS = "two ranks, "


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
    """Replace the lines of some cases in the list.

    Args:
        cases: Lines by case.
    """
    parts = [
        "# Lines that make the host wait for the device, by case of cases.py, and of\n"
        "# rank_cases.py for two ranks. Steps of a training wait for the sizes of label lists\n"
        "# alone; plain BatchNorms over two ranks, which are PyTorch's, wait as well. The rest is\n"
        "# done once in an epoch or less.\n"
    ]
    for name, lines in {**listed(), **cases}.items():
        if lines:
            parts.append("\n".join([f"[{name}]", *lines]) + "\n")
    LIST.write_text("\n".join(parts))
