"""Decoding equals torchvision's, in memory or memory-mapped, and leaves out unreadable images."""

from __future__ import annotations

import errno
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from fastreid_al.data import pixels
from fastreid_al.data.pixels import PixelSettings, decode
from fastreid_al.errors import DataError
from tests.support.image_sets import decode_at


def picture(seed: int, size: tuple[int, int] = (37, 81)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(
        0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8
    )
    return Image.fromarray(noise).resize(size)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for i, path in enumerate(paths):
        picture(i, (30 + i, 60 + 3 * i)).save(path)
    return paths


def test_pixels_equal_torchvision_resize(photos: list[Path]) -> None:
    store = decode_at(photos, 64, 32)
    rows = torch.tensor([5, 0, 5])
    expected = [
        tv.pil_to_tensor(
            tv.resize(Image.open(photos[r]).convert("RGB"), [64, 32], InterpolationMode.BICUBIC)
        )
        for r in rows.tolist()
    ]
    assert torch.equal(store.read(rows), torch.stack(expected))
    assert len(store) == 7
    assert len(set(store.digests)) == 7


def test_a_memory_mapped_store_equals_one_in_memory_and_leaves_no_file(
    photos: list[Path], tmp_path: Path
) -> None:
    rows = torch.arange(7)
    folder = tmp_path / "store"
    mapped = decode_at(photos, 64, 32, store_gib=0, store_dir=folder)
    assert torch.equal(mapped.read(rows), decode_at(photos, 64, 32).read(rows))
    assert list(folder.iterdir()) == []


def test_a_store_that_does_not_fit_on_the_disk_is_refused(
    photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"no room for .* GiB .*`run_dir`"):
        pixels._allocate(10**9, PixelSettings(4096, 4096, 0, tmp_path))
    assert [p for p in tmp_path.iterdir() if p.name.startswith("pixels-")] == []


def test_a_system_without_a_temporary_folder_is_one_line(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    with pytest.raises(
        DataError, match=r"no room for .* in the folder for temporary files \(No.*\(TMPDIR\)$"
    ):
        decode_at(photos, 64, 32, store_gib=0)
    assert len(decode_at(photos, 64, 32)) == 7


def odd_images() -> dict[str, bytes]:
    def saved(image: Image.Image, kind: str, **options: object) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    jpeg = saved(picture(1, (400, 800)), "JPEG")
    deep = Image.fromarray(np.arange(32 * 16, dtype=np.uint16).reshape(32, 16) * 128)
    frames = [picture(2), picture(3)]
    return {
        "truncated.jpg": jpeg[: len(jpeg) // 3],
        "zero.jpg": b"",
        "text.jpg": b"not an image at all",
        "cmyk.jpg": saved(picture(4).convert("CMYK"), "JPEG"),
        "grey.png": saved(picture(5).convert("L"), "PNG"),
        "palette.png": saved(picture(5).convert("P"), "PNG"),
        "alpha.png": saved(picture(5).convert("RGBA"), "PNG"),
        "deep.png": saved(deep, "PNG"),
        "animated.webp": saved(
            frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True
        ),
        "huge.png": saved(Image.new("L", (9000, 9000)), "PNG"),
        "bomb.png": saved(Image.new("1", (20000, 20000)), "PNG"),
    }


def test_odd_images_are_converted_or_named_and_left_out(tmp_path: Path) -> None:
    paths = []
    for name, content in odd_images().items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    paths.append(tmp_path / "absent.jpg")
    store = decode_at(paths, 32, 16)
    left_out = {bad.path.name: bad.reason for bad in store.bad}
    assert sorted(left_out) == [
        "absent.jpg",
        "bomb.png",
        "huge.png",
        "text.jpg",
        "truncated.jpg",
        "zero.jpg",
    ]
    assert left_out["zero.jpg"] == "the file is empty"
    assert left_out["text.jpg"] == "not an image"
    assert "million pixels" in left_out["huge.png"]
    assert all("\n" not in reason for reason in left_out.values())
    names = [paths[i].name for i in store.slots.tolist()]
    assert names == [
        "cmyk.jpg",
        "grey.png",
        "palette.png",
        "alpha.png",
        "deep.png",
        "animated.webp",
    ]
    read = dict(zip(names, store.read(torch.arange(len(store))), strict=True))
    assert torch.equal(read["grey.png"][0], read["grey.png"][2])
    expected = np.rint(np.arange(32 * 16).reshape(32, 16) * 128 / 257)
    assert np.array_equal(read["deep.png"][0].numpy(), expected)
    first = tv.pil_to_tensor(tv.resize(picture(2), [32, 16], InterpolationMode.BICUBIC))
    assert torch.equal(read["animated.webp"], first)


def test_progress_counts_every_image(photos: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    decode_at(photos, 8, 8, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 7) for i in range(1, 8)]


def test_an_empty_list_is_an_empty_store() -> None:
    assert len(decode_at([], 8, 8)) == 0


def test_a_height_and_a_width_are_enough(photos: list[Path]) -> None:
    got = decode(photos, 64, 32)
    assert torch.equal(got.pixels, decode(photos, PixelSettings(64, 32)).pixels)
    with pytest.raises(TypeError, match="width: got None"):
        decode(photos, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_their_exif_orientation_says(tmp_path: Path, kind: str) -> None:
    corners = np.zeros((64, 64, 3), np.uint8)
    corners[:32, :32] = 250
    corners[:32, 32:] = 120
    upright = Image.fromarray(corners)
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
        9: upright,
    }
    paths = []
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / f"{orientation}.{kind.lower()}")
        image.save(paths[-1], kind, exif=exif)
    pixels = decode_at(paths, 32, 32).pixels[:, 0].float()
    for image in pixels:
        assert image[:14, :14].mean() > 235 and 105 < image[:14, 18:].mean() < 135
        assert image[18:].mean() < 10


def test_damaged_exif_data_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture(0).save(path, exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert len(decode_at([path], 32, 16)) == 1
