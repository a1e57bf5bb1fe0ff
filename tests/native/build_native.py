"""Builds of the extension for tests: with CUDA kernels emulated on the CPU, and with sanitizers.

Needs g++ (or CXX) and pybind11, but not PyTorch.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent.parent / "csrc"
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    # libgomp's synchronisation is invisible to ThreadSanitizer.
    "thread": ["-fsanitize=thread", "-DFASTREID_AL_STD_THREADS"],
}


def compiler() -> str | None:
    """The path of the C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build(folder: Path, *, emulated: bool, sanitizer: str | None = None) -> Path:
    """Build the extension into a folder.

    Args:
        folder: An empty folder.
        emulated: Compile csrc/*.cu too, as C++ whose kernels run on the CPU; their bindings take
            addresses of NumPy arrays.
        sanitizer: "address" (with "undefined") or "thread"; the process that loads the build must
            preload the sanitizer's runtime.

    Returns:
        The library's path.

    Raises:
        subprocess.CalledProcessError: The compiler failed; its output says why.
    """
    import pybind11

    flags = [
        "-O1",
        "-g",
        "-fPIC",
        "-fvisibility=hidden",
        f"-I{SOURCES}",
        f"-I{pybind11.get_include()}",
        f"-I{sysconfig.get_path('include')}",
    ]
    sources = sorted(set(SOURCES.glob("*.cpp")) - set(SOURCES.glob("bind*.cpp")))
    sources.append(_joined_bindings(folder))
    if emulated:
        flags += [
            "-DFASTREID_AL_EMULATED",
            f"-I{HERE}",
            "-DFASTREID_AL_CUDA",
            '-DFASTREID_AL_CUDA_ARCHITECTURES="emulated"',
        ]
        sources += sorted(SOURCES.glob("*.cu"))
    return compile_and_link(
        sources,
        folder,
        f"_native{sysconfig.get_config_var('EXT_SUFFIX')}",
        ["-shared"],
        flags,
        sanitizer,
    )


def _joined_bindings(folder: Path) -> Path:
    """Write a source that includes all bindings, which compiles four times faster than each."""
    joined = folder / "all_bindings.cpp"
    includes = [f'#include "{source.name}"\n' for source in sorted(SOURCES.glob("bind*.cpp"))]
    joined.write_text("".join(includes))
    return joined


def kept_build(folder: Path) -> Path:
    """The emulated build of the present sources, in a folder that is kept; built if it is missing.

    Other processes that need the same build wait for it. Builds of other sources are removed.

    Args:
        folder: A folder that holds nothing but such builds.

    Returns:
        The library's path.
    """
    import fcntl

    digest = _digest_of_sources()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = folder / digest
        done = kept / "done"
        if not done.exists():
            for old in folder.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            kept.mkdir()
            library = build(kept, emulated=True)
            done.write_text(library.name)
        return kept / done.read_text()


def _digest_of_sources() -> str:
    """A digest of everything that the emulated build depends on."""
    import pybind11

    known = hashlib.sha256()
    version = subprocess.run([str(compiler()), "--version"], capture_output=True, check=True)
    known.update(f"{sys.version} {pybind11.__version__}".encode() + version.stdout)
    for path in sorted([*SOURCES.rglob("*"), *HERE.glob("*.h"), Path(__file__)]):
        if path.is_file():
            known.update(path.name.encode() + b"\0" + path.read_bytes())
    return known.hexdigest()[:16]


def build_program(
    source: Path, folder: Path, flags: Sequence[str] = (), sanitizer: str | None = None
) -> Path:
    """Build a program of one file into an empty folder and return its path."""
    flags = ["-O1", "-g", "-DFASTREID_AL_EMULATED", f"-I{HERE}", f"-I{SOURCES}", *flags]
    return compile_and_link([source], folder, source.stem, [], flags, sanitizer)


def compile_and_link(
    sources: Sequence[Path],
    folder: Path,
    name: str,
    link: Sequence[str],
    flags: Sequence[str],
    sanitizer: str | None,
) -> Path:
    """Compile sources in parallel, link them, and return the path of the result."""
    # g++ does not know the pragmas for nvcc.
    common = [
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-pthread",
        "-fopenmp",
        *flags,
    ]
    common += SANITIZERS[sanitizer] if sanitizer else []
    command = [str(compiler()), *common]

    def compiled(source: Path) -> Path:
        out = folder / f"{source.name}.o"
        subprocess.run([*command, "-x", "c++", "-c", source, "-o", out], check=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([*command, *link, *objects, "-o", folder / name], check=True)
    return folder / name


def load(path: Path) -> ModuleType:
    """Import a build by its path, in addition to the installed extension."""
    name = f"fastreid_al_{path.parent.name}._native"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def exercises() -> list[Path]:
    """The scripts that call every binding; each has a function `run(module)`."""
    return sorted(HERE.glob("exercise_*.py"))


def exercise(path: Path, module: Any) -> None:
    """Run an exercise script on a build."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.run(module)


if __name__ == "__main__":
    exercise(Path(sys.argv[2]), load(Path(sys.argv[1])))
