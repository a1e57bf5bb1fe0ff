"""The doctor names what is wrong and what to do; its status says whether the package works."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastreid_al import doctor, native
from fastreid_al.engine import precision
from fastreid_al.runs import doctor as diagnosis
from fastreid_al.runs.doctor import Line

FACTS = {
    "path": "x.so",
    "compiler": "12",
    "openmp": True,
    "cuda": True,
    "cuda_architectures": "80 90",
}


def finished(
    returncode: int = 0, stdout: str = "", stderr: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], returncode, stdout, stderr)


def diagnosed(
    monkeypatch: pytest.MonkeyPatch, load: subprocess.CompletedProcess[str]
) -> dict[str, Line]:
    monkeypatch.delenv("FASTREID_AL_NATIVE", raising=False)
    monkeypatch.setattr(
        diagnosis, "_in_python", lambda function, *_: load if function == "load" else finished()
    )
    return {line.topic: line for line in diagnosis.diagnose()}


def test_small_problem_comes_out_right_on_this_machine():
    diagnosis.self_test("cpu")


def test_every_part_of_the_installation_is_named(monkeypatch: pytest.MonkeyPatch):
    got = diagnosed(monkeypatch, finished(stdout="a warning\n" + json.dumps(FACTS) + "\n"))
    topics = {
        "python",
        "fastreid_al",
        "torch",
        "numpy",
        "triton",
        "scikit-learn",
        "cuml",
        "cuvs",
        "faiss",
        "pybind11",
    }
    assert (
        topics | {"extension", "devices", "self-test", "ranks", "threads", "bfloat16"} <= got.keys()
    )
    assert got["torch"].text.startswith(torch.__version__.split("+")[0])
    assert "CUDA for sm_80, sm_90" in got["extension"].text and "OpenMP" in got["extension"].text
    assert not any(line.broken for line in got.values())


def test_extension_that_was_never_built_is_not_a_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "libraries", list)
    line = diagnosed(monkeypatch, finished(1, stderr="it was not built"))["extension"]
    assert line == Line("extension", "it was not built")


def test_library_that_is_there_and_does_not_load_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "libraries", lambda: [Path("_native.so")])
    assert diagnosed(monkeypatch, finished(1, stderr="no good"))["extension"] == Line(
        "extension", "no good", True
    )
    crashed = diagnosed(monkeypatch, finished(-4))["extension"]
    assert crashed.broken and "killed by signal 4" in crashed.text


def test_extension_that_is_left_out_on_purpose_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTREID_AL_NATIVE", "0")
    monkeypatch.setattr(diagnosis, "_in_python", lambda *_: finished())
    line = next(line for line in diagnosis.diagnose() if line.topic == "extension")
    assert "FASTREID_AL_NATIVE=0" in line.text and not line.broken


def test_self_test_that_fails_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTREID_AL_NATIVE", "0")
    monkeypatch.setattr(
        diagnosis,
        "_in_python",
        lambda *_: finished(1, stderr="Traceback\nRuntimeError: no kernel image"),
    )
    line = next(line for line in diagnosis.diagnose() if line.topic == "self-test")
    assert line.broken and line.text == "cpu: failed: RuntimeError: no kernel image"


def test_advice_for_a_device_that_the_extension_does_not_cover(
    monkeypatch: pytest.MonkeyPatch,
):
    properties = SimpleNamespace(name="Turing", major=7, minor=5, total_memory=2**34)
    fake = SimpleNamespace(cuda=SimpleNamespace(get_device_properties=lambda _: properties))
    (line,) = diagnosis._devices(fake, 1, FACTS)
    assert (
        line.text.startswith("cuda:0: Turing, sm_75, 16 GiB")
        and "FASTREID_AL_CUDA_ARCHITECTURES=75" in line.text
    )
    (line,) = diagnosis._devices(fake, 1, {**FACTS, "cuda": False, "cuda_architectures": ""})
    assert "no CUDA part" in line.text


@pytest.mark.parametrize("broken", [False, True])
def test_status_says_whether_something_must_be_fixed(
    broken: bool, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(
        diagnosis, "diagnose", lambda: iter([Line("python", "3"), Line("torch", "missing", broken)])
    )
    if broken:
        with pytest.raises(SystemExit) as stopped:
            doctor.main([])
        assert stopped.value.code == 1
        assert "! torch" in capsys.readouterr().out
    else:
        doctor.main([])
        assert "everything essential works" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "broken"),
    [("2.8.0", False), ("2.10.1+cu128", False), ("2.7.1", True), (None, True)],
)
def test_requirement_that_is_old_or_missing_is_a_fault(
    version: str | None, broken: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        diagnosis.metadata, "requires", lambda _: ["torch>=2.8", 'pytest>=8; extra == "test"']
    )
    monkeypatch.setattr(diagnosis.metadata, "version", lambda _: "1")
    monkeypatch.setattr(diagnosis, "_version", lambda _: version)
    own, torch_line = diagnosis._requirements()
    assert own.topic == "fastreid_al" and torch_line.broken == broken
    assert ("pip install 'torch>=2.8'" in torch_line.text) == broken


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (("AVX-512",), "AVX-512 on this CPU: training steps are in bfloat16"),
        ((), "no units for it on this CPU: training steps are in float32"),
    ],
)
def test_the_precision_of_training_is_named(
    monkeypatch: pytest.MonkeyPatch, units: tuple[str, ...], text: str
) -> None:
    monkeypatch.setattr(precision, "bf16_units", lambda: units)
    assert diagnosis._bf16() == Line("bfloat16", text)
