"""How torchrun starts the ranks."""

from __future__ import annotations

import pytest
import torch

from fastreid_al.distributed import launch


def test_without_nccl_gpus_use_gloo_and_the_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    backend, why = launch._backend(torch.device("cuda"))
    assert backend == "gloo" and "no NCCL" in why
