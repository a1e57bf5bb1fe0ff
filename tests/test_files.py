"""Files are written whole, privately, and in one place; only what the program made is removed."""

from __future__ import annotations

import ast
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastreid_al import files
from fastreid_al.errors import CheckpointError, UserError
from fastreid_al.locks import FileLock

ROOT = Path(__file__).parent.parent
#: The modules that write and remove files.
ONE_PLACE = {"fastreid_al/files.py", "fastreid_al/locks.py"}
#: Calls that write or remove something, by the last name of what is called.
WRITES = {
    *("unlink", "remove", "rmdir", "removedirs", "rmtree", "rename", "renames", "move"),
    *("mkdir", "makedirs", "mkdtemp", "mkstemp", "NamedTemporaryFile"),
    *("write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "symlink", "link"),
    *("copy", "copy2", "copyfile", "copytree", "chmod", "chown", "truncate", "mkfifo"),
    *("to_csv", "tofile", "export_chrome_trace"),
}
#: Calls that write into a file when they are given a path, and into an open one else.
SAVES = {"save", "savez", "savez_compressed", "savetxt", "savefig", "dump"}
#: Modules whose functions these are; methods of other objects may have the same names.
MODULES = {"os", "shutil", "tempfile"}
#: Names that are methods of other objects as well: of lists, tensors, groups of nodes.
SHARED_NAMES = {"remove", "move", "copy", "truncate", "link"}
#: A setting of the operating system, read through /proc and not a file of the program.
ALLOWED = {"Path('/proc/self/clear_refs').write_text"}


def calls(path: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call of a file, the object and the name that is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            base, _, name = called.rpartition(".")
            yield node, base, name


def opens_for_writing(node: ast.Call, base: str, name: str) -> bool:
    if name == "open" and base == "os":
        flags = ast.unparse(node.args[1]) if ast.unparse(node.args[0]) != "os.devnull" else ""
        return "WR" in flags or "CREAT" in flags
    if name == "memmap":
        return any(ast.unparse(a) in ("'w+'",) for a in node.args)
    if name != "open" or base in ("Image", "Ledger", "Store", "webbrowser"):
        return False
    modes = [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
    texts = [a.value for a in modes if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return any(re.fullmatch(r"[rwaxbt+U]{1,4}", t) and set(t) & set("wax+") for t in texts)


def is_file(node: ast.Call) -> bool:
    """Whether a call is given an open file, which has the name `file`."""
    return any(ast.unparse(argument) in ("file", "out") for argument in node.args)


def problems(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                if alias.name in WRITES:
                    yield f"{node.lineno}: from {node.module} import {alias.name}"
    for node, base, name in calls(path):
        # A bare name is a function of `files`, or is caught where it is imported.
        elsewhere = not base or f"{base}.{name}" in ALLOWED
        elsewhere |= name in SHARED_NAMES and base not in MODULES
        if opens_for_writing(node, base, name) or (name in WRITES and not elsewhere):
            yield f"{node.lineno}: {base}.{name}"
        elif name in SAVES and not is_file(node) and base in ("torch", "np", "figure", "canvas"):
            yield f"{node.lineno}: {base}.{name} without an open file"


@pytest.mark.parametrize("top", ["fastreid_al", "bench"])
def test_files_are_written_and_removed_in_one_place(top: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in sorted((ROOT / top).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in ONE_PLACE
        for problem in problems(path)
    ]
    assert found == []


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o777


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    try:
        yield request.param
    finally:
        os.umask(before)


def test_files_and_folders_are_private_and_never_broader_than_the_umask(
    tmp_path: Path, umask: int
) -> None:
    files.make_folder(tmp_path / "a" / "b")
    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [0o700 & ~umask] * 2
    files.write_file(tmp_path / "private", "x")
    files.write_file(tmp_path / "public", "x", private=False)
    assert (mode(tmp_path / "private"), mode(tmp_path / "public")) == (
        0o600 & ~umask,
        0o666 & ~umask,
    )
    files.append_text(tmp_path / "lines", "x\n")
    assert mode(tmp_path / "lines") == 0o600 & ~umask
    assert mode(files.new_folder(tmp_path, "new-")) == 0o700 & ~umask


def test_links_are_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "last.pt").symlink_to(precious)
    files.write_file(tmp_path / "last.pt", "new")
    assert (tmp_path / "last.pt").read_text() == "new"
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(OSError, match=r"links|exists"):
            files.append_text(tmp_path / name, "x")
        with pytest.raises(FileExistsError):
            files.create_file(tmp_path / name)
        with pytest.raises(OSError, match=r"links|is not a regular"):
            FileLock(tmp_path / name)
        with pytest.raises(OSError, match="is a link"), files.open_output(tmp_path / name) as out:
            out.write("x")
    files.remove_file(tmp_path / "link", re.compile("link"))
    assert (tmp_path / "link").is_symlink()
    assert precious.read_text() == "precious" and not (tmp_path / "nothing").exists()


def test_temporary_names_are_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = os.open

    def noted(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL and flags & os.O_NOFOLLOW
            made.append(Path(path).name)
        return original(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", noted)
    for _ in range(2):
        files.write_file(tmp_path / "x", "y")
    assert len(set(made)) == 2
    assert all(files.TEMPORARY.fullmatch(name) for name in made)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    files.write_file(tmp_path / "x", "old")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(CheckpointError, match=r"quota exceeded\); the one before it is intact"):
        files.write_atomically(tmp_path / "x", fail)
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(CheckpointError, match=r"could not write .*(directory|regular file)"):
            files.write_file(tmp_path / name, "x")
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe", "x"]


class FullDisk:
    """The part of a file that torch.save uses, on a disk that is full after some bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, content: Any) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("room", [0, 10, 1000, 5000])
def test_a_full_disk_is_said_in_the_words_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    original = files.NewFile.__init__

    def full(self: files.NewFile, descriptor: int) -> None:
        original(self, descriptor)
        self._file.close()
        self._file = FullDisk(room)  # type: ignore[assignment]

    monkeypatch.setattr(files.NewFile, "__init__", full)
    with pytest.raises(
        CheckpointError, match=r"\(No space left on device\); there is none"
    ) as said:
        files.write_with_digest(tmp_path / "x.pt", lambda file: torch.save(torch.ones(10**4), file))
    assert "inline_container" not in str(said.value) and os.listdir(tmp_path) == []


def test_an_error_that_is_no_failed_write_is_raised_as_it_is(tmp_path: Path) -> None:
    def wrong(file: Any) -> None:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        files.write_atomically(tmp_path / "x", wrong)
    assert os.listdir(tmp_path) == []


def test_only_files_of_a_pattern_are_removed_and_folders_that_are_empty_then(
    tmp_path: Path,
) -> None:
    pattern = re.compile(r"last-[0-9]+")
    own = re.compile(r"common\.pt")
    for folder in ("last-1", "last-2", "last-x", "my-last-3"):
        (tmp_path / folder / "tensors").mkdir(parents=True)
        (tmp_path / folder / "common.pt").touch()
    (tmp_path / "last-2" / "tensors" / "notes.txt").touch()
    (tmp_path / "last-4").symlink_to(tmp_path / "my-last-3")
    for path in sorted(tmp_path.iterdir()):
        files.remove_folder(path, pattern, own)
    assert sorted(os.listdir(tmp_path)) == ["last-2", "last-4", "last-x", "my-last-3"]
    assert os.listdir(tmp_path / "last-2") == ["tensors"]
    assert (tmp_path / "my-last-3" / "common.pt").exists()


def test_an_output_is_replaced_as_a_whole_and_devices_are_written_to(tmp_path: Path) -> None:
    with files.open_output(tmp_path / "out.csv") as out:
        out.write("a,ü\n")
    assert (tmp_path / "out.csv").read_text("utf-8") == "a,ü\n"
    with pytest.raises(AttributeError), files.open_output(tmp_path / "out.csv") as out:
        out.write(3)
    assert (tmp_path / "out.csv").read_text("utf-8") == "a,ü\n"
    before = os.stat("/dev/null")
    with files.open_output("/dev/null") as out:
        out.write("x")
    assert os.path.samestat(before, os.stat("/dev/null")) and os.listdir(tmp_path) == ["out.csv"]


def test_links_to_devices_and_open_files_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for number, to in enumerate(["/dev/null", "/proc/self/fd/1", tmp_path / "pipe"]):
        link = tmp_path / f"link{number}"
        link.symlink_to(to)
        with pytest.raises(UserError, match="neither a file nor a folder"):
            files.refuse_existing(link, force=True)
        with pytest.raises(CheckpointError, match="not a regular file"):
            files.write_json(link, {})
        assert link.is_symlink()
    files.refuse_existing(tmp_path / "pipe", force=False, stream=True)


def test_a_function_that_opens_its_file_itself_writes_a_private_one(tmp_path: Path) -> None:
    def replaced(path: str) -> None:
        Path(path).unlink()
        Path(path).write_text("new")

    files.write_by_path(tmp_path / "trace.json", replaced)
    assert (tmp_path / "trace.json").read_text() == "new" and mode(tmp_path / "trace.json") == 0o600
    assert os.listdir(tmp_path) == ["trace.json"]


def test_files_that_belong_together_are_written_or_none_is(tmp_path: Path) -> None:
    def both(path: str) -> None:
        Path(path).write_text("new")
        Path(path).with_suffix(".bin").write_text("new")

    def fails(path: str) -> None:
        both(path)
        raise ValueError("stopped")

    out, other = tmp_path / "x.xml", tmp_path / "x.bin"
    out.write_text("old")
    with pytest.raises(ValueError, match="stopped"):
        files.write_by_path(out, fails, ["x.bin"])
    assert os.listdir(tmp_path) == ["x.xml"] and out.read_text() == "old"
    files.write_by_path(out, both, ["x.bin"])
    assert (out.read_text(), other.read_text()) == ("new", "new")
    assert mode(out) == mode(other) == 0o600 and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("place", [0, 50, -1, -32, -33, -52])
def test_a_changed_bit_is_found_by_the_digest(tmp_path: Path, place: int) -> None:
    path = tmp_path / "x"
    files.write_with_digest(path, lambda file: file.write(b"content" * 100))
    assert files.check_digest(path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    if -52 <= place <= -33:  # the mark is gone: the file carries no digest
        assert not files.check_digest(path)
        return
    with pytest.raises(ValueError, match="is damaged"):
        files.check_digest(path)
