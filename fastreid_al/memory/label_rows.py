"""Rows of labels, as bits or as lists of ids: replaced, listed, and copied as bits. Custom operators, so that they compile.

The extension does the work where it has a form for the device, PyTorch elsewhere; the results are the same. A bank of bits is
`words` (n, ceil(n / 32)) int32; one of lists is `ids` (n, capacity) int32 or int64, ascending and then -1, and `counts` (n,)
int32. A part of a bank has fewer rows than labels: there `n` tells the number of the latter, and rows are those of the part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native

#: Labels of a row that a block sorts in shared memory, PLMB_SHORT of csrc/plmb.h.
_SHORT = 2048


def bits_of(ids: Tensor) -> Tensor:
    """The bit of an id in its word, int32."""
    return torch.bitwise_left_shift(torch.ones_like(ids), ids % 32).to(torch.int32)


@torch.library.custom_op("fastreid_al::plmb_update_bits", mutates_args=("words",))
def update_bits(
    words: Tensor, rows: Tensor, indptr: Tensor, indices: Tensor, n: int | None = None
) -> None:
    """Replace rows by their labels in CSR form, the last of a row's occurrences counts."""
    n = len(words) if n is None else n
    _check_batch(len(words), n, rows, indptr, indices)
    if _update(_bits_bank(words, n), rows, indptr, indices, None, None):
        return
    last = _last_of_their_row(rows, len(words))
    place, labels, _ = _labels(n, last, indptr, indices)
    pairs = torch.unique(place * n + labels)
    place, labels = pairs // n, pairs % n
    words[rows[last]] = 0
    # Each bit once, so that the sum is the or.
    words.view(-1).index_add_(0, rows[place] * words.shape[1] + labels // 32, bits_of(labels))


@torch.library.custom_op(
    "fastreid_al::plmb_update_sparse", mutates_args=("ids", "counts", "dropped")
)
def update_sparse(
    ids: Tensor,
    counts: Tensor,
    dropped: Tensor,
    rows: Tensor,
    indptr: Tensor,
    indices: Tensor,
    similarities: Tensor | None,
    n: int | None = None,
) -> None:
    """Likewise; a list that overflows keeps the most similar, and `dropped` () int64 grows by the others."""
    n = len(ids) if n is None else n
    _check_batch(len(ids), n, rows, indptr, indices)
    if _update(_list_bank(ids, counts, n), rows, indptr, indices, similarities, dropped):
        return
    capacity = ids.shape[1]
    last = _last_of_their_row(rows, len(ids))
    place, labels, kept = _labels(n, last, indptr, indices)
    pairs = place * n + labels
    if similarities is not None:
        # Zeros of either sign are equal.
        likeness = similarities[kept].nan_to_num(-torch.inf, torch.inf, -torch.inf) + 0.0
        pairs = pairs[likeness.argsort(descending=True, stable=True)]
    # Most similar first, so the first of equal pairs is the best.
    order = pairs.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = pairs[order[1:]] != pairs[order[:-1]]
    best = order[first].sort().values
    best = best[(pairs[best] // n).argsort(stable=True)]
    pairs = pairs[best]
    room = _place_in_row(pairs // n, len(rows)) < capacity
    dropped += (~room).sum()
    pairs = pairs[room].sort().values
    place = pairs // n
    lists = ids.new_full((len(rows), capacity), -1)
    lists[place, _place_in_row(place, len(rows))] = (pairs % n).to(ids.dtype)
    ids[rows[last]] = lists[last]
    counts[rows[last]] = torch.bincount(place, minlength=len(rows))[last].to(counts.dtype)


@torch.library.custom_op("fastreid_al::plmb_lookup_bits", mutates_args=())
def lookup_bits(words: Tensor, rows: Tensor, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Labels of rows, ascending, in CSR form."""
    _check_range("rows", rows, len(words))
    found = _lookup(_bits_bank(words, n), rows)
    if found is not None:
        return found
    taken = _take(words, rows)
    place, word = taken.nonzero(as_tuple=True)
    some, bit = (
        (taken[place, word][:, None] >> torch.arange(32, device=words.device)) & 1
    ).nonzero(as_tuple=True)
    counts = torch.bincount(place[some], minlength=len(rows))
    return F.pad(counts.cumsum(0), (1, 0)), word[some] * 32 + bit


@torch.library.custom_op("fastreid_al::plmb_lookup_sparse", mutates_args=())
def lookup_sparse(
    ids: Tensor, counts: Tensor, rows: Tensor, n: int | None = None
) -> tuple[Tensor, Tensor]:
    """Labels of rows, ascending, in CSR form."""
    _check_range("rows", rows, len(ids))
    found = _lookup(_list_bank(ids, counts, n), rows)
    if found is not None:
        return found
    taken, there = _take_lists(ids, counts, rows)
    return F.pad(there.sum(1).cumsum(0), (1, 0)), taken[there].to(torch.int64)


@torch.library.custom_op("fastreid_al::plmb_bit_rows_bits", mutates_args=())
def bit_rows_bits(words: Tensor, rows: Tensor, n: int | None = None) -> Tensor:
    """Labels of rows as bits, (B, ceil(n / 32)) int32."""
    _check_range("rows", rows, len(words))
    found = _bit_rows(_bits_bank(words, n), rows)
    return _take(words, rows) if found is None else found


@torch.library.custom_op("fastreid_al::plmb_bit_rows_sparse", mutates_args=())
def bit_rows_sparse(ids: Tensor, counts: Tensor, rows: Tensor, n: int | None = None) -> Tensor:
    """Labels of rows as bits, (B, ceil(n / 32)) int32."""
    n = len(ids) if n is None else n
    _check_range("rows", rows, len(ids))
    found = _bit_rows(_list_bank(ids, counts, n), rows)
    if found is not None:
        return found
    taken, there = _take_lists(ids, counts, rows)
    taken = taken.to(torch.int64) * there
    bits = counts.new_zeros(len(rows), (n + 31) // 32)
    return bits.scatter_add_(1, taken // 32, bits_of(taken) * there)


@update_bits.register_fake
def _(words: Tensor, rows: Tensor, indptr: Tensor, indices: Tensor, n: int | None = None) -> None:
    return None


@update_sparse.register_fake
def _(
    ids: Tensor,
    counts: Tensor,
    dropped: Tensor,
    rows: Tensor,
    indptr: Tensor,
    indices: Tensor,
    similarities: Tensor | None,
    n: int | None = None,
) -> None:
    return None


@lookup_bits.register_fake
def _(words: Tensor, rows: Tensor, n: int | None = None) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape[0] + 1), rows.new_empty(
        torch.library.get_ctx().new_dynamic_size()
    )


@lookup_sparse.register_fake
def _(ids: Tensor, counts: Tensor, rows: Tensor, n: int | None = None) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape[0] + 1), rows.new_empty(
        torch.library.get_ctx().new_dynamic_size()
    )


@bit_rows_bits.register_fake
def _(words: Tensor, rows: Tensor, n: int | None = None) -> Tensor:
    return words.new_empty(rows.shape[0], words.shape[1])


@bit_rows_sparse.register_fake
def _(ids: Tensor, counts: Tensor, rows: Tensor, n: int | None = None) -> Tensor:
    return counts.new_empty(rows.shape[0], ((ids.shape[0] if n is None else n) + 31) // 32)


def _check_batch(size: int, n: int, rows: Tensor, indptr: Tensor, indices: Tensor) -> None:
    """Values are read on a CPU alone: elsewhere it would wait for the device."""
    if not rows.is_cpu:
        return
    module = native.extension()
    if module is not None and size == n and all(x.is_contiguous() for x in (rows, indptr, indices)):
        batch = module.LabelBatch(
            native.address(rows),
            len(rows),
            native.address(indptr),
            native.address(indices),
            len(indices),
        )
        if module.plmb_fits(batch, n):
            return
    _check_range("rows", rows, size)
    _check_range("indices", indices, n)
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices):
        raise ValueError(
            f"indptr: got {int(indptr[0])} first and {int(indptr[-1])} last, "
            f"expected 0 and {len(indices)}, the number of indices"
        )
    steps = indptr.diff()
    if len(steps) and int(steps.min()) < 0:
        raise ValueError(
            f"indptr: got a fall behind place {int(steps.argmin())}, expected values that never fall"
        )


def _check_range(name: str, x: Tensor, n: int) -> None:
    """Likewise."""
    if not x.is_cpu or not len(x):
        return
    least, greatest = x.aminmax()
    if int(least) < 0 or int(greatest) >= n:
        place = int(((x < 0) | (x >= n)).nonzero()[0, 0])
        raise ValueError(
            f"{name}: got {int(x[place])} at place {place}, expected values in [0, {n})"
        )


# The extension's forms. A bank is (rows, bytes of an id or 0, counts or None, n).

_Bank = tuple[Tensor, int, Tensor | None, int]


def _bits_bank(words: Tensor, n: int | None) -> _Bank:
    return words, 0, None, len(words) if n is None else n


def _list_bank(ids: Tensor, counts: Tensor, n: int | None) -> _Bank:
    return ids, ids.dtype.itemsize, counts, len(ids) if n is None else n


def _call(
    name: str, bank: _Bank, *arguments: Tensor | int | None, scratch: Tensor | None = None
) -> bool:
    """Whether the extension has a form for the bank's device; it is called. Tensors go by their address, None by 0."""
    x, id_bytes, counts, n = bank
    module = native.extension() if x.is_cpu else native.cuda_extension()
    if module is None or not (x.is_cpu or (x.is_cuda and torch.version.hip is None)):
        return False
    memory = module.LabelBank(
        native.address(x),
        id_bytes,
        0 if counts is None else native.address(counts),
        n,
        x.shape[1] if id_bytes else 0,
    )
    plain = [native.address(a) if isinstance(a, Tensor) else a or 0 for a in arguments]
    if name == "plmb_update":
        plain = [module.LabelBatch(*plain[:6]), *plain[6:]]
    if x.is_cpu:
        getattr(module, name)(memory, *plain, native.threads())
        return True
    if scratch is not None:
        plain.append(scratch.data_ptr())
    with torch.cuda.device_of(x):
        getattr(module, f"{name}_cuda")(memory, *plain, torch.cuda.current_stream().cuda_stream)
    return True


def _update(
    bank: _Bank,
    rows: Tensor,
    indptr: Tensor,
    indices: Tensor,
    similarities: Tensor | None,
    dropped: Tensor | None,
) -> bool:
    rows, indptr, indices = rows.contiguous(), indptr.contiguous(), indices.contiguous()
    similarities = None if similarities is None else similarities.contiguous()
    scratch = indices.new_empty(
        0 if bank[0].is_cpu or len(indices) <= _SHORT else len(indices), dtype=torch.int32
    )
    return _call(
        "plmb_update",
        bank,
        rows,
        len(rows),
        indptr,
        indices,
        len(indices),
        similarities,
        dropped,
        scratch=scratch,
    )


def _lookup(bank: _Bank, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    rows = rows.contiguous()
    indptr = rows.new_zeros(len(rows) + 1)
    if not _call("plmb_count", bank, rows, len(rows), indptr[1:]):
        return None
    indptr.cumsum_(0)
    indices = rows.new_empty(int(indptr[-1]))
    _call("plmb_list", bank, rows, len(rows), indptr, indices)
    return indptr, indices


def _bit_rows(bank: _Bank, rows: Tensor) -> Tensor | None:
    rows = rows.contiguous()
    bits = rows.new_empty((len(rows), (bank[3] + 31) // 32), dtype=torch.int32)
    return bits if _call("plmb_bits", bank, rows, len(rows), bits) else None


# PyTorch's forms.


def _last_of_their_row(rows: Tensor, n: int) -> Tensor:
    """(B,) bool: no later place of the batch names the same row of the bank."""
    order = rows.argsort(stable=True)
    last = torch.ones_like(rows, dtype=torch.bool)
    last[order[:-1]] = rows[order[:-1]] != rows[order[1:]]
    return last & (rows >= 0) & (rows < n)


def _labels(n: int, last: Tensor, indptr: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of the places that are last: the place of each, the label, and its own place among all labels."""
    place = (
        torch.searchsorted(
            indptr.contiguous(), torch.arange(len(indices), device=indices.device), right=True
        )
        - 1
    )
    inside = (place >= 0) & (place < len(last)) & (indices >= 0) & (indices < n)
    kept = inside.nonzero()[:, 0]
    kept = kept[last[place[kept]]]
    return place[kept], indices[kept], kept


def _place_in_row(place: Tensor, batch: int) -> Tensor:
    """How many equal values stand before each, in an ascending list."""
    counts = torch.bincount(place, minlength=batch)
    return torch.arange(len(place), device=place.device) - (counts.cumsum(0) - counts)[place]


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of a matrix; zero where there is no such row."""
    inside = (rows >= 0) & (rows < len(x))
    return x.index_select(0, rows.clamp(0, len(x) - 1)).masked_fill_(~inside[:, None], 0)


def _take_lists(ids: Tensor, counts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of rows (B, capacity), and where they hold labels."""
    counts = _take(counts[:, None], rows)
    return _take(ids, rows), torch.arange(ids.shape[1], device=ids.device) < counts
