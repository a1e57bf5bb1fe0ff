"""Files for annotation tools: a table for FiftyOne, tasks for Label Studio."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..data import ImageSet
from .table import COLUMNS, UNREAD, LabelTable, quoted

#: Who made a pre-annotation, as Label Studio shows it.
_MODEL = "fastreid_al"

#: Writes a table into an open binary file, and returns how many images were left out.
ToolWriter = Callable[[LabelTable, ImageSet, Any], int]


def write_fiftyone(table: LabelTable, images: ImageSet, file: Any) -> int:
    """Write a table that FiftyOne loads as `fiftyone.types.CSVDataset`.

    Its columns are those of `LabelTable`, after `filepath`, the absolute path of the image.

    Args:
        table: The identities of the set's training images.
        images: The set.
        file: An open binary file.

    Returns:
        The number of images that are left out: they cannot be read, or FiftyOne cannot hold their
        names, which are not UTF-8.
    """
    left_out = 0
    file.write((",".join(["filepath", *COLUMNS]) + "\n").encode())
    for row, (path, *others) in enumerate(table.rows()):
        whole = str(images.train[row].path.absolute())
        if table.sources[row] == UNREAD or not _is_text(whole):
            left_out += 1
            continue
        file.write((",".join([quoted(whole), quoted(path), *others]) + "\n").encode())
    return left_out


def _is_text(name: str) -> bool:
    """Whether the bytes of a name are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_label_studio(table: LabelTable, images: ImageSet, file: Any) -> int:
    """Write tasks for Label Studio, with the identity and `review` of each image as a prediction.

    The images are addressed as local files below the folder that holds the set's folder, because
    Label Studio serves only files of folders below its document root. The labelling configuration
    has an Image `image`, a TextArea `identity` and Choices `review`.

    Args:
        table: The identities of the set's training images.
        images: The set.
        file: An open binary file.

    Returns:
        The number of images that are left out, because they cannot be read.
    """
    left_out = 0
    between = b"[\n"
    folder = Path(os.path.abspath(images.root)).name
    for row, path in enumerate(table.paths):
        if table.sources[row] == UNREAD:
            left_out += 1
            continue
        task = _task(table, row, path, f"{folder}/{path}")
        file.write(between + json.dumps(task).encode())
        between = b",\n"
    file.write(b"\n]\n" if between != b"[\n" else b"[]\n")
    return left_out


def _task(table: LabelTable, row: int, path: str, local: str) -> dict[str, Any]:
    """The task of an image.

    Args:
        table: The table.
        row: The row of the image.
        path: Its path in the set.
        local: Its path below Label Studio's document root.
    """
    identity = int(table.identities[row])
    results = [_result("review", "choices", {"choices": ["yes" if table.review[row] else "no"]})]
    if identity >= 0:
        results.insert(0, _result("identity", "textarea", {"text": [str(identity)]}))
    margin = float(table.margins[row])
    return {
        "data": {
            "image": f"/data/local-files/?d={quote(os.fsencode(local))}",
            "path": _shown(path),
            "camera": int(table.cameras[row]),
            "cluster_size": int(table.sizes[row]),
            "margin": None if np.isnan(margin) else round(margin, 4),
        },
        "predictions": [
            {
                "model_version": _MODEL,
                "score": round(float(table.confidence[row]), 4),
                "result": results,
            }
        ],
    }


def _result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "from_name": name, "to_name": "image", "type": kind, "value": value}


def _shown(path: str) -> str:
    """A path as text; bytes that are not UTF-8 are escaped."""
    return (
        Path(path).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )
