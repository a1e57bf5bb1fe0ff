"""Seconds by phase."""

from __future__ import annotations

import pytest
import torch

from fastreid_al.engine.clock import Clock


def test_a_clock_sums_phases_and_restarts_at_each_reading() -> None:
    clock = Clock(torch.device("cpu"))
    clock.add("a", 1.0)
    with clock("a"):
        pass
    with pytest.raises(KeyError), clock("b"):
        raise KeyError
    read = clock.read()
    assert 1.0 <= read["a"] < 2.0 and read["b"] >= 0
    assert clock.read() == {}
