"""Exact search of a gallery whose index is made, beside faiss.

Making the index is not part of the time. Memory is that of the search alone. `BankIndex` also keeps
a copy of half the bank on a CPU with bfloat16 units, and faiss a copy of all of it.
"""

from __future__ import annotations

from typing import Any

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from reid_kernels import BankIndex
from torch import Tensor

#: Queries of a batch, gallery images, width, hits.
SIZES = {
    "tiny": [(4, 64, 32, 3)],
    "small": [(1, 100_000, 512, 10), (64, 100_000, 512, 10)],
    "msmt17": [(64, 82_161, 2_048, 10)],
    "million": [(1, 1_000_000, 512, 10), (64, 1_000_000, 512, 10)],
}


def make(device: str, queries: int, n: int, dim: int, k: int) -> tuple[Tensor, Tensor]:
    bank, _ = harness.unit_rows(device, "float32", n, dim)
    return harness.near(bank, torch.arange(queries, device=device) * (n // queries)), bank


def make_ours(device: str, *size: int) -> tuple[Tensor, Any, int]:
    query, bank = make(device, *size)
    return query, BankIndex(bank, normalize=False), size[-1]


def make_faiss(device: str, *size: int) -> tuple[Tensor, Any, int]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    query, bank = make(device, *size)
    index = faiss.IndexFlatIP(size[2])
    index.add(bank.numpy())
    return query, index, size[-1]


def make_product(device: str, *size: int) -> tuple[Tensor, Any, int]:
    return (*make(device, *size), size[-1])


def ours(query: Tensor, index: Any, k: int) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = index.search(query, k)
    return found


def faiss_flat(query: Tensor, index: Any, k: int) -> tuple[Tensor, Tensor]:
    values, rows = index.search(query.numpy(), k)
    return torch.from_numpy(values), torch.from_numpy(rows)


def product(query: Tensor, bank: Any, k: int) -> tuple[Tensor, Tensor]:
    values, rows = (query @ bank.T).topk(k)
    return values, rows


FORMS = {
    "ours": (make_ours, ours),
    "faiss": (make_faiss, faiss_flat),
    "product and top-k": (make_product, product),
}


@pytest.mark.parametrize("form", FORMS)
def test_search(
    benchmark: BenchmarkFixture,
    size: tuple[int, int, int, int],
    form: str,
    device: str,
    rounds: int,
) -> None:
    if form == "faiss" and device == "cuda":
        pytest.skip("faiss-cpu runs on a CPU only")
    if form == "faiss":
        pytest.importorskip("faiss", reason="faiss is not installed")
    queries, n, dim, k = size
    benchmark.group = f"search of {n:,} x {dim:,}, {queries} queries, {k} hits"
    prepare, call = FORMS[form]
    inputs = harness.Inputs(prepare, size)
    found = harness.measure(
        benchmark, call, inputs, device, n=n, dim=dim, rounds=max(3, rounds), warmup=1
    )
    benchmark.extra_info.update(queries=queries, hits=k, form=form)
    query, bank = make(device, *size)
    expected, _ = product(query, bank, k)
    assert torch.allclose(found[0], expected, atol=1e-5)
    assert torch.allclose((query[:, None] * bank[found[1]]).sum(2), expected, atol=1e-5)
