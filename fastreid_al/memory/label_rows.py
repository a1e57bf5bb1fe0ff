"""Operators on rows of labels, as bits or as lists of ids.

Replace them, list them, copy them as bits.

They are custom operators, so that they compile. The compiled extension does the work where it has a
form for the device, and PyTorch does it elsewhere, with the same results. A bank of bits is `words`
(n, ceil(n / 32)) int32. A bank of lists is `ids` (n, capacity) int32 or int64, each row ascending
and then -1, and `counts` (n,) int32, the length of each list. A shard of a bank has fewer rows than
there are labels: `n` is then the number of labels, and `rows` are numbers within the shard.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native

#: Most labels of a row that a CUDA block sorts in shared memory; the same as PLMB_SHORT in
#: csrc/plmb.h.
_SHORT = 2048


def bits_of(ids: Tensor) -> Tensor:
    """The bit of an id in its word, int32."""
    return torch.bitwise_left_shift(torch.ones_like(ids), ids % 32).to(torch.int32)


@torch.library.custom_op("fastreid_al::plmb_update_bits", mutates_args=("words",))
def update_bits(
    words: Tensor, rows: Tensor, indptr: Tensor, indices: Tensor, n: int | None = None
) -> None:
    """Replace rows of a bank of bits; if a row occurs several times, its last labels stay.

    Args:
        words: (size, ceil(n / 32)) int32, changed in place.
        rows: (B,) int64 in [0, size).
        indptr: (B + 1,) int64; the labels of rows[b] are indices[indptr[b]:indptr[b + 1]].
        indices: (labels,) int64 in [0, n).
        n: Number of labels; by default the number of rows of the bank.
    """
    n = len(words) if n is None else n
    _check_batch(len(words), n, rows, indptr, indices)
    if _update(_bits_bank(words, n), rows, indptr, indices, None, None):
        return
    last = _is_last_occurrence(rows, len(words))
    place, labels, _ = _kept_labels(n, last, indptr, indices)
    pairs = torch.unique(place * n + labels)
    place = pairs // n
    labels = pairs % n
    words[rows[last]] = 0
    # Each bit occurs once, so the sum of the bits of a word is their OR.
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
    """Replace rows of a bank of lists; if a row occurs several times, its last labels stay.

    A list that overflows keeps the most similar labels, or the first ones without similarities.

    Args:
        ids: (size, capacity) int32 or int64, changed in place.
        counts: (size,) int32, changed in place.
        dropped: () int64, increased by the number of labels that did not fit.
        rows: (B,) int64 in [0, size).
        indptr: (B + 1,) int64; the labels of rows[b] are indices[indptr[b]:indptr[b + 1]].
        indices: (labels,) int64 in [0, n).
        similarities: (labels,) float32, or None.
        n: Number of labels; by default the number of rows of the bank.
    """
    n = len(ids) if n is None else n
    _check_batch(len(ids), n, rows, indptr, indices)
    if _update(_list_bank(ids, counts, n), rows, indptr, indices, similarities, dropped):
        return
    capacity = ids.shape[1]
    last = _is_last_occurrence(rows, len(ids))
    place, labels, kept = _kept_labels(n, last, indptr, indices)
    pairs = _best_first(place * n + labels, kept, similarities)
    pairs = pairs[(pairs // n).argsort(stable=True)]
    fits = _place_in_row(pairs // n, len(rows)) < capacity
    dropped += (~fits).sum()
    pairs = pairs[fits].sort().values
    place = pairs // n
    lists = ids.new_full((len(rows), capacity), -1)
    lists[place, _place_in_row(place, len(rows))] = (pairs % n).to(ids.dtype)
    ids[rows[last]] = lists[last]
    counts[rows[last]] = torch.bincount(place, minlength=len(rows))[last].to(counts.dtype)


@torch.library.custom_op("fastreid_al::plmb_lookup_bits", mutates_args=())
def lookup_bits(
    words: Tensor, rows: Tensor, n: int | None = None, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """List the labels of rows of a bank of bits.

    Args:
        words: (size, ceil(n / 32)) int32.
        rows: (B,) int64 in [0, size).
        n: Number of labels; by default the number of rows of the bank.
        most: Room for labels, so that a GPU is not waited for; by default as many as there are.

    Returns:
        `indptr` (B + 1,) and `indices`, int64, ascending in each row. With `most`, indices (most,),
        which end in -1 where room is left.
    """
    _check_range("rows", rows, len(words))
    listed = _lookup(_bits_bank(words, n), rows, most)
    if listed is not None:
        return listed
    taken = _take(words, rows)  # (B, words)
    # First the words that hold a label, then the bits of only these.
    place, word = taken.nonzero(as_tuple=True)
    bits = (taken[place, word][:, None] >> torch.arange(32, device=words.device)) & 1
    nonzero_word, bit = bits.nonzero(as_tuple=True)
    counts = torch.bincount(place[nonzero_word], minlength=len(rows))
    return _in_room(F.pad(counts.cumsum(0), (1, 0)), word[nonzero_word] * 32 + bit, most)


@torch.library.custom_op("fastreid_al::plmb_lookup_sparse", mutates_args=())
def lookup_sparse(
    ids: Tensor, counts: Tensor, rows: Tensor, n: int | None = None, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """List the labels of rows of a bank of lists.

    Args:
        ids: (size, capacity) int32 or int64.
        counts: (size,) int32.
        rows: (B,) int64 in [0, size).
        n: Number of labels; by default the number of rows of the bank.
        most: Room for labels, so that a GPU is not waited for; B x capacity is always enough. By
            default as many as there are.

    Returns:
        `indptr` (B + 1,) and `indices`, int64, ascending in each row. With `most`, indices (most,),
        which end in -1 where room is left.
    """
    _check_range("rows", rows, len(ids))
    listed = _lookup(_list_bank(ids, counts, n), rows, most)
    if listed is not None:
        return listed
    taken, is_label = _take_lists(ids, counts, rows)
    indptr = F.pad(is_label.sum(1).cumsum(0), (1, 0))
    return _in_room(indptr, taken[is_label].to(torch.int64), most)


@torch.library.custom_op("fastreid_al::plmb_bit_rows_bits", mutates_args=())
def bit_rows_bits(words: Tensor, rows: Tensor, n: int | None = None) -> Tensor:
    """Copy rows (B,) int64 of a bank of bits, as (B, ceil(n / 32)) int32."""
    _check_range("rows", rows, len(words))
    bits = _bit_rows(_bits_bank(words, n), rows)
    return _take(words, rows) if bits is None else bits


@torch.library.custom_op("fastreid_al::plmb_bit_rows_sparse", mutates_args=())
def bit_rows_sparse(ids: Tensor, counts: Tensor, rows: Tensor, n: int | None = None) -> Tensor:
    """Write rows of a bank of lists as bits.

    Args:
        ids: (size, capacity) int32 or int64.
        counts: (size,) int32.
        rows: (B,) int64 in [0, size).
        n: Number of labels; by default the number of rows of the bank.

    Returns:
        (B, ceil(n / 32)) int32.
    """
    n = len(ids) if n is None else n
    _check_range("rows", rows, len(ids))
    bits = _bit_rows(_list_bank(ids, counts, n), rows)
    if bits is not None:
        return bits
    taken, is_label = _take_lists(ids, counts, rows)
    taken = taken.to(torch.int64) * is_label
    bits = counts.new_zeros(len(rows), (n + 31) // 32)
    return bits.scatter_add_(1, taken // 32, bits_of(taken) * is_label)


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
def _(
    words: Tensor, rows: Tensor, n: int | None = None, most: int | None = None
) -> tuple[Tensor, Tensor]:
    return _fake_lists(rows, most)


@lookup_sparse.register_fake
def _(
    ids: Tensor, counts: Tensor, rows: Tensor, n: int | None = None, most: int | None = None
) -> tuple[Tensor, Tensor]:
    return _fake_lists(rows, most)


def _fake_lists(rows: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Lists of labels whose values are not known."""
    room = torch.library.get_ctx().new_dynamic_size() if most is None else most
    return rows.new_empty(rows.shape[0] + 1), rows.new_empty(room)


@bit_rows_bits.register_fake
def _(words: Tensor, rows: Tensor, n: int | None = None) -> Tensor:
    return words.new_empty(rows.shape[0], words.shape[1])


@bit_rows_sparse.register_fake
def _(ids: Tensor, counts: Tensor, rows: Tensor, n: int | None = None) -> Tensor:
    return counts.new_empty(rows.shape[0], ((ids.shape[0] if n is None else n) + 31) // 32)


def _check_batch(size: int, n: int, rows: Tensor, indptr: Tensor, indices: Tensor) -> None:
    """Refuse rows, labels or an `indptr` out of range.

    Only on a CPU, since elsewhere the host would wait for the device.
    """
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
            f"indptr: got a decrease after place {int(steps.argmin())}, "
            "expected values that never decrease"
        )


def _check_range(name: str, x: Tensor, n: int) -> None:
    """Refuse values outside [0, n).

    Only on a CPU, since elsewhere the host would wait for the device.
    """
    if not x.is_cpu or not len(x):
        return
    lowest, highest = x.aminmax()
    if int(lowest) < 0 or int(highest) >= n:
        place = int(((x < 0) | (x >= n)).nonzero()[0, 0])
        raise ValueError(
            f"{name}: got {int(x[place])} at place {place}, expected values in [0, {n})"
        )


#: A bank for the extension: (rows, bytes of an id or 0 for bits, counts or None, n).
_Bank = tuple[Tensor, int, Tensor | None, int]


def _bits_bank(words: Tensor, n: int | None) -> _Bank:
    return words, 0, None, len(words) if n is None else n


def _list_bank(ids: Tensor, counts: Tensor, n: int | None) -> _Bank:
    return ids, ids.dtype.itemsize, counts, len(ids) if n is None else n


def _call(
    name: str, bank: _Bank, *arguments: Tensor | int | None, scratch: Tensor | None = None
) -> bool:
    """Call the extension's function for the bank's device; returns False if there is none.

    Args:
        name: Name of the function on a CPU; on CUDA it ends in `_cuda`.
        bank: The bank.
        arguments: Tensors are passed by their address, None as 0.
        scratch: Scratch memory that only the CUDA function takes.
    """
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
    """Update a bank with the extension; returns False if it has no form for the device."""
    rows = rows.contiguous()
    indptr = indptr.contiguous()
    indices = indices.contiguous()
    similarities = None if similarities is None else similarities.contiguous()
    # On CUDA a row that is too long for shared memory is sorted in scratch memory.
    in_shared_memory = bank[0].is_cpu or len(indices) <= _SHORT
    scratch = indices.new_empty(0 if in_shared_memory else len(indices), dtype=torch.int32)
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


def _lookup(bank: _Bank, rows: Tensor, most: int | None) -> tuple[Tensor, Tensor] | None:
    """List labels with the extension; None if it has no form for the device."""
    rows = rows.contiguous()
    if most is not None and bank[0].is_cuda:
        return _lookup_in_room(bank, rows, most)
    indptr = rows.new_zeros(len(rows) + 1)
    if not _call("plmb_count", bank, rows, len(rows), indptr[1:]):
        return None
    indptr.cumsum_(0)
    indices = rows.new_empty(int(indptr[-1]))
    _call("plmb_list", bank, rows, len(rows), indptr, indices)
    return _in_room(indptr, indices, most)


def _lookup_in_room(bank: _Bank, rows: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """List at most `most` labels in one launch, without a wait for their number."""
    if not len(rows):
        return rows.new_zeros(1), rows.new_full((most,), -1)
    indptr = rows.new_empty(len(rows) + 1)
    indices = rows.new_empty(most)
    # What the blocks of the launch tell one another.
    state = rows.new_zeros(len(rows) + 1)
    called = _call("plmb_lookup", bank, rows, len(rows), most, state, indptr, indices)
    return (indptr, indices) if called else None


def _in_room(indptr: Tensor, indices: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Lists of labels whose indices are filled up to (most,) with -1, if `most` is given."""
    if most is None:
        return indptr, indices
    if len(indices) > most:
        raise ValueError(
            f"most: got {most:,}, expected at least {len(indices):,}, the labels of the rows"
        )
    return indptr, F.pad(indices, (0, most - len(indices)), value=-1)


def _bit_rows(bank: _Bank, rows: Tensor) -> Tensor | None:
    """Copy rows as bits with the extension; None if it has no form for the device."""
    rows = rows.contiguous()
    bits = rows.new_empty((len(rows), (bank[3] + 31) // 32), dtype=torch.int32)
    return bits if _call("plmb_bits", bank, rows, len(rows), bits) else None


def _is_last_occurrence(rows: Tensor, n: int) -> Tensor:
    """(B,) bool: whether no later place of the batch names the same row of the bank's n rows."""
    order = rows.argsort(stable=True)
    last = torch.ones_like(rows, dtype=torch.bool)
    last[order[:-1]] = rows[order[:-1]] != rows[order[1:]]
    return last & (rows >= 0) & (rows < n)


def _kept_labels(
    n: int, last: Tensor, indptr: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The labels of the last occurrences of rows.

    The place in the batch of each, the label, and its place in `indices`.
    """
    positions = torch.arange(len(indices), device=indices.device)
    place = torch.searchsorted(indptr.contiguous(), positions, right=True) - 1
    inside = (place >= 0) & (place < len(last)) & (indices >= 0) & (indices < n)
    kept = inside.nonzero()[:, 0]
    kept = kept[last[place[kept]]]
    return place[kept], indices[kept], kept


def _best_first(pairs: Tensor, kept: Tensor, similarities: Tensor | None) -> Tensor:
    """Distinct pairs of a row and a label, most similar first, equal ones in their own order.

    Args:
        pairs: (labels,) int64, one number for each pair.
        kept: (labels,) int64, the place of each pair in `similarities`.
        similarities: float32, or None: then all are equally similar.
    """
    if similarities is not None:
        # Adding 0 turns -0 into 0. A NaN is least similar.
        similarity = similarities[kept].nan_to_num(-torch.inf, torch.inf, -torch.inf) + 0.0
        pairs = pairs[similarity.argsort(descending=True, stable=True)]
    # Of equal pairs the first is the most similar, and a stable sort keeps it first.
    order = pairs.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = pairs[order[1:]] != pairs[order[:-1]]
    return pairs[order[first].sort().values]


def _place_in_row(row: Tensor, batch: int) -> Tensor:
    """How many equal values precede each value of an ascending list, (labels,) int64."""
    counts = torch.bincount(row, minlength=batch)
    return torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (B,) of a matrix; zeros where there is no such row."""
    inside = (rows >= 0) & (rows < len(x))
    return x.index_select(0, rows.clamp(0, len(x) - 1)).masked_fill_(~inside[:, None], 0)


def _take_lists(ids: Tensor, counts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of rows, (B, capacity), and whether each place of them holds a label."""
    counts = _take(counts[:, None], rows)
    return _take(ids, rows), torch.arange(ids.shape[1], device=ids.device) < counts
