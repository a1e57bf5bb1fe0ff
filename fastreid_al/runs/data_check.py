"""Reports what would be read of an image set, without training on it."""

from __future__ import annotations

import os
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..data import ImageSet, load
from ..data.cache import digest_of, threads
from ..data.layouts import fitting_sets
from ..data.load import describe
from ..data.locate import TABLES
from ..data.pixels import image_to_rgb, open_image, read_bytes, reason_of
from ..data.records import UNKNOWN, Record
from ..data.walk import relative
from ..engine.console import Reporter
from ..errors import counted, printable

#: Splits of which an image should be in one only.
_PAIRS = (("train", "query"), ("train", "gallery"), ("query", "gallery"))


class _File(NamedTuple):
    """What is known of an image file: digest, format and size, or why it cannot be read."""

    digest: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


@dataclass(frozen=True)
class DataReport:
    """What would be read of an image set.

    Args:
        images: The set.
        fits: Names of the published sets whose layout the folder has.
        files: What is known of the files of each split, in the order of its records.
    """

    images: ImageSet
    fits: Sequence[str]
    files: dict[str, list[_File]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the report as nested mappings; names are as `printable` writes them."""
        root = self.images.root
        passed_over = self.images.passed_over
        return {
            "dataset": self.images.name,
            "root": printable(root),
            "fits": list(self.fits),
            "splits": {s: self._split(s, r) for s, r in self.images.splits.items()},
            "formats": dict(Counter(x.format for x in self._all() if x.format).most_common()),
            "sizes": _sizes([x for x in self._all() if x.format]),
            "unreadable": [
                {"path": printable(relative(r.path, root)), "reason": x.reason}
                for r, x in self._with_records()
                if x.reason
            ],
            "copies": self._copies(),
            "passed_over": {
                reason: [printable(relative(path, root)) for path in paths]
                for reason, paths in sorted(passed_over.items())
            },
            "links_out_of_the_folder": [printable(path) for path in self.images.outside],
        }

    def lines(self) -> list[str]:
        """Return the report as lines."""
        content = self.as_json()
        lines = describe(self.images)
        lines += [f"  {split}: {_facts(facts)}" for split, facts in content["splits"].items()]
        formats = ", ".join(f"{n:,} {name}" for name, n in content["formats"].items())
        lines.append(f"formats: {formats or 'none'}")
        for name, facts in content["sizes"].items():
            lines.append(f"{name}: {facts['least']} to {facts['most']}, median {facts['median']}")
        for item in content["unreadable"]:
            lines.append(f"unreadable: {item['path']} ({item['reason']})")
        lines += [f"{what}: {count:,}" for what, count in content["copies"].items() if count]
        fits = ", ".join(f"`dataset` {name}" for name in self.fits)
        lines.append(f"the layout is that of {fits}" if fits else "the layout is of no known set")
        return lines

    def _all(self) -> Iterable[_File]:
        return (x for files in self.files.values() for x in files)

    def _with_records(self) -> Iterable[tuple[Record, _File]]:
        for split, records in self.images.splits.items():
            yield from zip(records, self.files[split], strict=True)

    def _split(self, split: str, records: Sequence[Record]) -> dict[str, Any]:
        per_camera = Counter(record.camera for record in records)
        per_identity = Counter(r.identity for r in records if r.identity != UNKNOWN)
        return {
            "images": len(records),
            "identities": len(per_identity),
            "images_without_identity": sum(r.identity == UNKNOWN for r in records),
            "images_of_an_identity": _spread(list(per_identity.values())),
            "images_of_camera": {str(c): n for c, n in sorted(per_camera.items()) if c != UNKNOWN},
            "images_without_camera": per_camera[UNKNOWN],
        }

    def _copies(self) -> dict[str, int]:
        """Numbers of images whose content another image has as well."""
        digests = {s: [x.digest for x in files if x.digest] for s, files in self.files.items()}
        copies = {
            f"copies in {split}": len(known) - len(set(known)) for split, known in digests.items()
        }
        for one, other in _PAIRS:
            both = set(digests[one]) & set(digests[other])
            copies[f"images in {one} and in {other}"] = sum(x in both for x in digests[one])
        return copies


def check_data(
    root: str | Path,
    dataset: str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> DataReport:
    """Read an image set, and decode each of its images.

    An image is unreadable, and for the same reason, where a training would leave it out.

    Args:
        root: Folder of the set, or a CSV file for "manifest".
        dataset: Name of its reader; by its layout when not given.
        reporter: Shows progress.
        options: Further arguments of `data.load`.

    Raises:
        UserError: The set cannot be read.
    """
    reporter = reporter or Reporter()
    root = Path(os.path.expanduser(root))
    fits = fitting_sets(root) if os.path.isdir(root) else []
    is_table = os.path.isfile(root) and root.suffix.lower() in TABLES
    name = dataset or ("manifest" if is_table else fits[0] if fits else "folder")
    images = load(name, root, verbose=False, **options)
    files: dict[str, list[_File]] = {}
    for split, records in images.splits.items():
        files[split] = []
        with (
            reporter.progress(f"checking {split}", len(records)) as update,
            warnings.catch_warnings(),
            threads() as pool,
        ):
            # What is odd about an image is in the report.
            warnings.simplefilter("ignore")
            for file in pool.map(_check_file, [record.path for record in records]):
                files[split].append(file)
                update(len(files[split]), len(records))
    return DataReport(images, fits, files)


def _check_file(path: Path) -> _File:
    digest = ""
    try:
        content = read_bytes(path)
        digest = digest_of(content)
        image = open_image(content)
        file = _File(digest, image.format or "", image.width, image.height)
        image_to_rgb(image)
    except Exception as error:  # Pillow raises a wide range of types on damaged files.
        return _File(digest, reason=reason_of(error))
    return file


def _spread(values: Sequence[int]) -> dict[str, float]:
    """Least, median and most of some numbers; empty where there are none."""
    if not values:
        return {}
    return {
        "least": min(values),
        "median": statistics.median(values),
        "most": max(values),
    }


def _sizes(files: Sequence[_File]) -> dict[str, dict[str, float]]:
    if not files:
        return {}
    return {
        "height in pixels": _spread([file.height for file in files]),
        "width in pixels": _spread([file.width for file in files]),
    }


def _facts(facts: dict[str, Any]) -> str:
    """Describe a split in words."""
    parts = []
    of_identity = facts["images_of_an_identity"]
    if of_identity:
        parts.append(f"{of_identity['least']} to {of_identity['most']} images of an identity")
    if facts["images_without_identity"]:
        unlabelled = counted(facts["images_without_identity"], "image", "images")
        parts.append(f"{unlabelled} without identity")
    cameras = ", ".join(f"{c}: {n:,}" for c, n in facts["images_of_camera"].items())
    if cameras:
        parts.append(f"images of camera {cameras}")
    if facts["images_without_camera"]:
        unknown = counted(facts["images_without_camera"], "image", "images")
        parts.append(f"{unknown} without camera")
    return "; ".join(parts) or "no images"
