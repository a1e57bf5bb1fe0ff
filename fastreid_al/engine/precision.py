"""In which precision a network computes: that of training steps, and that of features."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ..config import EngineConfig
from ..distributed.world import SINGLE_PROCESS, World

Kind = Literal["float32", "bf16"]

#: Units that multiply bfloat16 at twice the rate of float32 or more, by their flag: that of
#: /proc/cpuinfo and of `torch.cpu.get_capabilities`.
_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
_CPUINFO = Path("/proc/cpuinfo")
_WORDS: dict[Kind, str] = {"float32": "float32", "bf16": "bfloat16"}


class Precision(NamedTuple):
    """In which precision a network computes. Losses, memories and weights are always float32.

    Args:
        training: Of the products in training steps.
        features: Of the products when features are extracted.
        reason: Why, as the end of a line.
    """

    training: Kind
    features: Kind
    reason: str

    def describe(self) -> str:
        """Return a line that says what is used, and why."""
        training = _WORDS[self.training]
        if self.training == self.features:
            return f"training steps and features in {training} ({self.reason})"
        return f"training steps in {training}, features in {_WORDS[self.features]} ({self.reason})"


def choose_precision(
    settings: EngineConfig, device: torch.device, world: World = SINGLE_PROCESS
) -> Precision:
    """Return the precision for a setting and a device; all processes of a run get the same one.

    It depends on what the hardware has, and on no measurement, so that a resumed run decides as the
    run did.

    Args:
        settings: The setting `engine.precision`.
        device: Where the network computes.
        world: The processes of the run. All of them call it.
    """
    on_cpu = device.type == "cpu"
    # Ranks that were started with other settings are told so later: all of them ask here.
    own = _units_of(device)
    by_rank = world.all_gather_objects(own)
    units = by_rank[0] if all(by_rank) else ()
    training: Kind
    if settings.precision != "auto":
        training = settings.precision
        reason = f"`engine.precision` {training}"
        if on_cpu and training == "bf16" and not own:
            reason += "; the CPU has no units for bfloat16, so that float32 is likely faster"
    elif on_cpu:
        training = "bf16" if units else "float32"
        has = f"units for bfloat16 ({', '.join(units)})" if units else "no units for bfloat16"
        reason = f"`engine.precision` auto: the CPU has {has}"
    else:
        training = "bf16" if units else "float32"
        reason = "`engine.precision` auto: a GPU" + ("" if units else " without bfloat16")
    return Precision(training, "float32" if on_cpu else training, reason)


def bf16_units() -> tuple[str, ...]:
    """Return the names of this CPU's units with which training in bfloat16 is faster.

    On Arm there are none: steps were not measured there, and oneDNN had no fast convolution for
    bfloat16 backward (its list of 2023).
    """
    if not torch.backends.mkldnn.is_available():
        return ()
    flags = _flags()
    return tuple(name for flag, name in _UNITS.items() if flag in flags)


def _flags() -> set[str]:
    """Flags of this CPU; none where neither PyTorch nor the operating system tells them."""
    # PyTorch 2.8 has no such function.
    query = getattr(torch.cpu, "get_capabilities", None)
    if query is not None:
        try:
            return {name for name, value in query().items() if value is True}
        except (RuntimeError, TypeError, AttributeError):
            pass
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return set()
    try:
        return set(_CPUINFO.read_text().split())
    except OSError:
        return set()


def _units_of(device: torch.device) -> tuple[str, ...]:
    """Names of what a device has for bfloat16."""
    if device.type == "cpu":
        return bf16_units()
    return ("GPU",) if torch.cuda.is_bf16_supported() else ()
