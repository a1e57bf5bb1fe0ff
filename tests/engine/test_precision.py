"""The choice of precision, and what a CPU says of its units."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastreid_al.config import EngineConfig
from fastreid_al.distributed.world import World
from fastreid_al.engine import precision
from fastreid_al.engine.precision import _flags as flags_of_machine
from fastreid_al.engine.precision import choose_precision
from tests.support.process_pool import Pool

CPU = torch.device("cpu")


def has(patch: pytest.MonkeyPatch, *flags: str) -> None:
    patch.setattr(precision, "_flags", lambda: set(flags))
    patch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("flags", "training", "reason"),
    [
        (["avx2"], "float32", "no units for bfloat16"),
        (["avx512_bf16", "avx512_f"], "bf16", "units for bfloat16 (AVX512-BF16)"),
        (["amx_bf16", "avx512_bf16"], "bf16", "units for bfloat16 (AMX, AVX512-BF16)"),
        (["bf16", "neon"], "float32", "no units for bfloat16"),
    ],
)
def test_auto_follows_the_units_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], training: str, reason: str
) -> None:
    has(monkeypatch, *flags)
    chosen = choose_precision(EngineConfig(), CPU)
    assert chosen.training == training and chosen.features == "float32"
    assert chosen.reason == f"`engine.precision` auto: the CPU has {reason}"


def test_a_named_precision_holds_on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    low, full = EngineConfig(precision="bf16"), EngineConfig(precision="float32")
    has(monkeypatch, "avx512_bf16")
    assert choose_precision(full, CPU).describe() == (
        "training steps and features in float32 (`engine.precision` float32)"
    )
    assert choose_precision(low, CPU).describe() == (
        "training steps in bfloat16, features in float32 (`engine.precision` bf16)"
    )
    has(monkeypatch)
    assert choose_precision(low, CPU).describe() == (
        "training steps in bfloat16, features in float32 (`engine.precision` bf16; the CPU has no "
        "units for bfloat16, so that float32 is likely faster)"
    )


def test_a_pytorch_without_onednn_has_no_use_of_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, "avx512_bf16")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision(EngineConfig(), CPU).training == "float32"


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_has_one_precision_for_steps_and_features(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    chosen = choose_precision(EngineConfig(), torch.device("cuda"))
    assert chosen.training == chosen.features == ("bf16" if supported else "float32")


def broken() -> dict[str, object]:
    raise RuntimeError("no information about this processor")


@pytest.mark.parametrize("query", ["none", "broken"])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64"])
def test_without_an_answer_of_pytorch_the_file_of_linux_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, query: str, machine: str
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if query == "broken":
        monkeypatch.setattr(torch.cpu, "get_capabilities", broken, raising=False)
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    assert flags_of_machine() == set()
    (tmp_path / "cpuinfo").write_text("model name\t: X\nflags\t\t: fpu avx512_bf16 clwb\n")
    assert ("avx512_bf16" in flags_of_machine()) == (machine != "aarch64")


def test_pytorch_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"avx512_bf16": False, "amx_bf16": True, "l2_cache_size": 1, "cpu_name": "X"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: answer, raising=False)
    assert flags_of_machine() == {"amx_bf16"}


def chosen_by_rank(world: World, with_units: list[int]) -> str:
    """The precision of training steps, where only some ranks' CPUs have units."""
    with pytest.MonkeyPatch.context() as patch:
        has(patch, *(["avx512_bf16"] if world.rank in with_units else []))
        return choose_precision(EngineConfig(), CPU, world).training


def test_ranks_on_different_cpus_decide_alike(pool: Pool) -> None:
    assert pool.run(chosen_by_rank, 2, [0, 1]) == ["bf16", "bf16"]
    assert pool.run(chosen_by_rank, 2, [0]) == ["float32", "float32"]
    assert pool.run(chosen_by_rank, 2, [1]) == ["float32", "float32"]
