"""Builds `fastreid_al._native` from csrc/; everything else is in pyproject.toml.

Environment: FASTREID_AL_CUDA=auto (the CUDA part where nvcc is found), 1 (required) or 0 (left out);
FASTREID_AL_CUDA_ARCHITECTURES, such as "80;90", in place of every architecture that this nvcc knows of those in use.
Without a C++ compiler the package installs without the extension, and computes the same in Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("csrc")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"]


class BuildNative(build_ext):
    """Adds objects that nvcc compiles, where it is found."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link, with the CUDA part where it is wanted and can be had."""
        import pybind11

        ext.include_dirs.append(pybind11.get_include())
        wanted = os.environ.get("FASTREID_AL_CUDA", "auto")
        if wanted not in ("auto", "0", "1"):
            raise SystemExit(f"FASTREID_AL_CUDA: found {wanted!r}, wanted auto, 0 or 1")
        if wanted == "1":
            # Asked for by name, it is no longer optional.
            ext.optional = False
        nvcc = _nvcc()
        if wanted != "0" and nvcc is not None:
            try:
                self._add_cuda(ext, nvcc)
            except (subprocess.CalledProcessError, OSError) as error:
                if wanted == "1":
                    raise CompileError(f"nvcc failed: {error}") from error
                self.warn(f"nvcc failed, so the CUDA part is left out (FASTREID_AL_CUDA=0 does not try): {error}")
        elif wanted == "1":
            raise CompileError("FASTREID_AL_CUDA=1, but nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda")
        super().build_extension(ext)

    def _add_cuda(self, ext: Extension, nvcc: Path) -> None:
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
        supported = {int(number) for number in re.findall(r"compute_(\d+)\b", known)}
        chosen = os.environ.get("FASTREID_AL_CUDA_ARCHITECTURES")
        numbers = (
            [int(n) for n in re.findall(r"\d+", chosen)] if chosen else [a for a in ARCHITECTURES if a in supported]
        )
        targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
        # Later devices compile this at run time.
        targets.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in sorted(SOURCES.glob("*.cu")):
            out = folder / f"{source.stem}.o"
            flags = ["-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden", *targets]
            subprocess.run([nvcc, "-c", source, "-o", out, *flags], check=True)
            objects.append(str(out))
        if not objects:
            return
        ext.extra_objects += objects
        ext.define_macros += [
            ("FASTREID_AL_CUDA", "1"),
            ("FASTREID_AL_CUDA_ARCHITECTURES", '"' + " ".join(map(str, numbers)) + '"'),
        ]
        root = nvcc.resolve().parent.parent
        ext.library_dirs += [
            str(p) for p in (root / "lib64", root / "lib", root / "targets/x86_64-linux/lib") if p.is_dir()
        ]
        ext.libraries += ["cudart_static", "rt", "dl", "pthread"]


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
