"""Sets of individual animals: a table metadata.csv, or a folder for each individual."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError
from .locate import existing_folder
from .manifest import read_table
from .names import number_names, read_cameras
from .reader import ReadOptions
from .records import ImageSet, Record, renumber
from .walk import find_images

#: Tables that are looked for, the likeliest first.
TABLES = ("metadata.csv", "annotations.csv", "images.csv")


def read_wildlife(root: Path, options: ReadOptions) -> ImageSet:
    """Read a set of individual animals.

    Reference: the layout is that of the sets in Cermak et al., WildlifeDatasets: An Open-Source
    Toolkit for Animal Re-identification, WACV 2024.

    With `metadata.csv` the images are those of the table, as for `manifest`. Without it, each
    folder below the root is an individual, and every image is for training, because nothing says
    which images are for testing.

    Args:
        root: The set's own folder.
        options: Only the keys are used.

    Raises:
        DataError: The folder holds no image, or the table is not as expected.
    """
    root = existing_folder(root, options.keys.root)
    for table in TABLES:
        if (root / table).is_file():
            return read_table(root / table)
    found = find_images(root)
    loose = [path for path in found.images if path.parent == root]
    if loose or not found.images:
        what = f"{len(loose):,} images in no individual's folder" if loose else "no image"
        raise DataError(
            f"{root} holds {what}, and no {TABLES[0]}; expected INDIVIDUAL/IMAGE, or a table with "
            "the columns path and identity"
        )
    # All individuals may lie in one folder more, such as images.
    base = Path(os.path.commonpath([path.parent.parent for path in found.images]))
    identities = number_names([path.relative_to(base).parts[0] for path in found.images])
    cameras = read_cameras(found.images, root)
    fields = zip(found.images, identities, cameras, strict=True)
    train = [Record(*of_image) for of_image in fields]
    return ImageSet("wildlife", root, renumber(train), [], [], {}, found.passed_over, found.outside)
