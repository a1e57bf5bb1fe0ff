"""Every binding against NumPy, in the installed extension and with emulated CUDA kernels."""

from __future__ import annotations

from pathlib import Path

import build_native
import pytest

scripts = pytest.mark.parametrize("script", build_native.exercises(), ids=lambda path: path.stem)


@scripts
def test_installed_extension_agrees_with_numpy(installed, script: Path):
    build_native.exercise(script, installed)


@pytest.mark.slow
@scripts
@pytest.mark.parametrize("seed", ["1", "2"])
def test_emulated_kernels_agree_with_numpy(
    emulated, script: Path, seed: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FASTREID_AL_EMULATED_SEED", seed)
    build_native.exercise(script, emulated)
