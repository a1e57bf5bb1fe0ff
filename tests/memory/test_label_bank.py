"""The pseudo-label memory bank against a dictionary of sets, in both layouts, by the extension and
by PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reid_kernels import multilabel_bank_loss
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fastreid_al.memory import PseudoLabelMemoryBank
from tests.support.label_batches import FORMS, csr, form_of, random_batch

LAYOUTS = ("bits", "sparse")

Rows = list[tuple[int, list[tuple[int, float]]]]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with form_of(request.param):
        yield request.param


def batch_of(rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    indptr, indices = csr([[label for label, _ in labels] for _, labels in rows])
    similarities = torch.tensor([s for _, labels in rows for _, s in labels], dtype=torch.float32)
    return torch.tensor([row for row, _ in rows], dtype=torch.int64), indptr, indices, similarities


class Model:
    """What the bank should hold."""

    def __init__(self, n: int, capacity: float) -> None:
        self.labels = {i: {i} for i in range(n)}
        self.capacity, self.dropped = capacity, 0

    def update(self, rows: Rows, by_similarity: bool) -> None:
        for row, labels in dict(rows).items():
            best: dict[int, tuple[float, int]] = {}
            for place, (label, similarity) in enumerate(labels):
                likeness = -math.inf if math.isnan(similarity) else similarity
                key = (-likeness if by_similarity else 0.0, place)
                best[label] = min(best.get(label, key), key)
            kept = sorted(best, key=lambda label: best[label])
            room = len(kept) if math.isinf(self.capacity) else int(self.capacity)
            self.labels[row] = set(kept[:room])
            self.dropped += len(kept[room:])

    def lookup(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return csr([sorted(self.labels[row]) for row in rows])


def assert_holds(bank: PseudoLabelMemoryBank, model: Model) -> None:
    rows = [*range(len(bank)), 0, len(bank) - 1, 0]
    indptr, indices = model.lookup(rows)
    got = bank.lookup(torch.tensor(rows))
    assert torch.equal(got[0], indptr)
    assert torch.equal(got[1], indices)
    bits = bank.lookup_bits(torch.tensor(rows))
    assert bits.shape == (len(rows), (len(bank) + 31) // 32) and bits.dtype == torch.int32
    place, label = ((bits[:, :, None] >> torch.arange(32)) & 1).flatten(1).nonzero(as_tuple=True)
    assert torch.equal(place, torch.arange(len(rows)).repeat_interleave(indptr.diff()))
    assert torch.equal(label, indices)
    assert bank.dropped == model.dropped


def same(a: PseudoLabelMemoryBank, b: PseudoLabelMemoryBank) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, list[Rows]]:
    n = draw(st.sampled_from([1, 2, 5, 31, 32, 33, 64, 70]))
    images = st.integers(0, n - 1)
    likeness = st.sampled_from([0.5, 0.6, 0.9, 0.0, -0.0, -1.0, math.inf, -math.inf, math.nan])
    labels = st.lists(st.tuples(images, likeness), max_size=12)
    return n, draw(st.lists(st.lists(st.tuples(images, labels), max_size=8), max_size=3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", FORMS)
@settings(max_examples=150, deadline=None)
@given(problem=problems(), capacity=st.sampled_from([1, 2, 5, 64]), by_similarity=st.booleans())
def test_bank_is_a_dictionary_of_sets(
    layout: str, which: str, problem: tuple[int, list[Rows]], capacity: int, by_similarity: bool
) -> None:
    n, batches = problem
    with form_of(which):
        bank = PseudoLabelMemoryBank(n, layout, capacity)
        model = Model(n, math.inf if layout == "bits" else capacity)
        assert_holds(bank, model)
        for rows in batches:
            *batch, similarities = batch_of(rows)
            bank.update(*batch, similarities=similarities if by_similarity else None)
            model.update(rows, by_similarity)
            assert_holds(bank, model)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_with_room_are_followed_by_minus_one(layout: str) -> None:
    bank = PseudoLabelMemoryBank(40, layout, 3)
    bank.update(*random_batch(40, 12, 6)[:3])
    rows = torch.tensor([3, 7, 39, 3])
    indptr, indices = bank.lookup(rows)
    for most in (len(indices), len(indices) + 5):
        room = bank.lookup(rows, most)
        assert torch.equal(room[0], indptr)
        assert torch.equal(room[1], F.pad(indices, (0, most - len(indices)), value=-1))
    with pytest.raises(ValueError, match=f"most: got {len(indices) - 1}, expected at least"):
        bank.lookup(rows, len(indices) - 1)
    with pytest.raises(ValueError, match="most: got -1"):
        bank.lookup(rows, -1)
    assert bank.lookup(rows[:0], 2)[1].tolist() == [-1, -1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lookup_with_room_has_a_shape_that_does_not_depend_on_the_labels(layout: str) -> None:
    bank = PseudoLabelMemoryBank(40, layout, 3)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda rows: bank.lookup(rows, 12)[1].view(4, 3), backend=counter, fullgraph=True
    )
    for seed in range(2):
        bank.update(*random_batch(40, 12, 2, seed)[:3])
        rows = torch.tensor([0, 1, 2, seed])
        assert torch.equal(compiled(rows).flatten(), bank.lookup(rows, 12)[1])
    assert counter.frame_count == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_extension_and_pytorch_leave_the_same_bank(layout: str) -> None:
    banks = [PseudoLabelMemoryBank(3_000, layout, 20) for _ in FORMS]
    for which, bank in zip(FORMS, banks, strict=True):
        with form_of(which):
            for seed in range(4):
                bank.update(*random_batch(3_000, 400, 60, seed))
            # More labels than a block sorts in shared memory.
            bank.update(*random_batch(3_000, 3, 9_000, seed=9))
    assert same(*banks)
    assert banks[0].dropped == banks[1].dropped
    assert (banks[0].dropped > 0) == (layout == "sparse")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_number_of_threads_changes_nothing(layout: str) -> None:
    before, banks, answers = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            bank = PseudoLabelMemoryBank(20_000, layout, 30)
            for seed in range(2):
                bank.update(*random_batch(20_000, 3_000, 60, seed))
            banks.append(bank)
            answers.append(
                (*bank.lookup(torch.arange(20_000)), bank.lookup_bits(torch.arange(0, 20_000, 7)))
            )
    finally:
        torch.set_num_threads(before)
    for bank, answer in zip(banks[1:], answers[1:], strict=True):
        assert same(bank, banks[0])
        assert bank.dropped == banks[0].dropped
        assert all(torch.equal(a, b) for a, b in zip(answer, answers[0], strict=True))


@pytest.mark.usefixtures("form")
def test_overflow_keeps_the_first_without_similarities_and_the_most_similar_with_them() -> None:
    bank = PseudoLabelMemoryBank(10, "sparse", capacity=2)
    labels = csr([[7, 3, 7, 9, 1]])
    bank.update(torch.tensor([4]), *labels)
    assert bank.lookup(torch.tensor([4]))[1].tolist() == [3, 7]
    assert bank.dropped == 2
    bank.update(torch.tensor([4]), *labels, torch.tensor([0.1, 0.5, 0.8, 0.5, 0.5]))
    assert bank.lookup(torch.tensor([4]))[1].tolist() == [3, 7]
    bank.update(torch.tensor([4]), *labels, torch.tensor([0.1, 0.5, 0.2, 0.6, 0.6]))
    assert bank.lookup(torch.tensor([4]))[1].tolist() == [1, 9]
    assert bank.dropped == 6


@pytest.mark.usefixtures("form")
def test_labels_that_a_later_row_of_the_batch_replaces_are_not_counted_as_dropped() -> None:
    bank = PseudoLabelMemoryBank(10, "sparse", capacity=1)
    bank.update(torch.tensor([4, 4]), *csr([[1, 2, 3], [5]]))
    assert bank.lookup(torch.tensor([4]))[1].tolist() == [5]
    assert bank.dropped == 0


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_may_be_strided_and_require_a_gradient(layout: str) -> None:
    banks = [PseudoLabelMemoryBank(40, layout, 3) for _ in range(2)]
    batch = random_batch(40, 12, 6)
    banks[0].update(*batch)
    rows, indptr, indices, similarities = (torch.stack([x, x], 1)[:, 0] for x in batch)
    banks[1].update(rows, indptr, indices, similarities.requires_grad_())
    assert same(*banks)
    for a, b in zip(banks[0].lookup(batch[0]), banks[1].lookup(rows), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(banks[0].lookup_bits(batch[0]), banks[1].lookup_bits(rows))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch_changes_nothing_and_finds_nothing(layout: str) -> None:
    bank, none = PseudoLabelMemoryBank(40, layout), torch.zeros(0, dtype=torch.int64)
    bank.update(none, torch.zeros(1, dtype=torch.int64), none, none.float())
    assert same(bank, PseudoLabelMemoryBank(40, layout))
    indptr, indices = bank.lookup(none)
    assert indptr.tolist() == [0] and indices.shape == (0,) and indices.dtype == torch.int64
    assert bank.lookup_bits(none).shape == (0, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_takes_both_answers(layout: str) -> None:
    bank = PseudoLabelMemoryBank(70, layout)
    bank.update(*random_batch(70, 30, 8))
    memory = F.normalize(torch.randn(70, 6))
    features, rows = F.normalize(torch.randn(20, 6)), torch.arange(20)
    by_bits = multilabel_bank_loss(features, memory, bank.lookup_bits(rows), hard_ratio=0.1)
    torch.testing.assert_close(
        by_bits, multilabel_bank_loss(features, memory, bank.lookup(rows), hard_ratio=0.1)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_restores_the_bank(layout: str) -> None:
    bank, other = (PseudoLabelMemoryBank(50, layout, 4) for _ in range(2))
    bank.update(*random_batch(50, 30, 12))
    other.load_state_dict({name: x.clone() for name, x in bank.state_dict().items()})
    assert same(bank, other)
    other.update(*random_batch(50, 30, 12, seed=1))
    assert not same(bank, other)
    bank.update(*random_batch(50, 30, 12, seed=1))
    assert same(bank, other)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            PseudoLabelMemoryBank(50, "bits").state_dict(),
            "state: got bits, expected that of the layout sparse",
        ),
        ({}, "state: got nothing, expected that of the layout sparse"),
        (
            PseudoLabelMemoryBank(49, "sparse", 4).state_dict(),
            r"state\['ids'\]: got \(49, 4\) of torch.int32",
        ),
        (
            PseudoLabelMemoryBank(50, "sparse", 5).state_dict(),
            r"expected \(50, 4\) of torch.int32, for n = 50 and capacity 4",
        ),
    ],
)
def test_another_banks_state_is_refused(state: dict[str, Tensor], message: str) -> None:
    bank = PseudoLabelMemoryBank(50, "sparse", 4)
    with pytest.raises(ValueError, match=message):
        bank.load_state_dict(state)
    assert same(bank, PseudoLabelMemoryBank(50, "sparse", 4))


def test_damaged_states_are_refused() -> None:
    for name, value in (("counts", 5), ("counts", -1), ("ids", 50), ("ids", -2)):
        state = PseudoLabelMemoryBank(50, "sparse", 4).state_dict()
        state[name].view(-1)[7] = value
        with pytest.raises(ValueError, match=rf"state\['{name}'\]: got values"):
            PseudoLabelMemoryBank(50, "sparse", 4).load_state_dict(state)
    state = PseudoLabelMemoryBank(50, "bits").state_dict()
    state["words"][3, 1] = -1
    with pytest.raises(ValueError, match="labels behind the last image, expected none from 50 on"):
        PseudoLabelMemoryBank(50, "bits").load_state_dict(state)


def test_auto_takes_bits_for_few_images_and_lists_for_many() -> None:
    small, large = (
        PseudoLabelMemoryBank(32),
        PseudoLabelMemoryBank(200_001, capacity=2, device="meta"),
    )
    assert (small.layout, small.nbytes, len(small)) == ("bits", 32 * 4, 32)
    assert (large.layout, large.nbytes, len(large)) == ("sparse", 200_001 * 3 * 4 + 8, 200_001)
    assert PseudoLabelMemoryBank(32_621, device="meta").nbytes == 32_621 * 1_020 * 4
    assert PseudoLabelMemoryBank(200_000, device="meta").layout == "bits"


def test_ids_grow_to_eight_bytes_where_four_are_too_few() -> None:
    kinds = [
        PseudoLabelMemoryBank(n, device="meta").state_dict()["ids"].dtype
        for n in (2**31 - 1, 2**31)
    ]
    assert kinds == [torch.int32, torch.int64]


def test_five_million_images_take_lists_of_1_3_gigabytes() -> None:
    n = 5_000_000
    bank = PseudoLabelMemoryBank(n)
    assert bank.nbytes == n * (64 * 4 + 4) + 8
    rows, indptr, indices, similarities = random_batch(n, 64, 40)
    bank.update(rows, indptr, indices, similarities)
    model = Model(0, 64)
    lists = [some.tolist() for some in indices.split(indptr.diff().tolist())]
    model.update(
        [(row, [(x, 0.0) for x in some]) for row, some in zip(rows.tolist(), lists, strict=True)],
        False,
    )
    model.labels[n - 1] = model.labels.get(n - 1, {n - 1})
    asked = [*rows.tolist(), n - 1]
    for got, expected in zip(bank.lookup(torch.tensor(asked)), model.lookup(asked), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("n", [10_000_000, 2**40])
def test_bits_that_do_not_fit_point_to_lists(n: int, device: str) -> None:
    if device == "meta" and n == 10_000_000:
        PseudoLabelMemoryBank(n, "bits", device=device)
        return
    with pytest.raises(
        ValueError, match=r"expected layout='sparse': the layout bits takes [0-9,.]+ GB, more than"
    ):
        PseudoLabelMemoryBank(n, "bits", device=device)


def test_lists_that_do_not_fit_say_so() -> None:
    with pytest.raises(
        ValueError, match="expected fewer images or a smaller capacity: the layout sparse takes"
    ):
        PseudoLabelMemoryBank(2**40)


@pytest.mark.parametrize(
    ("settings_of_bank", "message"),
    [
        ({"n": 0}, "n: got 0, expected 1 or more"),
        ({"n": 5, "layout": "dense"}, "layout: got 'dense', expected one of auto, bits, sparse"),
        ({"n": 5, "capacity": 0}, "capacity: got 0, expected 1 to"),
    ],
)
def test_bad_settings_are_named(settings_of_bank: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PseudoLabelMemoryBank(**settings_of_bank)  # type: ignore[arg-type]


ROWS, INDPTR, INDICES = torch.tensor([1, 2]), torch.tensor([0, 1, 3]), torch.tensor([4, 0, 3])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": ROWS.bool()}, "rows: got dtype torch.bool, expected integers"),
        ({"rows": ROWS[None]}, r"rows: got shape \(1, 2\)"),
        ({"rows": [1, 0.5]}, "rows: got 0.5 in a list, expected integers"),
        ({"rows": torch.tensor([1, 5])}, r"rows: got 5 at place 1, expected values in \[0, 5\)"),
        ({"rows": torch.tensor([-1, 2])}, "rows: got -1 at place 0"),
        ({"rows": ROWS.to("meta")}, "rows: got device meta, expected a tensor with values"),
        (
            {"indptr": INDPTR[:2]},
            r"indptr: got shape \(2,\), expected \(3,\), one for each row, and the end",
        ),
        (
            {"indptr": torch.tensor([0, 1, 2])},
            "indptr: got 0 first and 2 last, expected 0 and 3, the number of indices",
        ),
        ({"indptr": torch.tensor([1, 1, 3])}, "indptr: got 1 first and 3 last"),
        (
            {"indptr": torch.tensor([0, 4, 3])},
            "indptr: got a decrease after place 1, expected values that never decrease",
        ),
        ({"indices": INDICES.float()}, "indices: got dtype torch.float32"),
        ({"indices": torch.tensor([4, 0, 5])}, "indices: got 5 at place 2"),
        (
            {"similarities": torch.zeros(2)},
            r"similarities: got shape \(2,\), expected \(3,\), one for each label",
        ),
        (
            {"similarities": torch.zeros(3).double()},
            "similarities: got dtype torch.float64, expected torch.float32",
        ),
    ],
)
def test_bad_updates_are_named_and_change_nothing(
    layout: str, changed: dict[str, Tensor], message: str
) -> None:
    bank = PseudoLabelMemoryBank(5, layout)
    with pytest.raises(ValueError, match=message):
        bank.update(**{"rows": ROWS, "indptr": INDPTR, "indices": INDICES, **changed})
    assert same(bank, PseudoLabelMemoryBank(5, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bad_lookups_are_named(layout: str) -> None:
    bank = PseudoLabelMemoryBank(5, layout)
    for lookup in (bank.lookup, bank.lookup_bits):
        with pytest.raises(
            ValueError, match=r"rows: got 5 at place 1, expected values in \[0, 5\)"
        ):
            lookup(torch.tensor([0, 5]))
        with pytest.raises(ValueError, match=r"rows: got dtype torch\.float32"):
            lookup(torch.zeros(2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_compiles_to_one_graph_for_all_numbers_of_labels(layout: str) -> None:
    compiled_bank, bank = (PseudoLabelMemoryBank(40, layout, 3) for _ in range(2))

    def step(bank: PseudoLabelMemoryBank, *batch: Tensor) -> Tensor:
        bank.update(*batch)
        return bank.lookup_bits(batch[0])

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for seed in range(3):
        batch = random_batch(40, 12, 6 + seed, seed)
        for x in batch[2:]:
            torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(compiled(compiled_bank, *batch), step(bank, *batch))
        assert same(compiled_bank, bank)
    assert counter.frame_count == 1


def test_a_bank_moves_to_a_device() -> None:
    bank = PseudoLabelMemoryBank(40, "sparse", 3)
    assert bank.to("meta") is bank
    assert bank.device == torch.device("meta") and bank.nbytes == 40 * 16 + 8


def test_a_state_whose_counts_are_not_those_of_its_ids_is_refused() -> None:
    bank = PseudoLabelMemoryBank(5, "sparse", 4)
    state = {name: x.clone() for name, x in bank.state_dict().items()}
    state["counts"][3] = 2
    with pytest.raises(ValueError, match=r"state\['counts'\]"):
        bank.load_state_dict(state)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("own", [slice(0, 40), slice(7, 21), slice(33, 40), slice(40, 40)])
def test_a_part_of_a_bank_keeps_the_labels_of_its_own_images(layout: str, own: slice) -> None:
    whole, part = (
        PseudoLabelMemoryBank(40, layout, 3),
        PseudoLabelMemoryBank(40, layout, 3, own=own),
    )
    assert len(part) == 40 and part.own == own
    rows, indptr, indices, _ = random_batch(40, 30, 6)
    whole.update(rows, indptr, indices)
    lists = indices.split(indptr.diff().tolist())
    mine = [b for b, row in enumerate(rows.tolist()) if own.start <= row < own.stop]
    part.update(rows[mine], *csr([lists[b].tolist() for b in mine]))
    images = torch.arange(own.start, own.stop)
    for got, expected in zip(part.lookup(images), whole.lookup(images), strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(part.lookup_bits(images), whole.lookup_bits(images))
    again = PseudoLabelMemoryBank(40, layout, 3, own=own)
    again.load_state_dict(part.state_dict())
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in part.state_dict().items())
    for name, x in part.state_dict().items():
        assert x.ndim == 0 or torch.equal(x, whole.state_dict()[name][own])


def test_a_part_of_a_bank_refuses_other_images() -> None:
    part = PseudoLabelMemoryBank(40, "bits", own=slice(7, 21))
    for call in (part.lookup, part.lookup_bits, lambda rows: part.update(rows, *csr([[1], [2]]))):
        with pytest.raises(
            ValueError, match=r"rows: got 21 at place 1, expected values in \[7, 21\)"
        ):
            call(torch.tensor([7, 21]))
