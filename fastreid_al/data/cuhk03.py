"""CUHK03 with the new protocol, cropped by hand (labeled) or by a detector (detected)."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from .locate import SetLayout, find_set
from .market import FOLDERS, read_market_layout
from .reader import ReadOptions
from .records import ImageSet, Record, SplitCounts, keep_test_apart, renumber
from .text import inside, read_text


def _layout(crops: str) -> SetLayout:
    folders = ("cuhk03-np", "CUHK03-NP", "cuhk03_np", "CUHK03_NP", "cuhk03", "CUHK03")
    return SetLayout(
        f"cuhk03_{crops}",
        folders,
        (f"{crops}/{FOLDERS['train']}", f"splits_new_{crops}.json"),
        f"{crops}/{FOLDERS['train']} or splits_new_{crops}.json",
    )


LABELED = _layout("labeled")
DETECTED = _layout("detected")
PUBLISHED = {
    LABELED.name: {
        "train": SplitCounts(7_368, 767, 2),
        "query": SplitCounts(1_400, 700, 2),
        "gallery": SplitCounts(5_328, 700, 2),
    },
    DETECTED.name: {
        "train": SplitCounts(7_365, 767, 2),
        "query": SplitCounts(1_400, 700, 2),
        "gallery": SplitCounts(5_332, 700, 2),
    },
}


def _read(layout: SetLayout, root: Path, options: ReadOptions) -> ImageSet:
    """Read CUHK03 with the new protocol.

    References: Li et al., DeepReID: Deep Filter Pairing Neural Network for Person
    Re-identification, CVPR 2014; Zhong et al., Re-ranking Person Re-identification with
    k-reciprocal Encoding, CVPR 2017 (the new protocol).

    Statistics: 1,467 identities, 2 cameras; labeled: 7,368 training images (767 identities), 1,400
    queries and 5,328 gallery images (700 identities); detected: 7,365, 1,400 and 5,332.

    Args:
        layout: `LABELED` or `DETECTED`.
        root: The data root or the set's own folder: CUHK03-NP, which has the layout of Market-1501
            in `labeled` and in `detected`, or a folder with `splits_new_labeled.json` or
            `splits_new_detected.json`, lists of [image, identity, camera].
        options: Only the keys are used.

    Raises:
        DataError: The set is not there, or a list is not as expected.
    """
    folder = find_set(layout, root, options.keys.root)
    crops = layout.name.removeprefix("cuhk03_")
    published = PUBLISHED[layout.name]
    if (folder / crops / FOLDERS["train"]).is_dir():
        return read_market_layout(layout.name, folder / crops, published)
    content = _content(folder / f"splits_new_{crops}.json")
    splits = {split: _records(folder, content, split) for split in FOLDERS}
    return keep_test_apart(
        ImageSet(
            layout.name,
            folder,
            renumber(splits["train"]),
            splits["query"],
            splits["gallery"],
            published,
        )
    )


read_labeled = partial(_read, LABELED)
read_detected = partial(_read, DETECTED)


def _content(file: Path) -> dict[str, Any]:
    """The first split of a file of splits."""
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({str(error).splitlines()[0]})") from error
    if isinstance(content, list) and content:
        content = content[0]
    if not isinstance(content, dict) or not all(isinstance(content.get(s), list) for s in FOLDERS):
        raise DataError(f"{file} has no lists train, query and gallery; take the original file")
    return content


def _records(folder: Path, content: dict[str, Any], split: str) -> list[Record]:
    """The images of one split; a path may name any folder above the crops' own."""
    records = []
    for row in content[split]:
        match row:
            case [str(name), int(identity), int(camera)]:
                # Files of splits keep the path of the machine where they were made.
                path = inside(folder, "/".join(name.replace("\\", "/").split("/")[-2:]))
            case _:
                path = None
        if path is None or not os.path.isfile(path):
            raise DataError(
                f"{split}: {row!r:.200} is not [IMAGE, IDENTITY, CAMERA] of an image below {folder}"
            )
        records.append(Record(path, identity, camera))
    return records
