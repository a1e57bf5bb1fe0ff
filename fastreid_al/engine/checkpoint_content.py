"""Whether a checkpoint holds what a run wrote, key by key.

The digest of a file finds damage; these checks find content that no run writes, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

_LARGEST_COUNT = 2**31
#: Numbers of a record that are printed together: with each, those that must be there as well.
_TOGETHER: Mapping[str, tuple[str, ...]] = {
    "clusters": ("clusters", "alone"),
    "pair_precision": ("pair_precision", "pair_recall"),
    "label_precision": ("label_precision", "label_recall", "labels_per_image"),
    "questions": (
        *("questions", "questions_total", "share_total", "answering_seconds_total"),
        *("contradictions", "answered_same", "answered_different", "answered_unsure"),
        "answered_not_comparable",
    ),
}
#: Scores of clusters that are printed, and may be None.
_CLUSTER_SCORES = tuple(
    before + name
    for name in ("pair_precision", "pair_recall", "class_purity", "class_completeness")
    for before in ("", "drafted_")
)
#: Scores of an evaluation; None where no query has a match.
_SCORES = ("mAP", "mINP", "rank1", "rank5", "rank10", "skipped_queries")


def is_count(value: object) -> bool:
    """Whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_COUNT


def is_tensor(value: object) -> bool:
    """Whether a value is a dense tensor in memory, as large as its shape says."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def is_tensors(value: object) -> bool:
    """Whether a value is a dictionary of tensors by name."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and is_tensor(tensor) for name, tensor in value.items()
    )


def _is_plain(value: object, depth: int = 4) -> bool:
    """Whether a value is plain: nested dictionaries and lists of numbers and texts."""
    if isinstance(value, Mapping):
        return depth > 0 and all(
            isinstance(name, str) and _is_plain(inner, depth - 1) for name, inner in value.items()
        )
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(inner, depth - 1) for inner in value)
    return value is None or isinstance(value, int | float | str)


def _is_plain_dict(value: object) -> bool:
    return isinstance(value, Mapping) and _is_plain(value)


def _is_numbers(value: object, depth: int = 3) -> bool:
    """Whether a value is a number, None, or a dictionary of such values, as a record holds."""
    if isinstance(value, Mapping):
        return depth > 0 and all(
            isinstance(name, str) and _is_numbers(inner, depth - 1) for name, inner in value.items()
        )
    return value is None or isinstance(value, int | float)


def _is_metrics(value: object) -> bool:
    """Whether a value holds metrics, and with each those that are printed beside it."""
    if not isinstance(value, Mapping) or not _is_numbers(value):
        return False
    for name, others in _TOGETHER.items():
        wanted = [value.get(other) for other in others] if name in value else []
        if not all(isinstance(number, int | float) for number in wanted):
            return False
    if any(isinstance(value.get(name), Mapping) for name in _CLUSTER_SCORES):
        return False
    return "mAP" not in value or all(name in value for name in _SCORES)


def _is_record(value: object) -> bool:
    return _is_metrics(value) and is_count(value.get("epoch"))  # type: ignore[attr-defined]


def _is_trained_record(value: object) -> bool:
    """Whether a value is the record of a trained epoch."""
    if not _is_record(value):
        return False
    assert isinstance(value, Mapping)
    parts = {"seconds": ("labels", "training"), "speed": ("images_per_second",), "": ("loss",)}
    for group, names in parts.items():
        numbers = value.get(group) if group else value
        if not isinstance(numbers, Mapping):
            return False
        if not all(isinstance(numbers.get(name), int | float) for name in names):
            return False
    return True


def _is_history(value: object) -> bool:
    if not isinstance(value, list) or not all(map(_is_record, value)):
        return False
    epochs = [record["epoch"] for record in value if record["epoch"] > 0]
    return epochs == list(range(1, len(epochs) + 1))


def _is_optimizer(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("state"), Mapping)
        and isinstance(value.get("param_groups"), list)
        and all(map(_is_plain_dict, value["param_groups"]))
    )


def _is_scheduler(value: object) -> bool:
    return _is_plain_dict(value) and is_count(value.get("last_epoch"))  # type: ignore[attr-defined]


def _is_random(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        is_tensor(value.get(name)) and value[name].dtype == torch.uint8
        for name in ("augment", "torch")
    )


def _is_fingerprint(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(content, str) for name, content in value.items()
    )


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_loss(value: object) -> bool:
    return is_tensor(value) and value.ndim == 0 and value.dtype == torch.float64  # type: ignore


def _is_precision(value: object) -> bool:
    return isinstance(value, str) and value in ("float32", "bf16")


#: What each key of a training run's checkpoint holds, and that in words.
_KEYS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "model": (is_tensors, "tensors by name"),
    "network": (_is_plain_dict, "settings by name"),
    "config": (_is_plain_dict, "settings by name"),
    "epoch": (is_count, "a whole number, 0 or more"),
    "step": (is_count, "a whole number, 0 or more"),
    "loss": (_is_loss, "a float64 tensor of shape ()"),
    "optimizer": (_is_optimizer, "the state and the groups of an optimizer"),
    "scheduler": (_is_scheduler, "the state of a schedule"),
    "method": (_is_state, "the state of a method"),
    "random": (_is_random, "the states of two random generators"),
    "data": (_is_fingerprint, "a text for each image"),
    "metrics": (_is_metrics, "numbers by name"),
    "history": (_is_history, "one record for each epoch"),
    "pending": (lambda value: value is None or _is_trained_record(value), "a record or None"),
}

#: Keys that checkpoints of earlier versions lack.
_LATER_KEYS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "precision": (_is_precision, "float32 or bf16"),
}


def check_content(state: Mapping[str, Any], path: Path) -> None:
    """Refuse the checkpoint of a training run whose content is not what a run writes.

    Args:
        state: Its content.
        path: The file, for the message.

    Raises:
        CheckpointError: In one line, with the key, what was got and what is expected.
    """
    for key, (fits, expected) in _KEYS.items():
        if key not in state:
            _refuse(path, f"{key} is missing")
        if not fits(state[key]):
            _refuse(path, f"{key}: got {_shown(state[key])}, expected {expected}")
    for key, (fits, expected) in _LATER_KEYS.items():
        if key in state and not fits(state[key]):
            _refuse(path, f"{key}: got {_shown(state[key])}, expected {expected}")
    _check_progress(state, path)


def _check_progress(state: Mapping[str, Any], path: Path) -> None:
    """Refuse counts of epochs that contradict each other."""
    epoch = state["epoch"]
    recorded = sum(record["epoch"] > 0 for record in state["history"])
    expected = recorded + (state["pending"] is not None)
    if epoch != expected:
        _refuse(path, f"epoch: got {epoch}, expected {expected}, the number of recorded epochs")
    if state["scheduler"]["last_epoch"] != epoch:
        last = state["scheduler"]["last_epoch"]
        _refuse(path, f"scheduler: got epoch {last}, expected {epoch}")
    if state["pending"] is not None and (state["step"] or state["pending"]["epoch"] != epoch):
        _refuse(path, f"pending: got a record of another epoch than {epoch}")
    begun = epoch or state["step"]
    if begun and _has_moments(state["optimizer"]) and not state["optimizer"]["state"]:
        _refuse(path, "optimizer: got no state, expected that of every trained parameter")


def _has_moments(optimizer: Mapping[str, Any]) -> bool:
    """Whether an optimizer keeps something of each parameter, as Adam and SGD with momentum do."""
    return any("betas" in group or group.get("momentum") for group in optimizer["param_groups"])


def _refuse(path: Path, problem: str) -> None:
    raise CheckpointError(
        f"{path} is not a checkpoint that a run wrote ({problem}); delete it to start from the "
        "beginning, or start another run from best.pt with `weights`"
    )


def _shown(value: object) -> str:
    if isinstance(value, int | float | str) or value is None:
        text = repr(value)
        return text if len(text) <= 40 else text[:37] + "..."
    return f"a {type(value).__name__}"
