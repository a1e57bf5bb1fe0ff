"""Find an image set on disk and read it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from .. import plugins
from ..config import SyntheticConfig
from ..errors import DataError
from .folder import read_folder
from .market import FOLDERS, read_market
from .msmt17 import IMAGE_FOLDERS, LISTS, read_msmt17
from .reader import TARGET_KEYS, SetKeys
from .records import ImageSet, SplitCounts, count

# Where each set lies below a data root; the data root itself may also be the set's own folder.
_PLACES = {
    "market1501": (
        "market1501/Market-1501-v15.09.15",
        "Market-1501-v15.09.15",
        "market1501",
        "Market-1501",
    ),
    "dukemtmcreid": ("dukemtmcreid/DukeMTMC-reID", "DukeMTMC-reID", "dukemtmcreid"),
    "msmt17": (
        "msmt17/MSMT17_V1",
        "msmt17/MSMT17_V2",
        "MSMT17_V1",
        "MSMT17_V2",
        "msmt17",
        "MSMT17",
    ),
}
_MARKERS = {
    "market1501": (FOLDERS["train"],),
    "dukemtmcreid": (FOLDERS["train"],),
    "msmt17": (*(train for train, _ in IMAGE_FOLDERS), *LISTS, FOLDERS["train"]),
}

#: Published counts of images, identities and cameras (query and gallery identities as the field counts them).
PUBLISHED = {
    "market1501": {
        "train": SplitCounts(12_936, 751, 6),
        "query": SplitCounts(3_368, 750, 6),
        "gallery": SplitCounts(19_732, 751, 6),
    },
    "dukemtmcreid": {
        "train": SplitCounts(16_522, 702, 8),
        "query": SplitCounts(2_228, 702, 8),
        "gallery": SplitCounts(17_661, 1_110, 8),
    },
    "msmt17": {
        "train": SplitCounts(32_621, 1_041, 15),
        "query": SplitCounts(11_659, 3_060, 15),
        "gallery": SplitCounts(82_161, 3_060, 15),
    },
}


def load(
    name: str,
    root: str | Path = "data",
    *,
    validation: bool = True,
    synthetic: SyntheticConfig | None = None,
    verbose: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    keys: SetKeys = TARGET_KEYS,
) -> ImageSet:
    """Read an image set.

    Args:
        name: market1501, dukemtmcreid, msmt17, folder or synthetic.
        root: The data root or the set's own folder. Not used by the synthetic set, which lies in the user's cache and is
            drawn there first if need be.
        validation: MSMT17 only: train on train + val.
        synthetic: Size and seed of the synthetic set.
        on_progress: Called with (images drawn, images in all) while the synthetic set is drawn.
        keys: Keys of the settings that choose the set, for error messages.
        verbose: Print the counts of images, identities and cameras, and warn where they differ from the published ones.

    Returns:
        The set, with `train`, `query` and `gallery`: lists of records (path, identity, camera).

    Raises:
        DataError: No such set, folder or image; the message says what was looked for, where, and what lies nearest.
    """
    if name == "synthetic":
        images = _load_synthetic(synthetic or SyntheticConfig(), validation, on_progress, keys)
    elif name == "folder":
        images = read_folder(_existing(Path(root), keys.root))
    elif name == "msmt17":
        images = read_msmt17(find_set(name, Path(root), keys.root), validation=validation)
    elif name in _PLACES:
        images = read_market(name, find_set(name, Path(root), keys.root))
    else:
        known = tuple(plugins.available(plugins.DATASETS))
        near = difflib.get_close_matches(name, known, 1)
        raise DataError(
            f"unknown image set '{name}'; {f'did you mean {near[0]}?' if near else f'known: {known}'}"
        )
    if verbose:
        print("\n".join(describe(images, validation=validation)))
    return images


def _load_synthetic(
    config: SyntheticConfig,
    validation: bool,
    on_progress: Callable[[int, int], None] | None,
    keys: SetKeys,
) -> ImageSet:
    from ..synthetic.dataset import cached_synthetic

    try:
        folder = cached_synthetic(config, on_progress=on_progress)
    except ValueError as error:
        raise DataError(f"`{keys.synthetic}`: {error}") from error
    except OSError as error:
        raise DataError(
            f"could not draw the synthetic set ({error}); name a folder with room in FASTREID_AL_CACHE"
        ) from error
    images = read_msmt17(folder, validation=validation)
    return ImageSet("synthetic", images.root, images.train, images.query, images.gallery)


def find_set(name: str, root: Path, key: str = "data_root") -> Path:
    """Find the set's own folder from the data root or from itself."""
    root = _existing(root, key)
    candidates = [root / place for place in _PLACES[name]] + [root]
    for candidate in candidates:
        if any((candidate / marker).exists() for marker in _MARKERS[name]):
            return candidate
    wanted = " or ".join(
        _MARKERS[name][-1:]
        if name != "msmt17"
        else ("train/ with list_train.txt", FOLDERS["train"])
    )
    raise DataError(
        f"no {name} found: looked for {wanted} in {root} and below it in {', '.join(_PLACES[name])}; "
        f"{_nearest(name, root, key)}"
    )


def describe(images: ImageSet, *, validation: bool = True) -> list[str]:
    """Counts of every split, and a warning for each that differs from the published count."""
    lines = [f"{images.name} in {images.root}"]
    for split, records in images.splits.items():
        found = count(records)
        lines.append(
            f"  {split:8}{found.images:>7,} images {found.identities:>6,} identities {found.cameras:>3} cameras"
        )
        published = PUBLISHED.get(images.name, {}).get(split)
        if images.name == "msmt17" and split == "train" and not validation:
            published = None
        if published and found != published:
            lines.append(
                f"  warning: {split} is not the published set of {published.images:,} images, "
                f"{published.identities:,} identities, {published.cameras} cameras"
            )
    return lines


def _existing(root: Path, key: str) -> Path:
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(
            f"{root} is a file; name the folder that holds the images (unpack it first if it is an archive)"
        )
    parent = next((p for p in root.absolute().parents if p.is_dir()), Path("/"))
    names = sorted(p.name for p in parent.iterdir())
    near = difflib.get_close_matches(root.name, names, 1, cutoff=0.5)
    lies = (
        f"nearest there: {parent / near[0]}"
        if near
        else f"there lie: {', '.join(names[:5]) or 'nothing'}"
    )
    raise DataError(
        f"folder {root} does not exist; {parent} does, {lies}. Name the folder with `{key}`"
    )


def _nearest(name: str, root: Path, key: str) -> str:
    """Say what lies at or below root that looks most like the set."""
    for folder in islice(_folders(root, depth=3), 2000):
        if any((folder / marker).exists() for marker in _MARKERS[name]):
            return f"nearest: {folder}, which holds one of them. Name it with `{key}`"
    names = sorted(p.name for p in root.iterdir())
    return f"{root} holds {', '.join(names[:5]) + (', ...' if len(names) > 5 else '') if names else 'nothing'}"


def _folders(root: Path, depth: int) -> Iterator[Path]:
    for child in sorted(p for p in root.iterdir() if p.is_dir()):
        yield child
        if depth > 1:
            yield from _folders(child, depth - 1)
