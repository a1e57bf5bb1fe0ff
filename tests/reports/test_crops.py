"""Crops: small, embedded once, and without faces where they are blurred."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_al.reports.crops import Crops, blur_upper_third, encode_crop
from tests.support.image_sets import put_noise


def checkered(path: Path, seed: int = 0, size: tuple[int, int] = (64, 128)) -> Path:
    """A picture of random black and white blocks of four pixels: high contrast everywhere."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 2, (size[1] // 4, size[0] // 4, 1), dtype=np.uint8) * 255
    Image.fromarray(blocks.repeat(4, 0).repeat(4, 1).repeat(3, 2)).save(path)
    return path


def decoded(rule: str) -> Image.Image:
    data = re.search(r"data:image/webp;base64,([A-Za-z0-9+/=]+)\)", rule)
    assert data is not None
    return Image.open(io.BytesIO(base64.b64decode(data[1])))


def test_a_distinct_crop_is_embedded_once_however_often_it_is_shown(tmp_path: Path) -> None:
    crops = Crops(256, 128)
    first, second = checkered(tmp_path / "a.png", 1), checkered(tmp_path / "b.png", 2)
    copy = tmp_path / "copy.png"
    copy.write_bytes(first.read_bytes())
    shown = [crops.show(path, "x") for path in (first, second, first, copy)]
    assert shown[0] == shown[2] == shown[3] != shown[1]
    rules = list(crops.rules())
    assert len(crops) == len(rules) == 2
    assert all(decoded(rule).size == (48, 96) for rule in rules)


def test_a_crop_keeps_its_shape_and_loses_its_metadata(tmp_path: Path) -> None:
    file = tmp_path / "wide.jpg"
    exif = Image.Exif()
    exif[0x010E] = "the name of a person"
    Image.new("RGB", (300, 150)).save(file, exif=exif)
    encoded = encode_crop(file, 48, 96, anonymise=False)
    assert Image.open(io.BytesIO(encoded)).size == (48, 24)
    assert b"the name" not in encoded and b"EXIF" not in encoded


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_image_that_cannot_be_read_is_a_frame_and_is_named_once(
    tmp_path: Path, content: bytes | None
) -> None:
    crops = Crops(256, 128)
    file = tmp_path / "gone.jpg"
    if content is not None:
        file.write_bytes(content)
    for _ in range(2):
        assert 'class="crop gone"' in crops.show(file, "query")
    assert [item.path for item in crops.missing] == ["gone.jpg"]
    assert crops.missing[0].reason
    assert list(crops.rules()) == []
    assert 'aria-label="query, cannot be read"' in crops.show(None, "query")


def test_descriptions_are_escaped(tmp_path: Path) -> None:
    put_noise(tmp_path, "a.jpg", seed=0)
    shown = Crops(256, 128).show(tmp_path / "a.jpg", '"><script>alert(1)</script>')
    assert "<script>" not in shown and shown.count('"') == 6


def high_frequencies(image: Image.Image) -> float:
    """Energy of a grey picture above a quarter of the Nyquist frequency, under a Hann window."""
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    rows, columns = grey.shape
    window = np.outer(np.hanning(rows), np.hanning(columns))
    energy = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    frequency = np.maximum(np.abs(np.fft.fftfreq(rows))[:, None], np.abs(np.fft.fftfreq(columns)))
    return float(energy[frequency > 0.125].sum())


def test_the_upper_third_of_a_blurred_crop_holds_nothing_fine(tmp_path: Path) -> None:
    file = checkered(tmp_path / "a.png")
    plain = Image.open(io.BytesIO(encode_crop(file, 48, 96, anonymise=False)))
    blurred = Image.open(io.BytesIO(encode_crop(file, 48, 96, anonymise=True)))
    upper, lower = (0, 0, 48, 32), (0, 36, 48, 96)
    assert high_frequencies(blurred.crop(upper)) < 1e-3 * high_frequencies(plain.crop(upper))
    assert high_frequencies(blurred.crop(lower)) > 0.9 * high_frequencies(plain.crop(lower))
    difference = np.asarray(plain.crop(lower), float) - np.asarray(blurred.crop(lower), float)
    assert np.abs(difference).mean() < 8


def test_two_faces_of_the_same_means_are_the_same_when_blurred() -> None:
    random = np.random.default_rng(0)
    upper = random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    other = upper.copy()
    # Shuffle the pixels within each quarter of the region: the means stay.
    for rows in (slice(0, 16), slice(16, 32)):
        for columns in (slice(0, 24), slice(24, 48)):
            pixels = other[rows, columns].reshape(-1, 3)
            other[rows, columns] = random.permutation(pixels).reshape(16, 24, 3)
    lower = random.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    pictures = [Image.fromarray(np.concatenate([part, lower])) for part in (upper, other)]
    blurred = [np.asarray(blur_upper_third(picture)) for picture in pictures]
    # Pillow rounds the means of rows before those of columns.
    np.testing.assert_allclose(blurred[0].astype(int), blurred[1].astype(int), atol=1)
    np.testing.assert_array_equal(blurred[0][32:], lower)
