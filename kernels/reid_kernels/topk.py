"""Find the k most similar rows of a bank for each query, without the matrix of similarities."""

from __future__ import annotations

from typing import Any, Sequence  # noqa: UP035 - schemas of custom operators need this one

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import PRECISIONS, device_of, qualified, takes_kernels
from .checks import (
    as_flag,
    as_ids,
    as_integer,
    as_pair,
    as_rows,
    check_choice,
    check_range,
    returns_given_kind,
)
from .numerics import accumulator, full_precision, has_bf16_units

__all__ = ["BankIndex", "similarity_topk", "similarity_topk_reference"]

MAX_K = 1024


@returns_given_kind
def similarity_topk(
    query: Tensor,
    bank: Tensor,
    k: int,
    *,
    normalize: bool = True,
    exclude: Tensor | None = None,
    precision: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Find the k most similar bank rows of each query row, by cosine similarity or plain dot
    product.

    Equally similar rows are ordered by index. Sums are float32. The returned similarities were
    computed in float32, whatever the precision of the candidate pass. Repeated calls return the
    same bits. There is no gradient: to get one, gather the rows at the indices and multiply them.

    Args:
        query: (B, D) float32, float16 or bfloat16 (float64 too, computed in float64).
        bank: (n, D), dtype and device of the query; n may be in the millions.
        k: 1 to 1,024.
        normalize: Divide each row by its norm, clamped at 1e-12 as in
            `torch.nn.functional.normalize`. Turn it off for rows that are unit-norm already.
        exclude: (B,) int64, one bank row that is left out for each query (for example itself); -1
            for none.
        precision: How candidates are found. "auto": the fastest way whose result is exact up to
            float32's rounding: products in half precision with a proven error bound (float16 of
            rows scaled to unit length on a GPU, bfloat16 on a CPU), and float32 where the bound
            does not decide. On a GPU float32 rows wait once for the device, and a few times more
            where some queries are without proof. "ieee": float32 throughout. "tf32", "bf16": on a
            GPU, candidates at this precision without proof: a row whose similarity lies within the
            format's error of the k-th may be missed; on a CPU exact as well.

    Returns:
        Similarities (B, k) float32 (float64 for float64), descending, and bank rows (B, k) int64.
        Where fewer than k rows are available, the rest are -inf and -1. On a GPU a NaN ranks first.

    Memory:
        B x n never exists. CPU: a block of 8 or 16 MiB, or of 64 queries where that is more (256 n
        bytes, 256 MB at 1e6), some 20 MiB of candidates, and with bfloat16 candidates a copy of the
        bank at half its size (133 MB at n = 32,621 and 4.1 GB at 1e6, D = 2,048). GPU: copies of
        bank and queries in float16 (two, where the bank is searched with itself), at most 256 MiB
        of group maxima, and at most 256 MiB of recomputed
        similarities; the queries without proof are copied once more. `BankIndex` keeps the copies
        of a bank that is searched more than once.

    Moved:
        On a GPU float32 rows twice and their copy once when it is made, the bank once for every 128
        queries (L2 serves those that run at the same time; at most 4,096 queries at a time), 8 B n
        / 16 bytes of group maxima, and of each of some 5 k / 4 groups of a query the row of its
        maximum, or 16 rows where others come as near (always where the rows are half floats); for
        queries without proof four times as many groups. Nothing was measured on a GPU
        (bench/results/gpu_model.md).

    Raises:
        ValueError: Wrong rank, width, dtype or device, or k outside [1, 1024]. On a CPU also:
            `exclude` outside [-1, n), or rows whose similarity is NaN or inf, or whose length is
            not finite in the dtype of the sums. On a GPU such an `exclude` leaves nothing out, and
            such similarities are returned; a row of such a length has the similarity 0.
    """
    query, bank = as_pair("query", query, bank)
    k = as_integer("k", k, 1, MAX_K)
    normalize = as_flag("normalize", normalize)
    if exclude is not None:
        exclude = as_ids("exclude", exclude, query.shape[0], query, "query", "query row")
    check_choice("precision", precision, PRECISIONS)
    return _similarity_topk(query.detach(), bank.detach(), k, normalize, exclude, precision)


@returns_given_kind
def similarity_topk_reference(
    query: Tensor, bank: Tensor, k: int, *, normalize: bool = True, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `similarity_topk` in plain PyTorch through the whole matrix of similarities.

    Args:
        query: (B, D), any floating dtype; the similarities have this dtype.
        bank: (n, D), dtype and device of the query.
        k: Number of rows; it may exceed n.
        normalize: Divide each row by its norm.
        exclude: (B,) int64, one bank row that is left out for each query; -1 for none.
    """
    query, bank = as_pair("query", query, bank)
    k = as_integer("k", k, 0)
    if exclude is not None:
        exclude = as_ids("exclude", exclude, len(query), query, "query", "query row")
        check_range("exclude", exclude, -1, len(bank))
    if as_flag("normalize", normalize):
        query = F.normalize(query)
        bank = F.normalize(bank)
    similarity = query @ bank.T  # (B, n)
    indices = torch.arange(len(bank), device=bank.device).expand_as(similarity).contiguous()
    if exclude is not None:
        own = exclude[:, None] == indices
        similarity = similarity.masked_fill(own, -torch.inf)
        indices = indices.masked_fill(own, -1)
        # The excluded row comes after rows whose similarity is -inf anyway.
        last = own.int().sort(dim=1, stable=True).indices
        similarity = similarity.gather(1, last)
        indices = indices.gather(1, last)
    similarity = F.pad(similarity, (0, k), value=-torch.inf)
    indices = F.pad(indices, (0, k), value=-1)
    values, order = similarity.sort(dim=1, descending=True, stable=True)
    return values[:, :k].to(accumulator(query.dtype)), indices.gather(1, order)[:, :k]


class BankIndex:
    """A bank that is searched more than once.

    What `similarity_topk` computes of a bank before each search is computed once: on a GPU a
    float16 copy of float32 rows, norms and error bounds; on a CPU norms, and with bfloat16 units a
    bfloat16 copy. The bank itself is kept as it is, not copied. Results are those of
    `similarity_topk` at "auto" precision.

        index = BankIndex(gallery)
        values, rows = index.search(query, 10)

    Args:
        bank: (n, D) float32, float16, bfloat16 or float64.
        normalize: Divide each row by its norm, as in `similarity_topk`.

    Attributes:
        bank: The bank.
        normalize: Whether rows are divided by their norm.

    After a change of the bank call `update`. A search of a bank that PyTorch has changed in place
    is refused until then. Not noticed are changes inside `torch.compile` or of a bank made in
    inference mode, through `.data`, and by other libraries that share the memory.

    Memory:
        On a GPU half the bank for float32 rows (133 MB at n = 32,621 and 4.1 GB at 1e6, D = 2,048)
        and 16 n bytes. On a CPU as much with bfloat16 units, else 4 n bytes at most.

    Raises:
        ValueError: As `similarity_topk`.
    """

    def __init__(self, bank: Tensor, *, normalize: bool = True) -> None:
        self.bank = as_rows("bank", bank)
        self.normalize = as_flag("normalize", normalize)
        self.update()

    def __getstate__(self) -> dict[str, Any]:
        self._check_unchanged()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A copy of a tensor counts its changes anew.
        self._version = _version_of(self.bank)

    def _check_unchanged(self) -> None:
        """Refuse a bank that has changed since the index was made or updated."""
        version = _version_of(self.bank)
        if None not in (version, self._version) and version != self._version:
            raise ValueError(
                "bank: its values have changed since the index was made; call update() with the "
                "rows that have changed"
            )

    def search(
        self, query: Tensor, k: int, *, exclude: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the k most similar bank rows of each query row.

        Args:
            query: (B, D), dtype and device of the bank.
            k: 1 to 1,024.
            exclude: (B,) int64, one bank row that is left out for each query; -1 for none.

        Returns:
            As `similarity_topk`.

        Raises:
            ValueError: As `similarity_topk`; or the bank was changed in place since the index was
                made or updated.
        """
        self._check_unchanged()
        return _search(query, self, k, exclude)

    def update(self, rows: Tensor | None = None) -> None:
        """Compute the index of some rows again, after their values have changed.

        Args:
            rows: (R,) int64, rows of the bank, in any order; None for all.
        """
        bank = self.bank.detach()
        # What is made in inference mode could not be updated outside of it.
        with torch.inference_mode(False):
            if rows is None:
                self._parts = _bank_index(bank, self.normalize)
            else:
                rows = as_ids("rows", rows, None, bank, "bank", "changed row")
                check_range("rows", rows, 0, len(bank))
                changed = _bank_index(bank[rows], self.normalize)
                for part, new in zip(self._parts, changed, strict=True):
                    if part.numel() and len(rows):
                        part.index_copy_(0, rows, new[: len(rows)])
        self._version = _version_of(self.bank)


def _version_of(x: Tensor) -> int | None:
    """How often PyTorch has changed a tensor in place; None where that is not counted."""
    if torch.compiler.is_compiling() or x.is_inference():
        return None
    return x._version


@returns_given_kind
def _search(
    query: Tensor, index: BankIndex, k: int, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Search an index."""
    query, bank = as_pair("query", query, index.bank.detach())
    k = as_integer("k", k, 1, MAX_K)
    if exclude is not None:
        exclude = as_ids("exclude", exclude, query.shape[0], query, "query", "query row")
    return _search_index(query.detach(), bank, index._parts, k, index.normalize, exclude)


@torch.library.custom_op(qualified("similarity_topk"), mutates_args=())
def _similarity_topk(
    query: Tensor, bank: Tensor, k: int, normalize: bool, exclude: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Compute `similarity_topk` on arguments whose values are not checked yet."""
    if exclude is not None:
        check_range("exclude", exclude, -1, len(bank))
    if not takes_kernels(query, bank):
        from .topk_cpu import topk_blocked

        with full_precision(query):
            return topk_blocked(query, bank, k, normalize, exclude, precision)
    from .topk_triton import topk_triton

    with device_of(query):
        return topk_triton(query, bank, k, normalize, exclude, precision)


def _fake_result(query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and rows (B, k) whose content is not known."""
    shape = (query.shape[0], k)
    values = query.new_empty(shape, dtype=accumulator(query.dtype))
    return values, query.new_empty(shape, dtype=torch.int64)


@_similarity_topk.register_fake
def _(
    query: Tensor, bank: Tensor, k: int, normalize: bool, exclude: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    return _fake_result(query, k)


@torch.library.custom_op(qualified("bank_index"), mutates_args=())
def _bank_index(bank: Tensor, normalize: bool) -> list[Tensor]:
    """Compute the parts of an index: the copy, norms, inverse norms, errors and lengths."""
    if not takes_kernels(bank):
        from .topk_cpu import index_blocked

        return list(index_blocked(bank, normalize))
    from .topk_triton import index_triton

    with device_of(bank):
        return list(index_triton(bank, normalize))


@_bank_index.register_fake
def _(bank: Tensor, normalize: bool) -> list[Tensor]:
    n, dim = bank.shape
    kind = accumulator(bank.dtype)
    wide = bank.dtype == torch.float32
    if takes_kernels(bank):
        low = bank.new_empty(
            (n, dim) if wide else (0,), dtype=torch.float16 if wide else bank.dtype
        )
        sizes = [n if wide or normalize else 0] * 4
    else:
        copied = kind == torch.float32 and bank.is_cpu and has_bf16_units()
        low = bank.new_empty(0, dtype=kind)
        if copied:
            low = bank.new_empty(-(-n // 16) * 16, dim, dtype=torch.bfloat16)
        sizes = [0, n if normalize else 0, n if copied else 0, n if copied else 0]
    return [low, *(bank.new_empty(size, dtype=kind) for size in sizes)]


@torch.library.custom_op(qualified("search_index"), mutates_args=())
def _search_index(
    query: Tensor,
    bank: Tensor,
    parts: Sequence[Tensor],
    k: int,
    normalize: bool,
    exclude: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Search an index, on arguments whose values are not checked yet."""
    if exclude is not None:
        check_range("exclude", exclude, -1, len(bank))
    if not takes_kernels(query, bank):
        from .topk_cpu import topk_blocked

        with full_precision(query):
            return topk_blocked(query, bank, k, normalize, exclude, "auto", parts)
    from .topk_triton import search_triton

    with device_of(query):
        return search_triton(query, bank, parts, k, normalize, exclude)


@_search_index.register_fake
def _(
    query: Tensor,
    bank: Tensor,
    parts: Sequence[Tensor],
    k: int,
    normalize: bool,
    exclude: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _fake_result(query, k)
