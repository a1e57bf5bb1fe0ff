"""`fastreid-al data check`: report what would be read of an image set."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .cli import as_options, parse_data, run_main
from .errors import one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report, as lines or as JSON."""
    options = parse_data(arguments)
    from .runs.data_check import check_data

    report = check_data(
        options.root,
        options.dataset,
        camera_pattern=options.camera_pattern,
        identity_pattern=options.identity_pattern,
        frames=options.tracklet_frames,
    )
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
        return
    for line in report.lines():
        print(one_line(as_options(line)))


if __name__ == "__main__":
    run_main(main)
