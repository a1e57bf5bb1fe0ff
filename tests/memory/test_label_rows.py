"""The operators on rows of labels, by the extension and by PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastreid_al.memory import PseudoLabelMemoryBank, label_rows
from tests.support.label_batches import FORMS, form_of, random_batch


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with form_of(request.param):
        yield request.param


@pytest.mark.usefixtures("form")
def test_ids_of_eight_bytes_hold_the_same() -> None:
    narrow = PseudoLabelMemoryBank(50, "sparse", 6).state_dict()
    wide = {name: x.to(torch.int64) if name == "ids" else x.clone() for name, x in narrow.items()}
    for state in (narrow, wide):
        label_rows.update_sparse(*state.values(), *random_batch(50, 30, 12))
    assert wide["ids"].dtype == torch.int64
    assert all(torch.equal(x, wide[name].to(x.dtype)) for name, x in narrow.items())
    rows = torch.arange(50)
    for lookup in (label_rows.lookup_sparse, label_rows.bit_rows_sparse):
        got = [lookup(state["ids"], state["counts"], rows) for state in (narrow, wide)]
        assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


@pytest.mark.usefixtures("form")
def test_operators_are_registered_as_pytorch_wants_them() -> None:
    batch = random_batch(40, 12, 6)
    words = PseudoLabelMemoryBank(40, "bits").state_dict()["words"]
    ids, counts, dropped = PseudoLabelMemoryBank(40, "sparse", 3).state_dict().values()
    torch.library.opcheck(label_rows.update_bits, (words, *batch[:3]))
    torch.library.opcheck(label_rows.update_sparse, (ids, counts, dropped, *batch))
    torch.library.opcheck(label_rows.update_sparse, (ids, counts, dropped, *batch[:3], None))
    for lookup in (label_rows.lookup_bits, label_rows.bit_rows_bits):
        torch.library.opcheck(lookup, (words, batch[0]))
    for lookup in (label_rows.lookup_sparse, label_rows.bit_rows_sparse):
        torch.library.opcheck(lookup, (ids, counts, batch[0]))
