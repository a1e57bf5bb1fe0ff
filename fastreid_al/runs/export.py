"""Exports what a run left behind: the identities of its images, or its network."""

from __future__ import annotations

from typing import get_args

from ..config import ExportConfig, LabelForm
from ..distributed.launch import require_single_process
from ..engine.console import Reporter
from ..errors import SettingError
from ..settings import validate


def export_run(options: ExportConfig, reporter: Reporter | None = None) -> None:
    """Write the identities that a run found, or its network, for other programs.

    Args:
        options: The run, and what to write.
        reporter: Prints lines and progress.

    Raises:
        UserError: The run cannot be read, or the output cannot be written.
    """
    reporter = reporter or Reporter()
    require_single_process("an export")
    validate(options)
    if options.what in get_args(LabelForm):
        _refuse_network_options(options)
        from .export_labels import export_labels

        export_labels(options, reporter)
    else:
        from .export_network import export_network

        export_network(options, reporter)


def _refuse_network_options(options: ExportConfig) -> None:
    """Refuse options of a network's file in an export of identities."""
    for key in ("check", "half"):
        if getattr(options, key):
            hint = "it applies to the file of a network"
            raise SettingError(key, True, f"false with `what` {options.what}", hint)
