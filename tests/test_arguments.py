"""Arguments that public functions refuse: the name of the argument, what was got, what is expected.

`tests/fuzz` tries every public function; here are calls that were wrong in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastreid_al import arguments
from fastreid_al.active import propose_merges, propose_splits, refine
from fastreid_al.annotators import Oracle
from fastreid_al.answers import Answer, Asker, Closure, Question, Verdict
from fastreid_al.config import BatchConfig, MemoryConfig
from fastreid_al.data import augment
from fastreid_al.data.samplers import IdentitySampler, PassSampler
from fastreid_al.memory import InstanceMemory
from fastreid_al.methods import Supervised
from tests.support.kernels import unit_rows

ROWS = unit_rows(8, 4)
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, -1])
NAN = ROWS.clone()
NAN[7, 2] = torch.nan
IMAGES = torch.zeros(2, 3, 8, 4)


def asker() -> Asker:
    return Asker(Oracle(LABELS.clamp(min=0)), budget=9)


def memory() -> InstanceMemory:
    made = InstanceMemory(0.5, 0.05)
    made.start(ROWS)
    made.begin_epoch(ROWS, LABELS)
    return made


def box(*values: int) -> torch.Tensor:
    return torch.tensor([values, (0, 0, 1, 1)])


def answer(*images: Any, verdict: Any = Verdict.SAME) -> Answer:
    return Answer(1, *images, verdict)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "splits of NaN": (lambda: propose_splits(NAN, LABELS), "features: row 7 is not finite"),
    "merges of NaN": (lambda: propose_merges(NAN, LABELS), "features: row 7 is not finite"),
    **{
        f"{strategy} of NaN": (
            lambda strategy=strategy: refine(NAN, LABELS, asker(), strategy),  # type: ignore[misc]
            "features: row 7 is not finite",
        )
        for strategy in ("ucal", "gain", "spal", "random")
    },
    "a strategy that is none": (
        lambda: refine(ROWS, LABELS, asker(), 3),  # type: ignore[arg-type]
        "strategy: got 3, expected a function or the name of a strategy",
    ),
    "answers of a larger set": (
        lambda: refine(ROWS[:4], LABELS[:4], answered(4, 7)),
        "asker: got an answer about image 7, expected images 0 to 3",
    ),
    "a negative row of a memory": (
        lambda: memory().loss(ROWS[:2], torch.tensor([0, -1])),
        "rows: got -1 at index 1, expected values in [0, 8)",
    ),
    "a negative row of an update": (
        lambda: memory().update(ROWS[:2], torch.tensor([0, -1])),
        "rows: got -1 at index 1, expected values in [0, 8)",
    ),
    "a class too high": (
        lambda: memory().begin_epoch(ROWS, LABELS + 8),
        "classes: got 8 at index 0, expected values in [-1, 8)",
    ),
    "a momentum above 1": (
        lambda: InstanceMemory(1.5, 0.05),
        "momentum: got 1.5, expected a number in [0, 1]",
    ),
    "a temperature of inf": (
        lambda: InstanceMemory(0.5, float("inf")),
        "temperature: got inf, expected a finite number",
    ),
    "a verdict as text": (
        lambda: Closure().add(answer(0, 1, verdict="same")),
        "answer: got 'same', expected an Answer with a Verdict",
    ),
    "a question about one image": (
        lambda: Question.about_images(3, 3, "merge", 0.5),
        "images: got image 3 twice, expected two different images",
    ),
    "a question about a negative row": (
        lambda: Oracle(LABELS.clamp(min=0)).answer(Question.about_images(0, 8, "merge", 0.5)),
        "question.images: got 8, expected 0 to 7",
    ),
    "an unknown root": (
        lambda: Closure().cannot_links(5),
        "root: got 5, expected the root of a component",
    ),
    "a batch of no size": (lambda: PassSampler(9, 0, 1), "size: got 0, expected 1 to 9"),
    "classes of floats": (
        lambda: IdentitySampler(LABELS.float(), LABELS, 4, 2, 1),
        "classes: got dtype torch.float32, expected integers",
    ),
    "a batch that is no setting": (
        lambda: Supervised(LABELS, LABELS, 4, MemoryConfig(), 0),  # type: ignore[arg-type]
        "batch: got 4, expected a BatchConfig",
    ),
    "an identity less than cameras": (
        lambda: Supervised(LABELS[:7], LABELS, BatchConfig(), MemoryConfig(), 0),
        "identities: got shape (7,), expected (8,), one for each image",
    ),
    "a box outside": (
        lambda: augment.resized_crop(IMAGES, box(0, 0, 9, 4)),
        "boxes: got [0, 0, 9, 4] at index 0, expected top, left, height, width of a box inside 8",
    ),
    "an empty box": (
        lambda: augment.resized_crop(IMAGES, box(0, 0, 0, 4)),
        "boxes: got [0, 0, 0, 4] at index 0",
    ),
    "a shift too far": (
        lambda: augment.pad_crop(IMAGES, torch.tensor([0, 5]), torch.tensor([0, 0]), 2),
        "top: got 5 at index 1, expected values in [0, 5)",
    ),
    "one image": (
        lambda: augment.normalize(IMAGES[0]),
        "images: got shape (3, 8, 4), expected (B, 3, H, W)",
    ),
}


def answered(*images: int) -> Asker:
    made = asker()
    made.ledger.append(
        *images,
        Verdict.SAME,
        annotator="x",
        asked_at=0,
        answered_at=0,
        epoch=0,
        reason="merge",
        score=0,
        similarity=0,
    )
    return made


@pytest.mark.parametrize("what", REFUSED)
def test_what_was_wrong_in_silence_is_refused(what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "labels",
    [
        *(LABELS.numpy(), LABELS.int(), LABELS.tolist(), tuple(LABELS.tolist())),
        *(LABELS.numpy().astype(">i2"), np.flip(LABELS.flip(0).numpy())),
    ],
    ids=["array", "int32", "list", "tuple", "other byte order", "reversed"],
)
def test_integers_of_any_kind_are_labels(labels: Any) -> None:
    assert torch.equal(arguments.as_labels("labels", labels, 8), LABELS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0, 2**63], "got an integer beyond 64 bits"),
        ([0, None], "got None in a list, expected integers"),
        ([[0, 1]], "got a list in a list, expected integers"),
        ([True], "got True in a list, expected integers"),
        (torch.zeros(2, device="meta"), "got device meta, expected a tensor with values"),
        (np.array(["2020-01-01"], "M8[D]"), "got an array of dtype datetime64[D]"),
    ],
)
def test_what_is_no_label_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^labels: {re.escape(message)}"):
        arguments.as_labels("labels", value)
