"""The compiled extension: which builds load, which GPUs they cover, and advice on errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastreid_al import native

PACKAGE = Path(native.__file__).parent


def package_with(library: str, content: bytes, tmp_path: Path) -> Path:
    """A copy of the package with another library of the extension; the folder that holds it."""
    shutil.copytree(
        PACKAGE, tmp_path / "fastreid_al", ignore=shutil.ignore_patterns("_native*", "__pycache__")
    )
    (tmp_path / "fastreid_al" / library).write_bytes(content)
    return tmp_path


def load_in(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from fastreid_al.runs import doctor; doctor.load()"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_library_for_another_python_says_for_which(tmp_path: Path):
    folder = package_with("_native.cpython-27-x86_64-linux-gnu.so", b"", tmp_path)
    done = load_in(folder)
    assert done.returncode == 1
    assert "built for cpython-27-x86_64-linux-gnu" in done.stderr
    assert f"this Python is {sysconfig.get_config_var('SOABI')}" in done.stderr
    assert "pip install --force-reinstall --no-deps -e ." in done.stderr


def test_library_that_cannot_be_loaded_shows_the_error_of_the_loader(tmp_path: Path):
    done = load_in(
        package_with(f"_native{sysconfig.get_config_var('EXT_SUFFIX')}", b"not a library", tmp_path)
    )
    assert done.returncode == 1
    assert "_native" in done.stderr and "pip install --force-reinstall" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("libgomp.so.1: cannot open shared object file: No such file or directory", "libgomp1"),
        (
            "/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by _native.so)",
            "built on a newer system",
        ),
        ("/lib/libc.so.6: version `GLIBC_2.38' not found", "built on a newer system"),
        ("undefined symbol: omp_frobnicate", "builds it again"),
    ],
)
def test_errors_of_the_loader_come_with_advice(tmp_path: Path, error: str, advice: str):
    (tmp_path / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}").touch()
    said = native.explain(ImportError(error), tmp_path)
    assert said.startswith(error) and advice in said


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        ("80 86 90", (9, 0), True),
        ("80 86 90", (8, 0), True),
        ("80 86 90", (8, 7), True),
        ("80 86 90", (8, 9), True),
        ("86 90", (8, 0), False),
        ("80 86 90", (7, 5), False),
        ("80 90", (10, 0), True),
        ("80 90 100 120", (10, 3), True),
        ("80 90 100 120", (11, 0), False),
        ("80 90 100 120", (12, 1), True),
    ],
)
def test_built_architectures_cover_a_device_or_not(
    architectures: str, capability: tuple[int, int], covered: bool
):
    assert native.covers(architectures, capability) == covered


def test_cuda_part_that_does_not_run_on_the_device_is_not_used(monkeypatch: pytest.MonkeyPatch):
    module = SimpleNamespace(cuda=True, cuda_architectures="90")
    monkeypatch.setattr(native, "extension", lambda: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    native._runs_on.cache_clear()
    assert native.cuda_extension() is module
    native._runs_on.cache_clear()
    capability = (8, 0)
    with pytest.warns(RuntimeWarning, match="built for sm_90, not for device 0 \\(sm_80\\)"):
        assert native.cuda_extension() is None
    native._runs_on.cache_clear()
