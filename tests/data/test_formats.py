"""Formats are recognised by content, and others are never opened."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from fastreid_al.data.formats import HEAD, format_of, readable_formats
from fastreid_al.data.pixels import to_rgb


@pytest.mark.parametrize(
    "name", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"]
)
def test_each_format_is_recognised_and_read(name: str) -> None:
    if name not in readable_formats():
        pytest.skip(f"this Pillow reads no {name}")
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(file, name)
    assert format_of(file.getvalue()[:HEAD]) == name
    assert to_rgb(file.getvalue()).size == (8, 8)


@pytest.mark.parametrize("name", ["EPS", "PCX", "TGA", "ICO", "PDF", "SGI", "MSP", "XBM"])
def test_other_formats_are_refused_whatever_the_suffix(name: str) -> None:
    file = io.BytesIO()
    Image.new("1" if name in ("MSP", "XBM") else "RGB", (8, 8)).save(file, name)
    assert format_of(file.getvalue()[:HEAD]) is None
    with pytest.raises(Image.UnidentifiedImageError):
        to_rgb(file.getvalue())


@pytest.mark.parametrize(
    "head", [b"", b"P", b"P6", b"BM", b"BM or other text", b"RIFF", b"\xff\xd8"]
)
def test_short_and_other_content_has_no_format(head: bytes) -> None:
    assert format_of(head) is None
