"""Camera styles from files that a generative network made (CamStyle)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...config import ImageConfig
from ...distributed.world import SINGLE_PROCESS, World
from ...errors import DataError, printable
from ..loader import BatchLoader, to_device_async
from ..pixels import PixelSettings, decode
from ..records import STYLE_COPIES, UNKNOWN, ImageSet, Record
from ..walk import find_images
from .style import CameraStyle, Progress, known_cameras

_COPY = re.compile(r"(?P<image>.+)_fake_(?:(?P<source>\d+)to)?(?P<target>\d+)")

#: Entry of the table of copies where there is none.
_MISSING = -1
#: Cameras that a message lists.
_LISTED = 20


class FileStyle(CameraStyle):
    """Reads CamStyle's copies.

    They are named `STEM_fake_1to2.jpg` (Market-1501, DukeMTMC-reID) or `STEM_fake_2.jpg` (MSMT17).
    They are decoded once, into a store of their own with the training images' size and budget: 6.4
    GB for Market's 64,680 copies at 256 x 128, 11 GB for Duke's, 45 GB for MSMT17's 456,694, in
    memory or memory-mapped. The table of copies takes 4 bytes for each image and camera (2 MB at n
    = 32,621 and 60 MB at 1e6 with 15 cameras). Where a copy is missing, the image stays as it is.
    Copies of other images than `records`, of images whose camera is unknown, and in an image's own
    camera are not read.

    Args:
        images: The set; the copies are in `bounding_box_train_camstyle/` below its root, at any
            depth.
        records: The n training images.
        image: Size of the images and budget of the store.
        store_dir: Folder of a memory-mapped store.
        warn: Called with one line for what is missing and what cannot be read.
        probability: Probability of another camera; when not given, every camera is equally
            probable.
        on_progress: Called with (copies decoded, copies in all).
        world: Processes that train with the same copies.

    Raises:
        DataError: No copy is of a training image, none can be read, one is for or from a camera
            that is not the set's, or there is no room for the store.
    """

    def __init__(
        self,
        images: ImageSet,
        records: Sequence[Record],
        image: ImageConfig,
        store_dir: Path,
        warn: Callable[[str], None],
        probability: float | None = None,
        on_progress: Progress | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        super().__init__(records, probability)
        self._placement = image.place
        self._warn = warn
        self._loader: BatchLoader | None = None
        folder = images.root / STYLE_COPIES
        paths, numbers = match_copies(folder, records)
        settings = PixelSettings.of(image, store_dir)
        self._store = decode(paths, settings, world=world, on_progress=on_progress, warn=warn)
        self._report_unreadable(folder, len(paths))
        #: (n, C) int32, row of the copy in the store, by image and camera; -1 where there is none.
        self.table = self._rows_of(numbers, len(paths))
        self.digests = {STYLE_COPIES: self._digest(images.root, paths)}
        self._report_missing(folder)

    def _report_unreadable(self, folder: Path, total: int) -> None:
        bad = self._store.bad
        if bad:
            self._warn(
                f"{len(bad)} camstyle image(s) could not be read and are left out "
                f"(first: {printable(bad[0].path)}: {bad[0].reason})"
            )
        if not len(self._store):
            raise DataError(
                f"{folder}: none of {total} copies can be read; unpack them again, "
                "or train with `camstyle` none"
            )

    def _rows_of(self, numbers: Tensor, total: int) -> Tensor:
        """Turn numbers of copies in the list of paths into rows of the store, of (n, C) int32."""
        # The last entry is that of missing copies, whose number is -1.
        rows = torch.full((total + 1,), _MISSING, dtype=torch.int32)
        rows[self._store.slots] = torch.arange(len(self._store), dtype=torch.int32)
        return rows[numbers.long()]

    def _digest(self, root: Path, paths: Sequence[Path]) -> str:
        """One digest for all copies, because there are many times as many as images."""
        whole = hashlib.blake2b(digest_size=16)
        readable = (paths[slot] for slot in self._store.slots.tolist())
        for path, digest in zip(readable, self._store.digests, strict=True):
            name = os.fsencode(path.relative_to(root).as_posix())
            whole.update(name + f" {digest}\n".encode())
        return f"{len(self._store)} copies {whole.hexdigest()}"

    def _report_missing(self, folder: Path) -> None:
        expected = int((self.cameras != UNKNOWN).sum()) * (len(self.numbers) - 1)
        missing = expected - len(self._store)
        if missing > 0:
            self._warn(
                f"{missing:,} of {expected:,} copies in other cameras' styles are missing from "
                f"{folder}; these images stay as they are"
            )

    def _restyle(self, pixels: Tensor, rows: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        copies = self.table[rows, drawn].long()  # (B,)
        present = (copies >= 0).nonzero()[:, 0]
        if self._loader is None or self._loader.device != pixels.device:
            self._loader = BatchLoader(self._store, pixels.device, self._placement, self._warn)
        styled = self._loader.read(copies[present])
        return pixels.index_copy(0, to_device_async(present, pixels.device), styled)

    def describe(self) -> str:
        """Describe the styles in one line for the log."""
        return (
            f"camera styles: {len(self._store):,} copies in the styles of "
            f"{len(self.numbers)} cameras"
        )


def match_copies(folder: Path, records: Sequence[Record]) -> tuple[list[Path], Tensor]:
    """Match the copies below a folder with the training images, by their names.

    Args:
        folder: Folder of the copies.
        records: The n training images.

    Returns:
        The copies to read, and the index of each in this list by image and camera: (n, C) int32, -1
        where there is none.

    Raises:
        DataError: No copy is of a training image, one is of more than one image, or one is for or
            from a camera that is not the set's.
    """
    cameras = known_cameras(records)
    row_of, ambiguous = _rows_by_stem(records)
    column_of = {camera: index for index, camera in enumerate(cameras)}
    table = torch.full((len(records), len(cameras)), _MISSING, dtype=torch.int32).numpy()
    paths: list[Path] = []
    matched = False
    for path in find_images(folder).images:
        name = _COPY.fullmatch(path.stem)
        row = row_of.get(name["image"]) if name else None
        if name is None or row is None:
            continue
        matched = True
        if name["image"] in ambiguous:
            raise DataError(
                f"{printable(path)} is the copy of more than one training image: copies are "
                f"matched by name, and {name['image']} is not the only one; rename them, "
                "or train with `camstyle` none"
            )
        own = records[row].camera
        target = int(name["target"])
        if own == UNKNOWN:
            continue
        _check_cameras(path, folder, cameras, own, name["source"], target)
        if own != target and table[row, column_of[target]] == _MISSING:
            table[row, column_of[target]] = len(paths)
            paths.append(path)
    if not matched:
        raise DataError(
            f"no file in {folder} is the copy of a training image; expected names like "
            f"{records[0].path.stem}_fake_{cameras[-1]}.jpg. Unpack this set's copies there, "
            "or train with `camstyle` none"
        )
    return paths, torch.from_numpy(table)


def _rows_by_stem(records: Sequence[Record]) -> tuple[dict[str, int], set[str]]:
    """Row of each image by the stem of its name, and the stems that several images have."""
    row_of: dict[str, int] = {}
    ambiguous = set()
    for row, record in enumerate(records):
        if row_of.setdefault(record.path.stem, row) != row:
            ambiguous.add(record.path.stem)
    return row_of, ambiguous


def _check_cameras(
    path: Path, folder: Path, cameras: Sequence[int], own: int, source: str | None, target: int
) -> None:
    """Refuse a copy for a camera that the set does not have, or from another than the image's."""
    if target not in cameras:
        wrong = f"for camera {target}"
    elif source and int(source) != own:
        wrong = f"from camera {source}, not the image's {own}"
    else:
        return
    listed = ", ".join(map(str, cameras[:_LISTED])) + (", ..." if len(cameras) > _LISTED else "")
    raise DataError(
        f"{printable(path)} is {wrong}; the training images' cameras are {listed}. "
        f"Put this set's own copies, for these cameras only, into {folder}, "
        "or train with `camstyle` none"
    )
