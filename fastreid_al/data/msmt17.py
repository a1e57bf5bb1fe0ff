"""MSMT17 in the three layouts that are met: V1, V2 (masked faces) and a Market-style repack."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from .market import FOLDERS, read_market
from .records import ImageSet, Record, keep_test_apart, renumber

IMAGE_FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")


def read_msmt17(root: Path, *, validation: bool = True) -> ImageSet:
    """Read MSMT17.

    Args:
        root: `MSMT17_V1`, `MSMT17_V2`, or a repack with `bounding_box_train`.
        validation: Train on train + val (32,621 images, as unsupervised work does) rather than on train alone (30,248).

    Raises:
        DataError: A folder or list is missing, or a list names an image that is absent.
    """
    if (root / FOLDERS["train"]).is_dir():
        return read_market("msmt17", root)
    pair = next((pair for pair in IMAGE_FOLDERS if (root / pair[0]).is_dir()), None)
    if pair is None:
        raise DataError(
            f"{root} holds none of train/, mask_train_v2/ and {FOLDERS['train']}/; unpack MSMT17 there"
        )
    train_folder, test_folder = (root / name for name in pair)
    train = _read_list(root / "list_train.txt", train_folder)
    if validation:
        train += _read_list(root / "list_val.txt", train_folder)
    query = _read_list(root / "list_query.txt", test_folder)
    gallery = _read_list(root / "list_gallery.txt", test_folder)
    train.sort(key=lambda r: r.path.name)
    return keep_test_apart(ImageSet("msmt17", root, renumber(train), query, gallery))


def _read_list(file: Path, folder: Path) -> list[Record]:
    if not file.is_file():
        raise DataError(
            f"{file} does not exist; MSMT17 needs {', '.join(LISTS)} beside {folder.name}/"
        )
    records, absent = [], []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text ({error.reason}); take the list of the original archive"
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, _, identity = line.strip().rpartition(" ")
        fields = Path(name).name.split("_")
        if not identity.isdecimal() or len(fields) < 3 or not fields[2].isdecimal():
            raise DataError(
                f"{file} line {number}: '{line.strip()}' is not 'FOLDER/PID_INDEX_CAMERA_....jpg PID'; "
                "take the list of the original archive"
            )
        path = folder / name
        if not path.is_file():
            absent.append((number, name))
        records.append(Record(path, int(identity), int(fields[2])))
    if absent:
        number, name = absent[0]
        raise DataError(
            f"{file} names {len(absent)} of {len(records)} images that are not below {folder} "
            f"(first, line {number}: {name}); unpack the archive again, or delete these lines"
        )
    if not records:
        raise DataError(f"{file} is empty; take the list of the original archive")
    return records
