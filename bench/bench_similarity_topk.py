"""`similarity_topk` next to what a user would run instead: a product and a top-k, whole or by
blocks.

On a CPU also faiss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from reid_kernels import BankIndex, similarity_topk, similarity_topk_reference
from torch import Tensor

#: Queries, bank rows, width, k. With as many queries as rows the bank is searched with itself.
SIZES = {
    "tiny": [(8, 64, 32, 3)],
    "small": [(2_000, 5_000, 512, 30)],
    "market": [(12_936, 12_936, 512, 30)],
    "msmt17": [(32_621, 32_621, 2_048, 30)],
    "million": [(1_024, 1_000_000, 2_048, 32)],
}
CHUNK = 256
#: Queries that are compared with float64.
COMPARED = 16

Found = tuple[Tensor, Tensor]


def make(
    device: str, dtype: str, queries: int, n: int, dim: int, k: int
) -> tuple[Tensor, Tensor, int]:
    bank, _ = harness.unit_rows(device, dtype, n, dim)
    places = torch.arange(queries, device=device) * (n // queries)
    return bank if queries == n else harness.near(bank, places), bank, k


def ours(query: Tensor, bank: Tensor, k: int) -> Found:
    return similarity_topk(query, bank, k, normalize=False)


def make_indexed(
    device: str, dtype: str, queries: int, n: int, dim: int, k: int
) -> tuple[Tensor, BankIndex, int]:
    query, bank, k = make(device, dtype, queries, n, dim, k)
    return query, BankIndex(bank, normalize=False), k


def indexed(query: Tensor, index: BankIndex, k: int) -> Found:
    return index.search(query, k)


def ours_ieee(query: Tensor, bank: Tensor, k: int) -> Found:
    return similarity_topk(query, bank, k, normalize=False, precision="ieee")


def eager(query: Tensor, bank: Tensor, k: int) -> Found:
    values, indices = (query @ bank.T).topk(k)
    return values, indices


def chunked(query: Tensor, bank: Tensor, k: int) -> Found:
    parts = [eager(some, bank, k) for some in query.split(CHUNK)]
    return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])


def chunked_compiled(query: Tensor, bank: Tensor, k: int) -> Found:
    block = harness.compiled(eager)
    parts = [block(some, bank, k) for some in query.split(CHUNK)]
    return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])


def faiss_flat(query: Tensor, bank: Tensor, k: int) -> Found:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.numpy())
    values, indices = index.search(query.numpy(), k)
    return torch.from_numpy(values), torch.from_numpy(indices)


FORMS: dict[str, Callable[..., Found]] = {
    "eager": eager,
    "eager, chunked": chunked,
    "compiled, chunked": chunked_compiled,
    "faiss": faiss_flat,
    "ours": ours,
    "ours, indexed": indexed,
    "ours, ieee": ours_ieee,
}


def work(
    device: str, dtype: str, form: str, queries: int, n: int, dim: int, k: int
) -> harness.Work:
    """Two operations for each query, row and column.

    Queries and bank are read (once, if they are the same), and 12 k bytes per query are written.
    """
    rows = n if queries == n else queries + n
    unit = dtype
    if form in ("ours", "ours, indexed"):
        ceilings = harness.peaks(device)
        unit = max("float32", "bfloat16", key=lambda name: ceilings[name])
    return harness.Work(
        2.0 * queries * n * dim,
        rows * dim * getattr(torch, dtype).itemsize + 12.0 * queries * k,
        unit,
    )


class Expected(NamedTuple):
    """Reference results of a problem.

    Args:
        values: Values of all queries by the operator.
        reference: Values of the first queries in float64.
        similarity: Similarities of the first queries in float64.
        error_of_eager: Eager's error on the first queries.
    """

    values: Tensor
    reference: Tensor
    similarity: Tensor
    error_of_eager: float


@functools.lru_cache(maxsize=1)
def expected(device: str, dtype: str, size: tuple[int, int, int, int]) -> Expected:
    query, bank, k = make(device, dtype, *size)
    some = query[:COMPARED]
    exact, rows = some.double(), bank.double()
    reference, _ = similarity_topk_reference(exact, rows, k, normalize=False)
    similarity = exact @ rows.T
    return Expected(
        ours(query, bank, k)[0],
        reference,
        similarity,
        error(eager(some, bank, k), reference, similarity),
    )


def error(found: Found, reference: Tensor, similarity: Tensor) -> float:
    """Error of the values, or of the similarities at the indices if it is larger."""
    values, indices = (part[:COMPARED] for part in found)
    gathered = similarity.gather(1, indices)
    return max(harness.relative_error(part, reference) for part in (values, gathered))


@pytest.mark.parametrize("form", FORMS)
def test_similarity_topk(
    benchmark: BenchmarkFixture, size: tuple[int, int, int, int], dtype: str, form: str, device: str
) -> None:
    if form == "faiss" and device == "cuda":
        pytest.skip("faiss-cpu runs on a CPU only")
    if form == "faiss":
        pytest.importorskip("faiss", reason="faiss is not installed")
    if form == "compiled, chunked":
        harness.need_compiler(device)
    queries, n, dim, k = size
    found = harness.measure_operator(
        benchmark,
        FORMS[form],
        harness.Inputs(make_indexed if form == "ours, indexed" else make, (dtype, *size)),
        device,
        operator="similarity_topk",
        form=form,
        size=f"{queries:,} x {n:,} x {dim:,}, k = {k}",
        dtype=dtype,
        work=work(device, dtype, form, *size),
    )
    wanted = expected(device, dtype, size)
    found_error = error(found, wanted.reference, wanted.similarity)
    harness.check(benchmark, found_error, wanted.error_of_eager, found[:1], [wanted.values])
