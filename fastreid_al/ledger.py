"""`fastreid-al ledger`: read a ledger of answers, export, import, repair and check it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .cli import parse_ledger, run_main
from .errors import one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the ledger; exits with status 1 when a check finds damage."""
    options = parse_ledger(arguments)
    from .answers import report

    labels = options.command == "export" and options.what == "labels"
    if os.path.isdir(options.file) and not labels:
        options.file = _ledger_of_run(options.file)
    if options.command == "show":
        _print(report.show(options.file))
    elif labels:
        from .runs.epoch_labels import export_epoch_labels

        export_epoch_labels(options.file, options.epoch, options.format, options.out)
    elif options.command == "export":
        report.export(
            options.file,
            options.what,
            options.format,
            options.out,
            as_of=options.as_of,
            pair=options.pair,
        )
    elif options.command == "import":
        from .answers.imports import import_answers

        given = vars(options)
        lines = import_answers(
            options.file,
            given["from"],
            options.form,
            data_root=options.data_root,
            annotator=options.annotator,
        )
        _print(lines)
    elif options.command == "conflicts":
        _print(report.conflicts(options.file))
    elif options.command == "undo":
        _print([report.undo(options.file, options.event, options.annotator)])
    elif options.command == "digest":
        _print([report.digest(options.file, options.as_of)])
    elif problems := report.check(options.file):
        _print(problems)
        raise SystemExit(1)
    else:
        _print(["clean"])


def _ledger_of_run(folder: str) -> str:
    """Return the file or URL of the ledger of a run."""
    # Imported here: it takes seconds, and a ledger that is named itself does not need it.
    from .config import AnnotationConfig
    from .runs.annotate import find_source

    return find_source(AnnotationConfig(folder)).ledger


def _print(lines: Sequence[str]) -> None:
    print("\n".join(map(one_line, lines)))


if __name__ == "__main__":
    run_main(main)
