"""Decoded pixels are found by content, made again when damaged, and used by several processes."""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastreid_al.data import cache, pixels
from fastreid_al.data.pixels import PixelStore, cache_folder
from fastreid_al.distributed.world import World
from fastreid_al.errors import DataError
from tests.support.image_sets import decode_at
from tests.support.process_pool import Pool

SIZE = (16, 8)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Six images; the third file is not an image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(7):
        noise = np.random.default_rng(i).integers(0, 256, (20, 10, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no image")
    return sorted(folder.iterdir())


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets a number for each image that is decoded."""
    return counted(monkeypatch.setattr)


def counted(replace: Callable[[object, str, object], None]) -> list[int]:
    done: list[int] = []
    original = pixels.to_rgb
    replace(pixels, "to_rgb", lambda content: done.append(len(content)) or original(content))
    return done


def same(a: PixelStore, b: PixelStore) -> bool:
    rows = torch.arange(len(a))
    return torch.equal(a.read(rows), b.read(rows)) and a.digests == b.digests and a.bad == b.bad


def held(folder: Path, pattern: str = "pixels-*.u8") -> list[Path]:
    return sorted(folder.glob(pattern))


@pytest.mark.parametrize("store_gib", [4.0, 0.0])
def test_kept_pixels_are_found_again_with_the_images_left_out(
    photos: list[Path], kept: Path, decoded: list[int], store_gib: float
) -> None:
    paths = [*photos, photos[0].with_name("absent.png")]
    fresh = decode_at(paths, *SIZE)
    first = decode_at(paths, *SIZE, cache=kept, store_gib=store_gib)
    assert len(decoded) == 14
    again = decode_at(paths, *SIZE, cache=kept, store_gib=store_gib)
    assert len(decoded) == 14 and same(fresh, first) and same(fresh, again)
    assert [bad.reason for bad in again.bad] == ["not an image", "No such file or directory"]
    assert len(held(kept)) == 1 and held(kept, "*.part") == []


def test_moved_files_are_found_and_another_order_or_size_is_not(
    photos: list[Path], kept: Path, decoded: list[int]
) -> None:
    first = decode_at(photos, *SIZE, cache=kept)
    elsewhere = photos[0].parent.rename(photos[0].parent.with_name("elsewhere"))
    moved = decode_at([elsewhere / path.name for path in photos], *SIZE, cache=kept)
    assert (
        len(decoded) == 7
        and first.digests == moved.digests
        and moved.bad[0].path == elsewhere / "2.png"
    )
    turned = decode_at([elsewhere / path.name for path in reversed(photos)], *SIZE, cache=kept)
    assert len(decoded) == 14 and torch.equal(
        turned.read(torch.arange(6)), first.read(torch.arange(6)).flip(0)
    )
    assert decode_at([elsewhere / path.name for path in photos], 8, 8, cache=kept).pixels.shape == (
        7,
        3,
        8,
        8,
    )
    assert len(decoded) == 21


def test_a_changed_file_is_noticed_though_size_and_times_are_set_back(
    photos: list[Path], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_RACE_NS", -(10**9))
    target = photos[5]
    decode_at(photos, *SIZE, cache=kept)
    before = target.stat()
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 255
    time.sleep(0.02)
    target.write_bytes(content)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert target.stat().st_size == before.st_size and target.stat().st_ino == before.st_ino
    assert same(decode_at(photos, *SIZE, cache=kept), decode_at(photos, *SIZE))


def test_files_are_read_once_for_their_digests_unless_they_were_just_changed(
    photos: list[Path], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bytes] = []
    original = cache.digest_of
    monkeypatch.setattr(
        cache, "digest_of", lambda content: taken.append(content) or original(content)
    )
    files = {path.read_bytes() for path in photos}

    def read() -> int:
        taken.clear()
        decode_at(photos, *SIZE, cache=kept)
        return len(files.intersection(taken))

    assert [read(), read()] == [7, 7]  # they were written just now
    monkeypatch.setattr(cache, "_RACE_NS", -(10**9))
    assert [read(), read()] == [7, 0]
    held(kept, "index-*.npy")[0].write_bytes(b"damaged")
    assert [read(), read()] == [7, 0]


def file_behind(store: PixelStore) -> str:
    """The file of pixels that a store maps; empty where it maps none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if ".u8" in line:
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if start <= store.pixels.data_ptr() < end:
                return line.split(maxsplit=5)[5]
    return ""


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a pixel": lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
    "the reasons": lambda content: content.replace(b"not an image", b"not an imago"),
    "half of it is missing": lambda content: content[: len(content) // 2],
    "the end is missing": lambda content: content[:-1],
    "empty": lambda content: b"",
    "more than it should be": lambda content: content + content,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("store_gib", [4.0, 0.0])
def test_a_damaged_file_is_reported_once_and_made_again(
    photos: list[Path], kept: Path, damage: str, store_gib: float
) -> None:
    warnings: list[str] = []
    fresh = decode_at(photos, *SIZE)
    for count in (0, 1, 1):
        assert same(
            decode_at(photos, *SIZE, cache=kept, store_gib=store_gib, warn=warnings.append), fresh
        )
        assert len(warnings) == count
        if not warnings:
            held(kept)[0].write_bytes(DAMAGES[damage](held(kept)[0].read_bytes()))
    assert "is damaged and is made again" in warnings[0] and "\n" not in warnings[0]


def full(file: object, size: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_works_without_a_cache_that_cannot_be_written(
    photos: list[Path], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, warnings = decode_at(photos, *SIZE), []
    (kept.parent / "file").write_bytes(b"")
    assert same(
        decode_at(photos, *SIZE, cache=kept.parent / "file" / "below", warn=warnings.append), fresh
    )
    monkeypatch.setattr(cache, "reserve", full)
    assert same(decode_at(photos, *SIZE, cache=kept, warn=warnings.append), fresh)
    assert len(warnings) == 2 and all(
        " are not kept in " in line and "\n" not in line for line in warnings
    )
    assert "No space left on device" in warnings[1] and held(kept) == held(kept, "*.part") == []


def test_a_read_only_folder_can_be_read(
    photos: list[Path], kept: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, warnings = decode_at(photos, *SIZE, cache=kept), []
    original = os.open

    def read_only(path: object, flags: int, *args: int, **options: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return original(path, flags, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", read_only)
    assert same(decode_at(photos, *SIZE, cache=kept, warn=warnings.append), first)
    assert len(decoded) == 7 and warnings == []
    assert decode_at(photos, 8, 8, cache=kept, warn=warnings.append).pixels.shape[-2:] == (8, 8)
    assert len(warnings) == 1 and "Read-only file system" in warnings[0]


def test_the_least_recently_used_pixels_are_removed(photos: list[Path], kept: Path) -> None:
    heights, size = (16, 17, 18), 7 * 3 * 18 * 8
    for age, height in enumerate(heights[:2]):
        decode_at(photos, height, 8, cache=kept)
        for path in held(kept):
            os.utime(path, (0, path.stat().st_mtime - 100 * (2 - age)))
    decode_at(photos, 16, 8, cache=kept)  # used again
    used = max(held(kept), key=lambda path: path.stat().st_mtime)
    decode_at(photos, 18, 8, cache=kept, cache_gib=2.5 * size / 2**30)
    left = held(kept)
    assert len(left) == 2 and used in left


HEX = "0123456789abcdef" * 2
#: Old files in the folder of the cache that look like its own, and are not.
FOREIGN = (
    *("notes.txt", "features.npy", "old.part", "x.lock", "pixels-mine.u8", f"{HEX}.npy"),
    *(f"index-{HEX}.npy.bak", f"my-index-{HEX}.npy", f"pixels-{HEX}.u8\n", f"index-{HEX[1:]}.npy"),
    *(f"{HEX}.lock", f"{HEX}.part", "pixels-.u8", f".fastreid_al-{HEX}.tmp.txt"),
)
#: Files that earlier runs left over.
LEFT_OVER = (
    *(f"index-{HEX}.npy", f"list-{HEX}.lock", f".fastreid_al-{HEX}.tmp", f"{HEX}-{HEX}.part"),
)


def test_only_files_of_the_caches_own_names_are_removed(photos: list[Path], kept: Path) -> None:
    outside = kept.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    kept.mkdir()
    for name in (*FOREIGN, *LEFT_OVER):
        (kept / name).write_text("x")
        os.utime(kept / name, (0, 0))
    (kept / f"index-{'0' * 32}.npy").symlink_to(outside / "precious")
    (kept / f"pixels-{'0' * 32}.u8").mkdir()
    (kept / f"pixels-{'1' * 32}.u8").symlink_to(outside / "precious")
    decode_at(photos, 18, 8, cache=kept, cache_gib=1.5 * 7 * 3 * 18 * 8 / 2**30)
    decode_at(photos, 16, 8, cache=kept, cache_gib=1.1 * 7 * 3 * 16 * 8 / 2**30)
    assert [name for name in FOREIGN if not (kept / name).exists()] == []
    assert [name for name in LEFT_OVER if (kept / name).exists()] == []
    assert (outside / "precious").read_text() == "x"
    assert (kept / f"index-{'0' * 32}.npy").is_symlink()
    assert (kept / f"pixels-{'0' * 32}.u8").is_dir()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_cache_is_its_owners_only(
    photos: list[Path], tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_RACE_NS", -(10**9))
    before = os.umask(umask)
    try:
        decode_at(photos, *SIZE, cache=tmp_path / "new" / "kept")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "kept").stat().st_mode & 0o777 == 0o700
    files = list((tmp_path / "new" / "kept").iterdir())
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_pixels_larger_than_the_budget_are_not_kept(photos: list[Path], kept: Path) -> None:
    warnings: list[str] = []
    store = decode_at(photos, *SIZE, cache=kept, cache_gib=1e-6, warn=warnings.append)
    assert len(store) == 6 and not kept.exists()
    assert len(warnings) == 1 and "`image.cache_gib`" in warnings[0]


def test_images_changed_before_decoding_are_not_kept(
    photos: list[Path], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, warnings = cache.reserve, []

    def late(file: object, size: int) -> None:
        photos[0].write_bytes(photos[1].read_bytes())
        original(file, size)

    monkeypatch.setattr(cache, "reserve", late)
    store = decode_at(photos, *SIZE, cache=kept, warn=warnings.append)
    assert store.digests[0] == store.digests[1] and held(kept) == [] and len(warnings) == 1


def test_an_interrupted_decoding_leaves_neither_file_nor_lock(
    photos: list[Path], kept: Path
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_at(photos, *SIZE, cache=kept, on_progress=stop)
    assert held(kept) == held(kept, "*.part") == []
    assert len(decode_at(photos, *SIZE, cache=kept)) == 6 and len(held(kept)) == 1


def test_the_setting_names_the_users_folder_another_or_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTREID_AL_CACHE", str(tmp_path))
    assert [cache_folder(x) for x in ("auto", "none", "/x/y")] == [
        tmp_path / "pixels",
        None,
        Path("/x/y"),
    ]


def at_once(world: World, paths: list[Path], kept: Path) -> tuple[int, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        done = counted(patch.setattr)
        world.any_true(False)
        store = decode_at(paths, *SIZE, cache=kept)
        return len(done), store.read(torch.arange(len(store)))


def test_one_of_several_processes_decodes(pool: Pool, photos: list[Path], kept: Path) -> None:
    got = pool.run(at_once, 3, photos, kept)
    assert sum(count for count, _ in got) == 7 and len(held(kept)) == 1
    expected = decode_at(photos, *SIZE).read(torch.arange(6))
    assert all(torch.equal(images, expected) for _, images in got)


def together(
    world: World, paths: list[Path], kept: Path | None, spare: Path
) -> tuple[int, PixelStore]:
    with pytest.MonkeyPatch.context() as patch:
        done = counted(patch.setattr)
        store = decode_at(paths, *SIZE, cache=kept, store_dir=spare, world=world)
    assert file_behind(store).startswith(str(kept or spare))
    return len(done), PixelStore(store.pixels.clone(), store.slots, store.digests, store.bad)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("keep", [True, False])
def test_ranks_map_the_file_that_one_of_them_decodes(
    pool: Pool, photos: list[Path], kept: Path, tmp_path: Path, size: int, keep: bool
) -> None:
    got = pool.run(together, size, photos, kept if keep else None, tmp_path / "spare")
    assert sum(count for count, _ in got) == 7
    single = decode_at(photos, *SIZE)
    assert all(same(store, single) for _, store in got)
    assert len(held(kept)) == keep and list((tmp_path / "spare").glob("*")) == []


def failing(world: World, paths: list[Path], spare: Path, how: str) -> str:
    try:
        if how == "no room":
            with pytest.MonkeyPatch.context() as patch:
                if world.rank == 1:
                    patch.setattr(cache, "reserve", full)
                    patch.setattr(pixels, "reserve", full)
                decode_at(
                    paths if world.rank != 1 else paths[::-1],
                    *SIZE,
                    store_gib=0,
                    store_dir=spare,
                    world=world,
                )
        else:
            decode_at(paths[world.rank == 2 :], *SIZE, store_dir=spare, world=world)
    except DataError as error:
        return str(error)
    return ""


def test_an_error_of_one_rank_is_raised_on_all(
    pool: Pool, photos: list[Path], tmp_path: Path
) -> None:
    no_room = pool.run(failing, 3, photos, tmp_path / "spare", "no room")
    assert all("no room for" in text for text in no_room) and no_room[0].startswith("rank 1: ")
    other = pool.run(failing, 3, photos, tmp_path / "spare", "others")
    assert all("rank 2 does not find the same images as rank 0" in text for text in other)
    assert list((tmp_path / "spare").glob("*")) == []


def test_a_single_process_maps_only_what_does_not_fit_into_memory(
    photos: list[Path], kept: Path
) -> None:
    assert file_behind(decode_at(photos, *SIZE, cache=kept)) == ""
    assert file_behind(decode_at(photos, *SIZE, cache=kept, store_gib=0)) == str(held(kept)[0])


@pytest.mark.parametrize("what", ["huge", "pickle", "zip", "empty", "truncated"])
def test_a_damaged_index_is_read_anew_in_bounds(
    photos: list[Path], kept: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(cache, "_RACE_NS", -(10**9))
    fresh = decode_at(photos, *SIZE, cache=kept)
    (index,) = held(kept, "index-*.npy")
    content = index.read_bytes()
    if what == "huge":
        content = content.replace(b"(7,)", b"(9999999999999,)")
    elif what == "zip":
        np.savez(kept / "x.npz", a=np.zeros(3))
        content = (kept / "x.npz").read_bytes()
    else:
        content = {"pickle": b"cos\nsystem\n.", "empty": b""}.get(what, content[:150])
    index.write_bytes(content)
    assert same(decode_at(photos, *SIZE, cache=kept), fresh)


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"reasons": 3, "sums": []}', b"3"])
def test_pixels_with_a_foreign_description_are_made_again(
    photos: list[Path], kept: Path, text: bytes
) -> None:
    fresh = decode_at(photos, *SIZE, cache=kept)
    (file,) = held(kept)
    pixels = file.read_bytes()[: 7 * 3 * SIZE[0] * SIZE[1]]
    foot = cache._FOOT.pack(len(text), zlib.crc32(text), cache._MAGIC)
    file.write_bytes(pixels + text + foot)
    warnings: list[str] = []
    assert same(decode_at(photos, *SIZE, cache=kept, warn=warnings.append), fresh)
    assert len(warnings) == 1 and "is damaged and is made again" in warnings[0]
