"""Batches have the rows that were asked for, are prefetched, and come from device or host."""

from __future__ import annotations

import pytest
import torch

from fastreid_al.data import loader
from fastreid_al.data.loader import BatchLoader, pick_place, prefetch
from fastreid_al.data.pixels import PixelStore
from fastreid_al.errors import DataError

GIB = 2**30


def store_of(n: int = 12) -> PixelStore:
    """Of which every second slot was left out."""
    pixels = torch.randint(256, (2 * n, 3, 4, 2), dtype=torch.uint8)
    return PixelStore(pixels, torch.arange(0, 2 * n, 2), [""] * n, [])


@pytest.mark.parametrize("place", ["auto", "device", "host"])
def test_on_a_cpu_the_loader_reads_the_store(place: str) -> None:
    store = store_of()
    images = BatchLoader(store, torch.device("cpu"), place)
    rows = torch.tensor([11, 0, 5, 5])
    assert len(images) == 12 and torch.equal(images.read(rows), store.pixels[2 * rows])
    later, sooner = images.start(rows[:1]), images.start(rows[1:])
    assert torch.equal(sooner(), store.read(rows[1:])) and torch.equal(
        later(), store.read(rows[:1])
    )
    assert images.read(rows[:0]).shape == (0, 3, 4, 2)


def test_a_batch_is_started_before_the_previous_one_is_finished() -> None:
    events: list[str] = []

    def start(batch: int) -> str:
        events.append(f"start {batch}")
        return f"pixels {batch}"

    for batch, images in prefetch(range(3), start):
        events.append(f"work {batch} {images}")
    assert events == [
        "start 0",
        "start 1",
        "work 0 pixels 0",
        "start 2",
        "work 1 pixels 1",
        "work 2 pixels 2",
    ]
    assert list(prefetch([], start)) == []


def test_auto_uses_at_most_half_of_the_free_memory_of_the_device() -> None:
    said: list[str] = []
    assert pick_place(10 * GIB, 20 * GIB, "auto", said.append) == "device" and said == []
    assert pick_place(10 * GIB + 1, 20 * GIB, "auto", said.append) == "host"
    assert len(said) == 1 and "10.0 GiB" in said[0] and "20.0 free GiB" in said[0]
    assert pick_place(0, 0, "host") == "host"


def test_a_device_without_enough_memory_is_refused_with_a_hint() -> None:
    assert pick_place(18 * GIB, 20 * GIB, "device") == "device"
    with pytest.raises(
        DataError, match=r"take 19.5 GiB, 1.5 GiB more .*20.0 GiB free.*choose `image.place` host"
    ) as error:
        pick_place(39 * GIB // 2, 20 * GIB, "device")
    assert "\n" not in str(error.value)


def test_constants_are_made_once_and_can_be_used_in_training() -> None:
    cpu = torch.device("cpu")
    with torch.inference_mode():
        first = loader.device_constant((1.5, 2.5), cpu)
    assert loader.device_constant((1.5, 2.5), cpu) is first and not first.is_inference()
    weight = torch.ones(2, requires_grad=True)
    (weight * first).sum().backward()
    assert torch.equal(weight.grad, first)
