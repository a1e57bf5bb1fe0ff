"""`fastreid-al doctor`: report what is installed, what runs, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Sequence

from .cli import as_options, parse_diagnosis, run_main
from .errors import one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report; exits with status 1 when something essential does not work."""
    parse_diagnosis(arguments)
    from .runs.doctor import diagnose

    broken = 0
    for line in diagnose():
        broken += line.broken
        text = one_line(as_options(line.text))
        print(f"{'!' if line.broken else ' '} {line.topic:<13} {text}", flush=True)
    if broken:
        print(f"{broken} of these, marked with '!', must be fixed")
        raise SystemExit(1)
    print("everything essential works")


if __name__ == "__main__":
    run_main(main)
