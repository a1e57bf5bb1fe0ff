"""Formats of image files that are read, recognised by content.

Pillow reads more than forty formats, some of them with the help of other programs (EPS runs
Ghostscript). Only the formats below are ever opened, whatever the name of the file is.
"""

from __future__ import annotations

from functools import cache

from PIL import Image

#: Names of the formats in Pillow. MPO is a JPEG file of a camera that stores several pictures.
FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "BMP",
    "DIB",
    "GIF",
    "WEBP",
    "TIFF",
    "PPM",
    "JPEG2000",
    "AVIF",
)
#: Suffixes of files that are taken for images without a look at their content.
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "dib", "gif", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif"),
    )
)
#: Bytes that `format_of` needs.
HEAD = 16

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)


def format_of(head: bytes) -> str | None:
    """Return the format of a file that begins with these bytes.

    Args:
        head: The first `HEAD` bytes, or fewer where the file is shorter.

    Returns:
        A name in `FORMATS`, or None where it is none of them.
    """
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return None if name == "BMP" and not _is_bmp(head) else name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n#" and len(head) > 2:
        return "PPM"
    return None


def _is_bmp(head: bytes) -> bool:
    """Whether the four reserved bytes are zero, as in no text that begins with BM."""
    return head[6:10] == b"\0\0\0\0"


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
