"""Kinds of files, valid ones of each, and how they are read by public entry points only."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from fastreid_al.answers import ImageKeys, Ledger, Verdict
from fastreid_al.cli import parse_training
from fastreid_al.data import load
from fastreid_al.data.camera_style import match_copies
from fastreid_al.data.pixels import decode
from fastreid_al.data.records import Record
from fastreid_al.engine.checkpoint import load_checkpoint, save_checkpoint
from fastreid_al.errors import UserError
from fastreid_al.models import build_model
from fastreid_al.runs.simulate import read_features

Random = np.random.Generator


class FileKind(NamedTuple):
    """A kind of files.

    Args:
        area: Row of the table that its cases count in.
        make: Writes valid files into a folder.
        read: Reads them.
        without: Changes that a user may make: a file of settings may be a pipe, which waits for
            what writes to it.
    """

    area: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    without: tuple[str, ...] = ()


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def make_image(suffix: str, mode: str = "RGB", **settings: Any) -> Callable[[Path], None]:
    return lambda folder: noise(0, mode).save(folder / f"image.{suffix}", **settings)


def read_image(folder: Path) -> Any:
    return decode(sorted(folder.iterdir()), 16, 8, warn=lambda line: None).bad


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(path)


def make_market(folder: Path) -> None:
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        for seed, name in enumerate(("0002_c1s1_000451_03", "0007_c2s1_000001_01")):
            put(folder / split / f"{name}.jpg", seed)


def make_msmt(folder: Path) -> None:
    for split, top in (
        ("train", "train"),
        ("val", "train"),
        ("query", "test"),
        ("gallery", "test"),
    ):
        lines = []
        for person in range(2):
            name = f"{person:04d}/{person:04d}_000_{person + 1:02d}_0303morning_0008_{split}.jpg"
            put(folder / top / name, person)
            lines.append(f"{name} {person}\n")
        (folder / f"list_{split}.txt").write_text("".join(lines))


def make_folder(folder: Path) -> None:
    for seed, name in enumerate(("0001_c1_1.jpg", "0002_c2_1.png", "0003_c1_2.jpg")):
        put(folder / "train" / name, seed)


def make_manifest(folder: Path) -> None:
    lines = ["path,identity,camera,split"]
    for seed, split in enumerate(("train", "train", "query", "gallery")):
        put(folder / f"{seed}.png", seed)
        lines.append(f"{seed}.png,p{seed // 2},{seed % 2},{split}")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")


def read_set(name: str, below: str = "") -> Callable[[Path], Any]:
    return lambda folder: load(name, folder / below, verbose=False)


def make_settings(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        "dataset: market1501\nseed: 3\nbatch:\n  size: 32\n  per_identity: 4\n"
        "image.height: 128\ncluster: {eps: 0.6, neighbours: exact}\nask: ucal\n"
    )


def read_settings(folder: Path) -> Any:
    try:
        return parse_training(["--config", str(folder / "run.yaml")])
    except SystemExit as error:  # the parser's own way to refuse
        if error.code != 2:
            raise RuntimeError(f"exit status {error.code}") from error
        raise UserError("refused by the parser") from error


def make_npz(folder: Path, compressed: bool = False) -> None:
    write = np.savez_compressed if compressed else np.savez
    features = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    images = np.arange(12)
    write(folder / "features.npz", features=features, identities=images // 3, cameras=images % 4)


def read_npz(folder: Path) -> Any:
    return read_features(folder / "features.npz")


def make_checkpoint(folder: Path) -> None:
    state = {"model": {"w": torch.arange(6.0)}, "step": 3, "epoch": 1, "config": {"seed": 1}}
    save_checkpoint(folder / "last.pt", state)


def read_checkpoint(folder: Path) -> Any:
    return load_checkpoint(folder / "last.pt")


MODEL = "osnet_x0_25"


def make_weights(folder: Path) -> None:
    torch.save(build_model(MODEL, "none").state_dict(), folder / "weights.pth")


def read_weights(folder: Path) -> Any:
    return build_model(MODEL, folder / "weights.pth")


KEYS = ImageKeys("set", [f"{i}.jpg" for i in range(6)], [f"{i:064x}" for i in range(6)])


def make_ledger(folder: Path) -> None:
    with Ledger.open(str(folder / "answers.db"), KEYS) as ledger:
        for left, right, verdict in ((0, 1, Verdict.SAME), (1, 2, Verdict.DIFFERENT)):
            ledger.append(
                left,
                right,
                verdict,
                annotator="fuzz",
                asked_at=1.0,
                answered_at=2.0,
                epoch=1,
                reason="merge",
                score=0.5,
                similarity=0.5,
            )


def read_ledger(folder: Path) -> Any:
    with Ledger.open(str(folder / "answers.db"), KEYS, write=False) as ledger:
        return ledger.answers(), list(ledger.events()), ledger.integrity(), ledger.last_event()


RECORDS = [Record(Path(f"/set/0002_c{c}s1_00000{c}_01.jpg"), 0, c) for c in (1, 2)]


def make_copies(folder: Path) -> None:
    put(folder / "0002_c1s1_000001_01_fake_1to2.jpg", 0)
    put(folder / "0002_c2s1_000002_01_fake_2to1.jpg", 1)


def read_copies(folder: Path) -> Any:
    return match_copies(folder, RECORDS)


IMAGES: dict[str, Callable[[Path], None]] = {
    "jpg": make_image("jpg"),
    "grey jpg": make_image("jpg", "L"),
    "cmyk jpg": make_image("jpg", "CMYK"),
    "png": make_image("png"),
    "palette png": make_image("png", "P"),
    "png with alpha": make_image("png", "RGBA"),
    "bmp": make_image("bmp"),
    "gif": make_image("gif", "P"),
    "webp": make_image("webp"),
    "tif": make_image("tif"),
    "deflated tif": make_image("tif", compression="tiff_adobe_deflate"),
    "ppm": make_image("ppm"),
    "jp2": make_image("jp2"),
}
SETS = "image sets and lists"
KINDS: dict[str, FileKind] = {
    **{f"image: {name}": FileKind("images", make, read_image) for name, make in IMAGES.items()},
    "set: market1501": FileKind(SETS, make_market, read_set("market1501")),
    "set: msmt17": FileKind(SETS, make_msmt, read_set("msmt17")),
    "set: folder": FileKind(SETS, make_folder, read_set("folder")),
    "set: manifest": FileKind(SETS, make_manifest, read_set("manifest", "images.csv")),
    "set: camstyle": FileKind(SETS, make_copies, read_copies),
    "settings": FileKind(
        "files of settings", make_settings, read_settings, without=("pipe instead",)
    ),
    "npz": FileKind(".npz files", make_npz, read_npz),
    "npz compressed": FileKind(
        ".npz files", lambda folder: make_npz(folder, compressed=True), read_npz
    ),
    "checkpoint": FileKind("checkpoints and weights", make_checkpoint, read_checkpoint),
    "weights": FileKind("checkpoints and weights", make_weights, read_weights),
    "ledger": FileKind("ledgers", make_ledger, read_ledger),
}


# Mutations of the bytes of a file


def flip_bits(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        changed[int(random.integers(len(changed)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def overwrite(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        changed[int(random.integers(len(changed)))] = int(random.choice([0, 1, 127, 128, 255]))
    return bytes(changed)


def a_part(content: bytes, random: Random) -> tuple[int, int]:
    begin, end = sorted(int(x) for x in random.integers(0, len(content) + 1, 2))
    return begin, end


def truncate(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def remove(content: bytes, random: Random) -> bytes:
    begin, end = a_part(content, random)
    return content[:begin] + content[end:]


def repeat(content: bytes, random: Random) -> bytes:
    begin, end = a_part(content, random)
    return content[:end] + content[begin:end] * int(random.integers(1, 4)) + content[end:]


def erase(content: bytes, random: Random) -> bytes:
    begin, end = a_part(content, random)
    return content[:begin] + bytes(end - begin) + content[end:]


def swap(content: bytes, random: Random) -> bytes:
    begin, end = a_part(content, random)
    return content[end:] + content[begin:end] + content[:begin]


def insert(content: bytes, random: Random) -> bytes:
    at = int(random.integers(len(content) + 1))
    part = INSERTED[int(random.integers(len(INSERTED)))]
    return content[:at] + part + content[at:]


def a_large_number(content: bytes, random: Random) -> bytes:
    """Four bytes as a length of 2 GB, in either byte order."""
    at = int(random.integers(max(1, len(content) - 3)))
    number = (0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)[int(random.integers(3))]
    order = ("big", "little")[int(random.integers(2))]
    return content[:at] + number.to_bytes(4, order) + content[at + 4 :]  # type: ignore[arg-type]


#: What breaks readers of texts and of binaries.
INSERTED = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\x1b[2J", b"\xed\xa0\x80", b"9" * 5000),
    *(b"[" * 3000, b"&a [*a, *a]", b"!!python/object/apply:os.system [true]", b"{a: {a: ", b"-1"),
    *(b"../../../../etc/passwd", b"%s%n", b"'; DROP TABLE event; --", b"NaN", b"1e999", b"=1+1"),
)
BYTES: dict[str, Callable[[bytes, Random], bytes]] = {
    "flip bits": flip_bits,
    "overwrite bytes": overwrite,
    "truncate": truncate,
    "remove a part": remove,
    "repeat a part": repeat,
    "erase a part": erase,
    "swap parts": swap,
    "insert": insert,
    "a large number": a_large_number,
}


# Mutations of the folder


def empty_file(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def missing_file(path: Path, random: Random) -> None:
    path.unlink()


def folder_instead(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_itself(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def link_out(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def strange_name(path: Path, random: Random) -> None:
    names = (b"\xff\xfe", b"a\nb", b"\x1b[31m", b" ", b"-rf", b"x" * 200, "ж".encode())
    name = names[int(random.integers(len(names)))] + os.fsencode(path.suffix)
    os.rename(path, os.path.join(os.fsencode(path.parent), name))


def no_suffix(path: Path, random: Random) -> None:
    if not path.with_suffix("").exists():
        path.rename(path.with_suffix(""))


def other_kind(path: Path, random: Random) -> None:
    path.write_bytes(FOREIGN[int(random.integers(len(FOREIGN)))])


def foreign_files() -> tuple[bytes, ...]:
    """Whole files of other kinds."""
    png, npz, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    noise(1).save(png, "PNG")
    np.savez(npz, a=np.array([None], object))
    torch.save([1, {"model": 3}], pickled)
    html = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    return (png.getvalue(), npz.getvalue(), pickled.getvalue(), html, eps, b"\x80\x04N.", b"\n")


FOREIGN = foreign_files()
STRUCTURE: dict[str, Callable[[Path, Random], None]] = {
    "empty file": empty_file,
    "missing file": missing_file,
    "folder instead": folder_instead,
    "pipe instead": pipe_instead,
    "link to itself": link_to_itself,
    "link to a device": link_out,
    "strange name": strange_name,
    "no suffix": no_suffix,
    "file of another kind": other_kind,
}
CHANGES = (*BYTES, *STRUCTURE)


def mutate(folder: Path, changes: Sequence[str], random: Random) -> None:
    """Change files of a folder, one after the other."""
    for change in changes:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        if not files:
            return
        path = files[int(random.integers(len(files)))]
        if change in STRUCTURE:
            STRUCTURE[change](path, random)
        elif path.stat().st_size:
            path.write_bytes(BYTES[change](path.read_bytes(), random))


def copy_of(kind: str, templates: Path, target: Path) -> Path:
    """A fresh copy of the valid files of a kind."""
    template = templates / kind.replace(":", "").replace(" ", "_")
    if not template.is_dir():
        template.mkdir(parents=True)
        KINDS[kind].make(template)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(template, target)
    return target
