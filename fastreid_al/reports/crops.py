"""Small copies of crops, each embedded once in a page."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from PIL import Image

from ..data.pixels import read_image, reason_of
from ..errors import printable

#: Height of a crop in the page, in pixels, and the least and the greatest width.
HEIGHT = 96
_WIDTHS = (32, 128)
#: Quality of WebP; a crop of 48 x 96 takes about 1 kB.
_QUALITY = 55
#: Columns and rows that are left of the upper third of a crop that is blurred.
_BLURRED = (2, 2)


class Missing(NamedTuple):
    """An image that could not be read.

    Args:
        path: Its path as a message shows it.
        reason: Why, in a few words.
    """

    path: str
    reason: str


class Crops:
    """Small copies of the crops of a page, encoded as WebP when they are first shown.

    A page holds each distinct crop once, as a rule of its style sheet, however often it is shown:
    about 1.5 kB a crop in the page, 15 MB at 10,000 crops.

    Args:
        height: Height of the images that the network sees; gives the frame its shape.
        width: Width of the images that the network sees.
        anonymise: Whether the upper third of every crop is blurred.
    """

    def __init__(self, height: int, width: int, anonymise: bool = False) -> None:
        self.height = HEIGHT
        self.width = min(max(round(HEIGHT * width / height), _WIDTHS[0]), _WIDTHS[1])
        self.missing: list[Missing] = []
        self._anonymise = anonymise
        #: Class of the style sheet by path, empty for an image that cannot be read.
        self._classes: dict[Path, str] = {}
        self._of_content: dict[str, str] = {}
        self._data: list[str] = []

    def show(self, path: Path | None, text: str) -> Markup:
        """Return a crop for the page, or an empty frame if it cannot be read.

        Args:
            path: The image file; None where it is not known.
            text: What the picture shows, for readers that see no pictures.
        """
        name = "" if path is None else self._class(path)
        if not name:
            return Markup(
                '<span class="crop gone" role="img" aria-label="{}, cannot be read"></span>'
            ).format(text)
        return Markup('<span class="crop {}" role="img" aria-label="{}"></span>').format(name, text)

    def rules(self) -> Iterator[Markup]:
        """Yield the rules of the style sheet that hold the crops."""
        for number, data in enumerate(self._data):
            # The text is base64: nothing in it could end the rule.
            yield Markup(f".k{number}{{background-image:url(data:image/webp;base64,{data})}}")  # noqa: S704

    def __len__(self) -> int:
        """Number of distinct crops."""
        return len(self._data)

    def _class(self, path: Path) -> str:
        if path not in self._classes:
            try:
                encoded = encode_crop(path, self.width, self.height, self._anonymise)
            except Exception as error:  # Pillow raises a wide range of types on damaged files.
                self.missing.append(Missing(printable(path.name), reason_of(error)))
                self._classes[path] = ""
            else:
                self._classes[path] = self._known(encoded)
        return self._classes[path]

    def _known(self, encoded: bytes) -> str:
        """The class of a crop, by its content."""
        digest = hashlib.sha256(encoded).hexdigest()
        if digest not in self._of_content:
            self._of_content[digest] = f"k{len(self._data)}"
            self._data.append(base64.b64encode(encoded).decode())
        return self._of_content[digest]


def encode_crop(path: Path, width: int, height: int, anonymise: bool) -> bytes:
    """Read an image, fit it into a box, and return it as WebP without metadata.

    Args:
        path: The image file.
        width: Width of the box in pixels.
        height: Height of the box.
        anonymise: Whether the upper third is blurred.

    Raises:
        Exception: It cannot be read; Pillow raises many types.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = read_image(path)
    image.thumbnail((width, height), Image.Resampling.LANCZOS, reducing_gap=None)
    if anonymise:
        image = blur_upper_third(image)
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def blur_upper_third(image: Image.Image) -> Image.Image:
    """Return an image whose upper third holds four colours alone, blended into each other.

    Each colour is the mean of a quarter of the region, so that nothing finer can be read back.

    Args:
        image: An RGB image.
    """
    region = (0, 0, image.width, -(-image.height // 3))
    upper = image.crop(region)
    few = upper.resize(_BLURRED, Image.Resampling.BOX)
    blurred = image.copy()
    blurred.paste(few.resize(upper.size, Image.Resampling.BILINEAR), region)
    return blurred
