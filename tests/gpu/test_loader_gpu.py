"""Batches on the GPU, from device or host, equal the CPU's; the host does not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_al.config import ImageConfig, recipe
from fastreid_al.data.augment import Augment
from fastreid_al.data.camera_style import CameraStyle, ColourStyle, FileStyle, FourierStyle
from fastreid_al.data.loader import SHARE, BatchLoader, prefetch
from fastreid_al.data.pixels import PixelStore
from fastreid_al.data.records import STYLE_COPIES, ImageSet, Record
from fastreid_al.errors import DataError
from tests.support.image_sets import decode_at

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

N, HEIGHT, WIDTH = 600, 64, 32
PLACES = pytest.mark.parametrize("place", ["device", "host"])


@pytest.fixture(scope="module")
def store() -> PixelStore:
    pixels = torch.nn.functional.interpolate(
        255 * torch.rand(N + 9, 3, 16, 8), (HEIGHT, WIDTH), mode="bilinear"
    )
    slots = torch.randperm(N + 9)[:N].sort().values
    return PixelStore(pixels.to(torch.uint8), slots, [""] * N, [])


@pytest.fixture
def forbid_waiting() -> Iterator[Callable[[], None]]:
    """A function from whose call on it is an error that the host waits for the device."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@PLACES
def test_rows_are_those_of_the_store(store: PixelStore, place: str) -> None:
    loader = BatchLoader(store, torch.device("cuda"), place)
    assert loader.place == place
    batches = [torch.randint(N, (size,)) for size in (64, 1, 0, 300, 64, 7) * 5]
    scratch = torch.rand(2048, 2048, device="cuda")
    seen = []
    for rows, images in prefetch(batches, loader.start):
        for _ in range(3):
            scratch = scratch @ scratch  # keeps the stream busy until after the copies
        seen.append((rows, images().clone()))
    for rows, images in seen:
        assert images.is_cuda and torch.equal(images.cpu(), store.read(rows))
    assert torch.equal(loader.read(batches[0]).cpu(), store.read(batches[0]))
    if place == "device":
        assert torch.equal(loader.read(batches[0].cuda()).cpu(), store.read(batches[0]))


@PLACES
def test_a_mapped_store_is_read_like_one_in_memory(tmp_path: Path, place: str) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (64, 32, 3), dtype=np.uint8)
        ).save(path)
    mapped = decode_at(paths, HEIGHT, WIDTH, store_gib=0, cache=tmp_path / "kept")
    rows = torch.randperm(20)
    assert torch.equal(
        BatchLoader(mapped, torch.device("cuda"), place).read(rows).cpu(), mapped.read(rows)
    )


def test_a_store_too_large_for_the_device_stays_on_the_host_or_is_refused(
    store: PixelStore,
) -> None:
    free = torch.cuda.mem_get_info()[0]
    much = int(free * (1 + SHARE) / 2) // store.pixels[0].nbytes
    large = PixelStore(store.pixels, torch.zeros(1, dtype=torch.int64).expand(much), [], [])
    said: list[str] = []
    assert (
        BatchLoader(large, torch.device("cuda"), "auto", said.append).place == "host"
        and len(said) == 1
    )
    more = PixelStore(store.pixels, torch.zeros(1, dtype=torch.int64).expand(2 * much), [], [])
    with pytest.raises(DataError, match=r"choose `image\.place` host"):
        BatchLoader(more, torch.device("cuda"), "device")


def style_of(kind: str, store: PixelStore, tmp_path: Path) -> CameraStyle | None:
    records = [Record(tmp_path / f"{i:04d}.jpg", 0, i % 3) for i in range(N)]
    if kind == "colour":
        return ColourStyle(records, store)
    if kind == "fourier":
        return FourierStyle(records, store, 0.05)
    if kind == "files":
        (tmp_path / STYLE_COPIES).mkdir()
        for i in range(0, N, 2):
            grey = Image.new("RGB", (WIDTH, HEIGHT), (i % 256,) * 3)
            grey.save(tmp_path / STYLE_COPIES / f"{i:04d}_fake_{(i + 1) % 3}.png")
        config = ImageConfig(height=HEIGHT, width=WIDTH, cache="none")
        return FileStyle(
            ImageSet("folder", tmp_path, records, [], []),
            records,
            config,
            tmp_path,
            lambda line: None,
        )
    return None


@PLACES
@pytest.mark.parametrize("kind", ["none", "colour", "fourier", "files"])
@pytest.mark.parametrize("method", ["ucal", "nnct"])
def test_the_data_of_a_step_equal_the_cpus_without_waiting(
    store: PixelStore,
    tmp_path: Path,
    forbid_waiting: Callable[[], None],
    place: str,
    kind: str,
    method: str,
) -> None:
    config = recipe("market1501", method=method).image
    style, cuda = style_of(kind, store, tmp_path), torch.device("cuda")
    loader = BatchLoader(store, cuda, place)
    there, here = Augment(config, 3, style), Augment(config, 3, style)
    batches = [torch.randperm(N)[:32] for _ in range(6)]
    part, got = slice(8, 24), []
    # Tables and pinned memory are made in the first steps.
    for step, (rows, images) in enumerate(prefetch(batches, lambda rows: loader.start(rows[part]))):
        if step == 2:
            forbid_waiting()
        draws = there.draw(len(rows), HEIGHT, WIDTH, rows)
        got.append(there.apply(images(), draws.part(part)))
    torch.cuda.set_sync_debug_mode("default")
    for rows, images in zip(batches, got, strict=True):
        assert torch.allclose(images.cpu(), here(store.read(rows), rows)[part], atol=2e-3)
    assert torch.equal(there.generator.get_state(), here.generator.get_state())
