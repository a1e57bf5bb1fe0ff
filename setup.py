"""Builds `fastreid_al._native` from csrc/; everything else is in pyproject.toml.

Environment: FASTREID_AL_CUDA is auto (build the CUDA part if nvcc is found), 1 (require it) or 0
(leave it out). FASTREID_AL_CUDA_ARCHITECTURES, such as "80;90", replaces the default: every
architecture of ARCHITECTURES that nvcc knows. Without a C++ compiler the package installs without
the extension and computes the same in Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

SOURCES = Path("csrc")
# Code for 8.0 runs on 8.6 and 8.9 too, that for 10.0 on 10.3, that for 12.0 on 12.1.
ARCHITECTURES = (80, 90, 100, 120)
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"]


class BuildNative(build_ext):
    """Compiles csrc/*.cpp, and csrc/*.cu if nvcc is found."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link, with the CUDA part if it is requested and available."""
        try:
            import pybind11
            from pybind11.setup_helpers import ParallelCompile
        except ImportError:
            raise SystemExit("building in place needs pybind11: pip install pybind11") from None
        ext.include_dirs.append(pybind11.get_include())
        ParallelCompile(default=os.cpu_count() or 1).install()
        ext.sources = self._sources()
        # Objects of an earlier build may have been compiled with other settings.
        self.force = True
        cuda = os.environ.get("FASTREID_AL_CUDA") or "auto"
        if cuda not in ("auto", "0", "1"):
            raise SystemExit(f"FASTREID_AL_CUDA: got {cuda!r}, expected auto, 0 or 1")
        # A failure is an error if the CUDA part or `setup.py build_ext` was requested explicitly.
        ext.optional = cuda != "1" and "build_ext" not in self.distribution.commands
        nvcc = _nvcc()
        if cuda == "1" and nvcc is None:
            raise CompileError(
                "FASTREID_AL_CUDA=1, but nvcc was not found in CUDA_HOME, in /usr/local/cuda or on "
                "PATH"
            )
        plain = (
            list(ext.extra_objects),
            list(ext.define_macros),
            list(ext.library_dirs),
            list(ext.libraries),
        )
        if cuda != "0" and nvcc is not None:
            try:
                self._add_cuda(ext, nvcc)
                super().build_extension(ext)
                return
            except (BaseError, CCompilerError, subprocess.CalledProcessError, OSError) as error:
                if cuda == "1":
                    raise CompileError(
                        f"the CUDA part failed, and FASTREID_AL_CUDA=1: {error}"
                    ) from error
                self.warn(
                    f"the CUDA part failed and is left out (FASTREID_AL_CUDA=0 skips it): {error}"
                )
                ext.extra_objects, ext.define_macros, ext.library_dirs, ext.libraries = plain
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError):
            self.warn(
                "fastreid_al._native was not built: the package works without it, in Python, and "
                "clustering is slower. To build it, install a C++17 compiler and Python's headers "
                "(Debian, Ubuntu: g++, python3-dev) and reinstall the package"
            )
            # Remove the library of an earlier build, which would be loaded instead.
            library = Path(self.get_ext_fullpath(ext.name))
            library.unlink(missing_ok=True)
            if self.editable_mode:
                (Path(*ext.name.split(".")[:-1]) / library.name).unlink(missing_ok=True)
            raise

    def _sources(self) -> list[str]:
        """The sources, with all bindings as one: each would compile pybind11 again."""
        bindings = sorted(SOURCES.glob("bind*.cpp"))
        joined = Path(self.build_temp) / "all_bindings.cpp"
        joined.parent.mkdir(parents=True, exist_ok=True)
        joined.write_text("".join(f'#include "{path.resolve()}"\n' for path in bindings))
        return [str(p) for p in (*sorted(set(SOURCES.glob("*.cpp")) - set(bindings)), joined)]

    def _add_cuda(self, ext: Extension, nvcc: Path) -> None:
        sources = sorted(SOURCES.glob("*.cu"))
        if not sources:
            return
        numbers = _architectures(nvcc)
        targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
        # PTX for later devices, which compile it at run time.
        targets.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
        threads = max(1, (os.cpu_count() or 1) // len(sources))
        flags = [
            "-std=c++17",
            "-O3",
            f"--threads={threads}",
            "-Xcompiler=-fPIC,-fvisibility=hidden",
            *targets,
        ]
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(
                pool.map(
                    lambda source: _compile(nvcc, source, folder / f"{source.stem}.o", flags),
                    sources,
                )
            )
        ext.extra_objects = [*ext.extra_objects, *map(str, objects)]
        ext.define_macros = [
            *ext.define_macros,
            ("FASTREID_AL_CUDA", "1"),
            ("FASTREID_AL_CUDA_ARCHITECTURES", '"' + " ".join(map(str, numbers)) + '"'),
        ]
        ext.library_dirs = [*ext.library_dirs, *_library_dirs(nvcc)]
        ext.libraries = [*ext.libraries, "cudart_static", "rt", "dl", "pthread"]


def _compile(nvcc: Path, source: Path, out: Path, flags: list[str]) -> Path:
    """Compile a source unless its object is up to date with csrc/ and with this command."""
    command = [str(nvcc), "-c", str(source), "-o", str(out), *flags]
    done = out.with_suffix(".command")
    changed = max(p.stat().st_mtime for p in SOURCES.iterdir())
    if not (
        out.exists()
        and out.stat().st_mtime > changed
        and done.exists()
        and done.read_text() == repr(command)
    ):
        print(*command, flush=True)
        subprocess.run(command, check=True)
        done.write_text(repr(command))
    return out


def _architectures(nvcc: Path) -> list[int]:
    """The architectures to compile for, such as [80, 90], ascending."""
    known = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    supported = sorted({int(number) for number in re.findall(r"compute_(\d+)\b", known)})
    if not supported:
        raise OSError(f"{nvcc} --list-gpu-arch names no architecture")
    chosen = re.split(r"[;,\s]+", os.environ.get("FASTREID_AL_CUDA_ARCHITECTURES", "").strip("; ,"))
    if chosen == [""]:
        return [a for a in ARCHITECTURES if a in supported] or supported
    if any(
        not re.fullmatch(r"\d+\.?\d", word) or int(word.replace(".", "")) not in supported
        for word in chosen
    ):
        value = os.environ["FASTREID_AL_CUDA_ARCHITECTURES"]
        raise SystemExit(
            f"FASTREID_AL_CUDA_ARCHITECTURES: got {value!r}, "
            f"expected numbers of {supported} with ';' between"
        )
    return sorted({int(word.replace(".", "")) for word in chosen})


def _library_dirs(nvcc: Path) -> list[str]:
    """The library folders of this nvcc, which may be a wrapper script for one elsewhere."""
    command = [nvcc, "--dryrun", "-c", "none.cu"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    line = next((line for line in lines if "LIBRARIES=" in line), "")
    root = nvcc.resolve().parent.parent
    return [
        *re.findall(r'"-L([^"]+)"', line),
        *(str(p) for p in (root / "lib64", root / "lib") if p.is_dir()),
    ]


def _nvcc() -> Path | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    found = shutil.which("nvcc")
    return next((p for p in [*candidates, *([Path(found)] if found else [])] if p.is_file()), None)


setup(
    ext_modules=[
        Extension(
            "fastreid_al._native",
            sources=[str(p) for p in sorted(SOURCES.glob("*.cpp"))],
            depends=[str(p) for p in sorted(SOURCES.glob("*.h"))],
            extra_compile_args=FLAGS,
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
