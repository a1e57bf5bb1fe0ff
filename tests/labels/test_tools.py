"""Files for FiftyOne and Label Studio hold what these tools read."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np

from fastreid_al.data import ImageSet, Record
from fastreid_al.labels import LabelTable
from fastreid_al.labels.tools import ToolWriter, write_fiftyone, write_label_studio

NAMES = ["a b,c.jpg", "sub/ü.jpg", "unread.jpg", os.fsdecode(b"\xe9.jpg"), "none.jpg"]


def written(write: ToolWriter, root: Path) -> tuple[str, int]:
    images = ImageSet("folder", root, [Record(root / name, -1, 1) for name in NAMES], [], [])
    n = len(NAMES)
    table = LabelTable(
        NAMES,
        np.array([4, 4, -1, 4, -1]),
        np.full(n, 1),
        np.array([3, 3, 0, 3, 1]),
        np.array([0.9, 0.25, 0, 1, 0]),
        np.array([0.5, -0.1, np.nan, 0.2, np.nan]),
        np.array([1, 3, 0, 2, 1], dtype=np.uint8),
        np.array([False, True, False, False, False]),
    )
    file = io.BytesIO()
    left_out = write(table, images, file)
    return file.getvalue().decode(), left_out


def test_fiftyone_gets_absolute_paths_and_the_columns(tmp_path: Path) -> None:
    text, left_out = written(write_fiftyone, tmp_path)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    # One cannot be read, and the name of another is not UTF-8.
    assert left_out == 2
    assert [row["filepath"] for row in rows] == [str(tmp_path / NAMES[i]) for i in (0, 1, 4)]
    assert [row["identity"] for row in rows] == ["4", "4", "-1"]
    assert rows[1]["confidence"] == "0.2500" and rows[1]["review"] == "yes"
    assert rows[2]["margin"] == ""  # FiftyOne leaves an empty field out


def test_label_studio_gets_tasks_with_predictions(tmp_path: Path) -> None:
    text, left_out = written(write_label_studio, tmp_path)
    tasks = json.loads(text)
    assert left_out == 1 and len(tasks) == 4
    start = "/data/local-files/?d="
    addresses = [task["data"]["image"] for task in tasks]
    assert all(address.startswith(start) for address in addresses)
    read = [os.fsdecode(unquote_to_bytes(address[len(start) :])) for address in addresses]
    # Label Studio serves no file that lies in its document root itself.
    assert [tmp_path.parent / name for name in read] == [tmp_path / NAMES[i] for i in (0, 1, 3, 4)]
    assert [task["data"]["path"] for task in tasks][:2] == NAMES[:2]
    (prediction,) = tasks[1]["predictions"]
    assert prediction["score"] == 0.25
    results = {result["from_name"]: result for result in prediction["result"]}
    assert results["identity"]["value"] == {"text": ["4"]}
    assert results["identity"]["type"] == "textarea" and results["identity"]["to_name"] == "image"
    assert results["review"]["value"] == {"choices": ["yes"]}
    assert [r["from_name"] for r in tasks[3]["predictions"][0]["result"]] == ["review"]
    assert tasks[3]["data"]["margin"] is None


def test_no_image_is_an_empty_list() -> None:
    empty = np.zeros(0)
    table = LabelTable([], empty, empty, empty, empty, empty, empty, empty)
    file = io.BytesIO()
    assert write_label_studio(table, ImageSet("x", Path(), [], [], []), file) == 0
    assert json.loads(file.getvalue()) == []
