"""Retrieval quality: CMC, mAP and mINP under the single-gallery-shot protocol of Market-1501."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Similarities that exist at a time, in elements: 32 MiB of float32.
_BLOCK = 2**23


class Ranking(NamedTuple):
    """Shares in [0, 1] over the queries that have a match.

    Args:
        mAP: Mean average precision.
        mINP: Mean inverse negative penalty: true matches over the rank of the last one (Ye et al., TPAMI 2021).
        cmc: (ranks,) float64, share of queries whose first match stands at that rank or before.
        queries: Queries that were ranked.
        skipped: Queries without a match left in the gallery.
    """

    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    cmc: Tensor
    queries: int
    skipped: int

    def rank(self, k: int) -> float:
        """Rank-k accuracy."""
        return float(self.cmc[min(k, len(self.cmc)) - 1]) if len(self.cmc) else 0.0


def rank_gallery(
    query_features: Tensor,
    query_ids: Tensor,
    query_cameras: Tensor,
    gallery_features: Tensor,
    gallery_ids: Tensor,
    gallery_cameras: Tensor,
    *,
    ranks: int = 50,
) -> Ranking:
    """Rank the gallery for each query by dot product, and score the lists.

    For each query the gallery images of the same identity and camera are dropped, as is junk (identity -1); an unknown camera
    (-1) is never the same as another. Average precision is the mean of the precision at each match. Ties are broken by the
    lowest gallery index.

    Args:
        query_features: (q, D) float, unit rows, on any device.
        query_ids: (q,) int64.
        query_cameras: (q,) int64.
        gallery_features: (g, D) float, unit rows, on the same device.
        gallery_ids: (g,) int64.
        gallery_cameras: (g,) int64.
        ranks: Length of the CMC curve; the gallery's size when it is smaller.

    Returns:
        The scores; all 0 when no query has a match. Blocks of queries hold at most 32 MiB of similarities: MSMT17's
        11,659 x 82,161 takes 220 MB over the features (measured, D = 512), where the similarities alone are 3.8 GB.

    Raises:
        ValueError: Lengths or widths that do not go together, or features that are not finite.
    """
    _check(query_features, query_ids, query_cameras, gallery_features, gallery_ids, gallery_cameras)
    device = query_features.device
    gallery_ids, gallery_cameras = gallery_ids.to(device), gallery_cameras.to(device)
    rows = max(1, _BLOCK // max(1, len(gallery_features)))
    blocks = [
        _score(
            query_features[s : s + rows] @ gallery_features.T,
            query_ids[s : s + rows].to(device),
            query_cameras[s : s + rows].to(device),
            gallery_ids,
            gallery_cameras,
        )
        for s in range(0, len(query_features), rows)
    ]
    if not blocks:
        return Ranking(0.0, 0.0, torch.zeros(0, dtype=torch.float64), 0, 0)
    ap, inp, first = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    ranked = first > 0
    length = min(ranks, len(gallery_features))
    found = torch.bincount(first[ranked].clamp(max=length + 1), minlength=length + 2)[1 : length + 1]
    n = int(ranked.sum())
    cmc = found.cumsum(0).double().cpu() / max(n, 1)
    return Ranking(float(ap.sum()) / max(n, 1), float(inp.sum()) / max(n, 1), cmc, n, len(query_ids) - n)


def _score(
    similarity: Tensor, ids: Tensor, cameras: Tensor, gallery_ids: Tensor, gallery_cameras: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Average precision, inverse negative penalty and rank of the first match (0: none), each (q,)."""
    same = (ids[:, None] == gallery_ids) & (ids[:, None] >= 0)
    dropped = (gallery_ids < 0) | (same & (cameras[:, None] == gallery_cameras) & (cameras[:, None] >= 0))
    similarity.masked_fill_(dropped, -torch.inf)
    hit = same & ~dropped
    total = hit.sum(1)
    rows, columns = hit.nonzero(as_tuple=True)
    place = torch.arange(len(rows), device=rows.device) - (total.cumsum(0) - total)[rows]
    # Ranks of a query's matches side by side, infinite past its last one.
    ranks = torch.full(
        (len(ids), int(total.max()) if len(ids) else 0), torch.inf, dtype=torch.float64, device=ids.device
    )
    ranks[rows, place] = _ranks(similarity, rows, columns, place, ranks.shape[1]).double()
    ranks = ranks.sort(1).values
    precision = torch.arange(1, ranks.shape[1] + 1, device=ids.device) / ranks
    last = torch.where(ranks.isinf(), 0, ranks).amax(1) if ranks.shape[1] else total.double()
    first = torch.where(total > 0, ranks[:, 0], 0).long() if ranks.shape[1] else total
    return precision.sum(1) / total.clamp(min=1), total / last.clamp(min=1), first


def _ranks(similarity: Tensor, rows: Tensor, columns: Tensor, place: Tensor, most: int) -> Tensor:
    """The 1-based rank of each match: better ones, and equal ones at a lower index, counted instead of sorted.

    Only values are sorted, a fraction of the time and memory of an argsort.
    """
    value = similarity[rows, columns]
    padded = similarity.new_full((len(similarity), most), torch.inf)
    padded[rows, place] = value
    ascending = _sorted(similarity)
    not_better = torch.searchsorted(ascending, padded, right=True)[rows, place]
    tied = (not_better - torch.searchsorted(ascending, padded)[rows, place] > 1).nonzero()[:, 0]
    rank = similarity.shape[1] - not_better + 1
    for some in tied.split(int(max(1, _BLOCK // max(1, similarity.shape[1])))):
        before = torch.arange(similarity.shape[1], device=rows.device) < columns[some, None]
        rank[some] += ((similarity[rows[some]] == value[some, None]) & before).sum(1)
    return rank


def _sorted(values: Tensor) -> Tensor:
    """Rows ascending. On a CPU by NumPy, whose sort of plain values is several times as fast."""
    return values.sort(1).values if values.is_cuda else torch.from_numpy(np.sort(values.numpy(), axis=1))


def _check(qf: Tensor, qi: Tensor, qc: Tensor, gf: Tensor, gi: Tensor, gc: Tensor) -> None:
    for name, features, ids, cameras in (("query", qf, qi, qc), ("gallery", gf, gi, gc)):
        if features.ndim != 2 or ids.shape != features.shape[:1] or cameras.shape != features.shape[:1]:
            raise ValueError(
                f"{name}: found features {tuple(features.shape)}, ids {tuple(ids.shape)}, cameras {tuple(cameras.shape)}, "
                "wanted (m, D), (m,), (m,)"
            )
        bad = int((~torch.isfinite(features).all(1)).sum())
        if bad:
            raise ValueError(f"{name}_features: {bad} of {len(features)} rows are not finite")
    if qf.shape[1] != gf.shape[1]:
        raise ValueError(f"query_features have width {qf.shape[1]}, gallery_features {gf.shape[1]}; wanted the same")
