"""Ranking a gallery by counting, by sorting blocks and by sorting the whole matrix; re-ranking."""

from __future__ import annotations

import harness
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.metrics import rank_gallery, rerank_gallery

#: Queries, gallery images, width, cameras.
SIZES = {
    "tiny": [(10, 60, 16, 3)],
    "small": [(500, 3_000, 512, 6), (100, 900, 128, 6)],
    "market": [(3_368, 15_913, 512, 6)],
    "msmt17": [(11_659, 82_161, 2_048, 15)],
}
#: The most gallery images for forms that hold all pairs, or take minutes on the CPU.
WHOLE_UP_TO, DENSE_UP_TO = 20_000, 2_000
#: Similarities of a block of sorted rows.
BLOCK = 2**23
K1, K2, ORIGINAL = 20, 6, 0.3


def make(device: str, queries: int, gallery: int, dim: int, cameras: int) -> tuple[Tensor, ...]:
    features, identities = harness.unit_rows(device, "float32", queries + gallery, dim, exact=True)
    seen_by = torch.randint(
        cameras, (queries + gallery,), generator=torch.Generator().manual_seed(0)
    ).to(device)
    if device == "cuda":
        features[:64] @ features[:64].T  # starts cuBLAS, which is not part of the work
    # Copies: slices would share memory with the other side, which would be counted wrongly.
    split = (slice(None, queries), slice(queries, None))
    return tuple(part[side].clone() for side in split for part in (features, identities, seen_by))


def counted(qf: Tensor, qi: Tensor, qc: Tensor, gf: Tensor, gi: Tensor, gc: Tensor) -> float:
    return rank_gallery(qf, qi, qc, gf, gi, gc).mAP


def sorted_rows(qf: Tensor, qi: Tensor, qc: Tensor, gf: Tensor, gi: Tensor, gc: Tensor) -> float:
    """Sort whole rows, block by block, and search the matches in them; ties are not resolved."""
    found = []
    for start in range(0, len(qf), max(1, BLOCK // len(gf))):
        now = slice(start, start + max(1, BLOCK // len(gf)))
        similarity = qf[now] @ gf.T
        same = qi[now, None] == gi
        dropped = same & (qc[now, None] == gc)
        similarity.masked_fill_(dropped, -torch.inf)
        row, column = (same & ~dropped).nonzero(as_tuple=True)
        total = torch.bincount(row, minlength=len(similarity))
        place = torch.arange(len(row), device=row.device) - (total.cumsum(0) - total)[row]
        value = similarity.new_full((len(similarity), int(total.max())), torch.inf)
        value[row, place] = similarity[row, column]
        on_gpu = similarity.is_cuda
        ascending = (
            similarity.sort(1).values
            if on_gpu
            else torch.from_numpy(np.sort(similarity.numpy(), 1))
        )
        rank = (len(gf) - torch.searchsorted(ascending, value, right=True) + 1).double()
        rank = rank.masked_fill(value.isinf(), torch.inf).sort(1).values
        precision = (torch.arange(1, rank.shape[1] + 1, device=rank.device) / rank).sum(1)
        found.append((precision / total)[total > 0])
    return float(torch.cat(found).mean())


def whole_matrix(qf: Tensor, qi: Tensor, qc: Tensor, gf: Tensor, gi: Tensor, gc: Tensor) -> float:
    return average_precision((qf @ gf.T).cpu().numpy(), qi, qc, gi, gc)


def reranked(qf: Tensor, qi: Tensor, qc: Tensor, gf: Tensor, gi: Tensor, gc: Tensor) -> float:
    return rerank_gallery(qf, qi, qc, gf, gi, gc, k1=K1, k2=K2, original=ORIGINAL).mAP


def reranked_dense(qf: Tensor, qi: Tensor, qc: Tensor, gf: Tensor, gi: Tensor, gc: Tensor) -> float:
    """As published: distances of all pairs, divided by the greatest of their column."""
    rows = torch.cat([qf, gf])
    squared = (2 - 2 * (rows @ rows.T)).clamp_(min=0)
    distance = (squared / squared.amax(0)).T.cpu().numpy()
    # Sorted by distance, then by index; the row itself comes first.
    lists = np.argsort(distance - 2 * np.eye(len(rows), dtype=np.float32), axis=1, kind="stable")
    weights = np.zeros_like(distance)
    for i in range(len(rows)):
        members = reciprocal(lists, i, K1)
        parts = [members]
        for j in members:
            others = reciprocal(lists, j, round(K1 / 2))
            if 3 * np.isin(others, members).sum() > 2 * len(others):
                parts.append(others)
        members_expanded = np.unique(np.concatenate(parts))
        exponential = np.exp(-distance[i, members_expanded])
        weights[i, members_expanded] = exponential / exponential.sum()
    mean = torch.from_numpy(weights[lists[:, :K2]].mean(1))
    smaller = torch.stack(
        [torch.minimum(row, mean[len(qf) :]).sum(1) for row in mean[: len(qf)]]
    ).numpy()
    jaccard = 1 - smaller / (2 - smaller)
    final = (1 - ORIGINAL) * jaccard + ORIGINAL * distance[: len(qf), len(qf) :]
    return average_precision(-final, qi, qc, gi, gc)


def reciprocal(lists: np.ndarray, i: int, k: int) -> np.ndarray:
    members = lists[i, : k + 1]
    return members[(lists[members, : k + 1] == i).any(1)]


def average_precision(scores: np.ndarray, qi: Tensor, qc: Tensor, gi: Tensor, gc: Tensor) -> float:
    query_ids, query_cameras, gallery_ids, gallery_cameras = (
        t.cpu().numpy() for t in (qi, qc, gi, gc)
    )
    precisions = []
    for q in range(len(scores)):
        order = np.argsort(-scores[q], kind="stable")
        match = gallery_ids[order] == query_ids[q]
        hits = np.flatnonzero(match[~(match & (gallery_cameras[order] == query_cameras[q]))])
        if len(hits):
            precisions.append((np.arange(1, len(hits) + 1) / (hits + 1)).mean())
    return float(np.mean(precisions))


FORMS = {
    "ours": counted,
    "sorted": sorted_rows,
    "full matrix": whole_matrix,
    "ours, re-ranked": reranked,
    "published, re-ranked": reranked_dense,
}


@pytest.mark.parametrize("form", FORMS)
def test_ranking(
    benchmark: BenchmarkFixture,
    size: tuple[int, int, int, int],
    form: str,
    device: str,
    rounds: int,
) -> None:
    queries, gallery, dim, _ = size
    limit = {"full matrix": WHOLE_UP_TO, "published, re-ranked": DENSE_UP_TO}.get(form)
    if limit is not None and gallery > limit:
        pytest.skip(f"it takes minutes for more than {limit:,} images")
    again = "re-ranked" in form
    benchmark.group = f"{'re-ranking' if again else 'ranking'}, {queries:,} x {gallery:,} x {dim}"
    inputs = harness.Inputs(make, size)
    plain = form in ("ours", "sorted")
    found = harness.measure(
        benchmark, FORMS[form], inputs, device, n=gallery, dim=dim, rounds=rounds if plain else 1
    )
    benchmark.extra_info.update(queries=queries, mAP=found)
    if not again and form != "ours":
        # The forms order equal similarities differently.
        assert abs(found - counted(*make(device, *size))) < 1e-4
    if form == "published, re-ranked":
        assert abs(found - reranked(*make(device, *size))) < 0.03
