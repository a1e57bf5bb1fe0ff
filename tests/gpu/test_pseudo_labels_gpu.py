"""The pseudo-label memory bank on CUDA against the CPU, and without synchronisation."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_al import native
from fastreid_al.memory import PseudoLabelMemoryBank, label_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
LAYOUTS = ("bits", "sparse")


def need_extension() -> None:
    if native.cuda_extension() is None:
        pytest.skip("the extension has no CUDA part")


@pytest.fixture(params=["extension", "pytorch"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """On CUDA with or without the extension; the CPU uses what is installed."""
    if request.param == "extension":
        need_extension()
        yield request.param
    else:
        with mock.patch.object(native, "cuda_extension", return_value=None):
            yield request.param


def random_batch(
    n: int, batch: int, most: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, most + 1, (batch,), generator=generator)
    total = int(sizes.sum())
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan]
    similarities = torch.tensor([0.1, 0.5, 0.50001, 0.9, *special])
    return (
        torch.randint(n, (batch,), generator=generator),
        F.pad(sizes.cumsum(0), (1, 0)),
        torch.randint(n, (total,), generator=generator),
        similarities[torch.randint(len(similarities), (total,), generator=generator)],
    )


def on_device(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(DEVICE) for x in batch)


def assert_same(bank: PseudoLabelMemoryBank, expected: PseudoLabelMemoryBank, rows: Tensor) -> None:
    for name, x in expected.state_dict().items():
        assert torch.equal(bank.state_dict()[name].cpu(), x)
    for got, other in zip(bank.lookup(rows.to(DEVICE)), expected.lookup(rows), strict=True):
        assert torch.equal(got.cpu(), other)
    assert torch.equal(bank.lookup_bits(rows.to(DEVICE)).cpu(), expected.lookup_bits(rows))
    assert bank.dropped == expected.dropped


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("by_similarity", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("n", "batch", "most", "capacity"),
    [(1, 5, 3, 2), (33, 64, 40, 7), (32_621, 64, 40, 64), (90_000, 700, 300, 20)],
)
def test_bank_equals_the_cpus(
    n: int, batch: int, most: int, capacity: int, layout: str, by_similarity: bool
) -> None:
    bank, expected = (
        PseudoLabelMemoryBank(n, layout, capacity, device) for device in (DEVICE, "cpu")
    )
    for seed in range(3):
        given = random_batch(n, batch, most, seed)[: 4 if by_similarity else 3]
        bank.update(*on_device(given))
        expected.update(*given)
    assert_same(bank, expected, torch.arange(0, n, max(1, n // 500)))
    assert_same(bank, expected, given[0])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_longer_than_shared_memory_equal_the_cpus(layout: str) -> None:
    bank, expected = (
        PseudoLabelMemoryBank(30_000, layout, 1_000, device) for device in (DEVICE, "cpu")
    )
    given = random_batch(30_000, 6, 40_000)
    bank.update(*on_device(given))
    expected.update(*given)
    assert_same(bank, expected, given[0])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batches_change_nothing(layout: str) -> None:
    bank, none = (
        PseudoLabelMemoryBank(40, layout, device=DEVICE),
        torch.zeros(0, dtype=torch.int64, device=DEVICE),
    )
    bank.update(none, torch.zeros(1, dtype=torch.int64, device=DEVICE), none)
    assert_same(bank, PseudoLabelMemoryBank(40, layout), torch.arange(40))
    assert bank.lookup(none)[0].tolist() == [0]
    assert bank.lookup_bits(none).shape == (0, 2)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_and_labels_outside_are_ignored(layout: str) -> None:
    bank = PseudoLabelMemoryBank(40, layout, 4, DEVICE)
    rows, indptr = (
        torch.tensor([40, 3, -1, 5], device=DEVICE),
        torch.tensor([0, 2, 6, 7, 8], device=DEVICE),
    )
    bank.update(rows, indptr, torch.tensor([1, 2, 40, 7, -1, 8, 3, 2**40], device=DEVICE))
    indptr, indices = bank.lookup(torch.tensor([3, 40, 5, -1, 4], device=DEVICE))
    assert indptr.tolist() == [0, 2, 2, 2, 2, 3]
    assert indices.tolist() == [7, 8, 4]
    assert not bank.lookup_bits(torch.tensor([40, -1], device=DEVICE)).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_indptr_changes_no_other_row(layout: str) -> None:
    need_extension()
    bank, rows = PseudoLabelMemoryBank(40, layout, 4, DEVICE), torch.arange(4, device=DEVICE)
    bank.update(
        rows,
        torch.tensor([-5, 2, 1, 2**40, 2], device=DEVICE),
        torch.tensor([10, 11, 12], device=DEVICE),
    )
    assert bank.lookup(torch.arange(4, 40, device=DEVICE))[1].tolist() == list(range(4, 40))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_updates_bit_rows_and_lists_with_room_do_not_synchronise(layout: str) -> None:
    need_extension()
    bank, given = (
        PseudoLabelMemoryBank(5_000, layout, 8, DEVICE),
        on_device(random_batch(5_000, 64, 40)),
    )
    bank.update(*given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bank.update(*given)
        bank.lookup(given[0], 10_000)
        bank.lookup_bits(given[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_can_be_captured_as_a_graph(layout: str) -> None:
    need_extension()
    bank, expected = (PseudoLabelMemoryBank(900, layout, 8, device) for device in (DEVICE, "cpu"))
    static = on_device(random_batch(900, 64, 40))
    # Kernels are loaded at their first launch, which a capture does not allow.
    other = PseudoLabelMemoryBank(900, layout, 8, DEVICE)
    other.update(*static)
    other.lookup(static[0], 10_000)
    other.lookup_bits(static[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bank.update(*static)
        indptr, indices = bank.lookup(static[0], 10_000)
        bits = bank.lookup_bits(static[0])
    given = random_batch(900, 64, 40)
    given[0].copy_(torch.arange(64))
    static[0].copy_(given[0])
    graph.replay()
    expected.update(*given)
    assert_same(bank, expected, torch.arange(900))
    assert torch.equal(bits.cpu(), expected.lookup_bits(given[0]))
    lists = expected.lookup(given[0], 10_000)
    assert torch.equal(indptr.cpu(), lists[0]) and torch.equal(indices.cpu(), lists[1])


@pytest.mark.usefixtures("form")
def test_operators_pass_opcheck() -> None:
    batch = on_device(random_batch(40, 12, 6))
    words = PseudoLabelMemoryBank(40, "bits", device=DEVICE).state_dict()["words"]
    ids, counts, dropped = PseudoLabelMemoryBank(40, "sparse", 3, DEVICE).state_dict().values()
    torch.library.opcheck(label_rows.update_bits, (words, *batch[:3]))
    torch.library.opcheck(label_rows.update_sparse, (ids, counts, dropped, *batch))
    for lookup in (label_rows.lookup_bits, label_rows.bit_rows_bits):
        torch.library.opcheck(lookup, (words, batch[0]))
    for lookup in (label_rows.lookup_sparse, label_rows.bit_rows_sparse):
        torch.library.opcheck(lookup, (ids, counts, batch[0]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bank_moves_between_devices(layout: str) -> None:
    bank, expected = (PseudoLabelMemoryBank(40, layout, 3) for _ in range(2))
    for device in (DEVICE, "cpu", DEVICE):
        assert bank.to(device) is bank
        given = random_batch(40, 12, 6)
        bank.update(*(x.to(device) for x in given))
        expected.update(*given)
        other = PseudoLabelMemoryBank(40, layout, 3)
        other.load_state_dict(bank.state_dict())
        assert other.device.type == "cpu"
        assert all(
            torch.equal(x, other.state_dict()[name]) for name, x in expected.state_dict().items()
        )
