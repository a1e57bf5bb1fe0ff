"""The build: its settings, and missing or failing tools."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_COMPILER = {"PATH": "/nowhere", "CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
setuptools = pytest.importorskip("setuptools", minversion="77")
pytest.importorskip("pybind11")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the sources, with one CUDA source."""
    folder = tmp_path / "source"
    for name in ("csrc", "fastreid_al", "kernels"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in (
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "MANIFEST.in",
        "CHANGELOG.md",
    ):
        shutil.copy(ROOT / name, folder)
    for path in (folder / "csrc").glob("*.cu"):
        path.unlink()
    (folder / "csrc" / "none_cuda.cu").write_text("")
    return folder


def fake_cuda(folder: Path, compiles: str) -> str:
    """A CUDA_HOME whose nvcc knows two architectures and compiles by a shell command."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    answer = '[ "$1" = --list-gpu-arch ] && echo compute_80 compute_90 && exit 0'
    nvcc.write_text(f"#!/bin/sh\n{answer}\n{compiles}\n")
    nvcc.chmod(0o755)
    return str(folder)


def build(source: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"FASTREID_AL_CUDA": "yes"}, "FASTREID_AL_CUDA: got 'yes', expected auto, 0 or 1"),
        (
            {"FASTREID_AL_CUDA_ARCHITECTURES": "80;70"},
            "got '80;70', expected numbers of [80, 90] with ';' between",
        ),
        (
            {"FASTREID_AL_CUDA_ARCHITECTURES": "native"},
            "got 'native', expected numbers of [80, 90]",
        ),
        ({"FASTREID_AL_CUDA": "1"}, "the CUDA part failed, and FASTREID_AL_CUDA=1"),
    ],
)
def test_settings_that_cannot_be_met_stop_the_build(
    source: Path, settings: dict[str, str], message: str
):
    home = fake_cuda(source.parent / "cuda", "exit 3")
    done = build(source, "bdist_wheel", PATH="/usr/bin:/bin", CUDA_HOME=home, **settings)
    assert done.returncode != 0
    assert message in done.stderr


def test_without_a_compiler_the_wheel_has_no_extension_and_the_build_says_so(source: Path):
    done = build(source, "bdist_wheel", FASTREID_AL_CUDA="0", **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert "fastreid_al._native was not built" in done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastreid_al/native.py" in names and not any(name.endswith(".so") for name in names)


def test_extension_that_is_built_by_name_must_build(source: Path):
    done = build(source, "build_ext", "--inplace", FASTREID_AL_CUDA="0", **NO_COMPILER)
    assert done.returncode != 0


def test_architectures_are_compiled_in_order_with_ptx_for_later_ones(source: Path):
    log = source.parent / "log"
    home = fake_cuda(source.parent / "cuda", f'echo "$@" >> {log}; exit 3')
    settings = {"FASTREID_AL_CUDA": "1", "FASTREID_AL_CUDA_ARCHITECTURES": "9.0, 80"}
    build(source, "build_ext", PATH="/usr/bin:/bin", CUDA_HOME=home, **settings)
    targets = [word for word in log.read_text().split() if word.startswith("-gencode")]
    assert targets == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
