"""k-medoids by PAM: BUILD, then SWAP (Kaufman and Rousseeuw 1990), of one similarity matrix or of many clusters at once."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import native
from .csr import ranges

#: Sums that differ by less are ties: they are rounding, and ties go to the lowest index on every machine.
_DECIMALS = 9
#: Scores likewise.
_SCORE_DECIMALS = 12
#: How far a matrix may be from symmetric, by its greatest value: products of rows are, by their rounding.
_SYMMETRIC = 1e-4
#: Bytes of similarities, and of rows in float64, that are held at a time; more only for one cluster that needs more.
_BLOCK = 2**26


class KMedoids(NamedTuple):
    """Medoids (k,) int64, in the order in which they were found, and the place of each point's medoid among them (m,) int64."""

    medoids: Tensor
    labels: Tensor


class Groupings(NamedTuple):
    """The best grouping of each of c clusters, on the CPU.

    Args:
        k: Number of groups of each cluster, (c,) int64.
        medoids: Rows of their medoids, k of each cluster, one cluster after the other: (k.sum(),) int64.
        labels: For each of `members` the place of its medoid among its cluster's, int64.
        similarity: For each of `members` its similarity to its medoid, float64.
        scores: Of every k from k_min to k_max, one cluster after the other: (sum of k_max - k_min + 1,) float64.
        totals: Sums of the members' similarities to their most similar medoids, likewise.
    """

    k: Tensor
    medoids: Tensor
    labels: Tensor
    similarity: Tensor
    scores: Tensor
    totals: Tensor


def kmedoids(similarity: Tensor, k: int, start: Sequence[int] | None = None) -> KMedoids:
    """Choose k points such that the sum of each point's similarity to its nearest of them is a local maximum (PAM).

    BUILD adds one medoid after the other, each the one that lifts the sum most; SWAP exchanges a medoid for another point, the
    best exchange first, until none helps. Ties go to the lowest index.

    Args:
        similarity: (m, m), symmetric, of any floating type; computed in float64.
        k: Number of medoids, 1 to m.
        start: k medoids to begin SWAP from; BUILD's when not given.

    Returns:
        The medoids, and each point's most similar one (ties to the first found; a medoid is its own).
        Some four arrays (m, m) in float64 while it runs: 32 MB at m = 1,000. O(k m²) time for BUILD and O(m²) for a swap.

    Raises:
        ValueError: k is outside [1, m], the matrix is not square, not symmetric or not finite, or `start` does not name k
            different points.
    """
    s = similarity.detach().to("cpu", torch.float64).contiguous()
    if s.ndim != 2 or s.shape[0] != s.shape[1]:
        raise ValueError(f"similarity: got shape {tuple(s.shape)}, expected (m, m)")
    m = len(s)
    if not 1 <= k <= m:
        raise ValueError(f"k: got {k}, expected 1 to {m}, the number of points")
    if not bool(torch.isfinite(s.sum())) and not bool(torch.isfinite(s).all()):
        raise ValueError(
            f"similarity: found a value in row {_first(~torch.isfinite(s).all(1))} that is not finite"
        )
    lower, upper = s.tril(-1).mT, s.triu(1)
    off = float((lower - upper).abs().max()) if m else 0.0
    if off > _SYMMETRIC * max(1.0, float(s.abs().max())):
        raise ValueError(
            f"similarity: got values that differ by {off:.3g} from those across, expected a symmetric matrix"
        )
    start = None if start is None else [operator.index(i) for i in start]
    if start is not None and (
        len(start) != k or len(set(start)) != k or not all(0 <= i < m for i in start)
    ):
        raise ValueError(f"start: got {start}, expected {k} different points")
    found = _Found.of(1, k, m, 1, "cpu")
    table = torch.tensor([[0, m, k, 0, 0, 0, 0, 0]])
    _group(s.view(-1), table, k, found, None if start is None else torch.tensor(start))
    return KMedoids(found.medoids, found.labels)


def kmedoids_many(
    features: Tensor, indptr: Tensor, members: Tensor, k_max: Tensor | int, k_min: int = 2
) -> Groupings:
    """k-medoids of every cluster for every k from k_min to its k_max, and the k whose grouping is worth most.

    What `kmedoids` finds on the dot products of a cluster's rows, summed in float64, for all clusters in one call: the first k
    medoids of one BUILD start SWAP for each k. A grouping is worth sum_j comp_j * indep_j (Eq. 4 of UCAL), with comp_j the
    least similarity inside group j, 1 for a single image (Eq. 2), and indep_j one minus the greatest similarity to an image of
    another group (Eq. 3; 1 when there is none); similarities are clamped to [0, 1]. The smallest of equal k is taken.

    It runs where the features are; on the CPU with `native.threads()` threads, on which no result depends.

    Args:
        features: (n, D) unit rows of any floating type.
        indptr: (c + 1,) int64: the rows of cluster i are members[indptr[i]:indptr[i + 1]].
        members: (indptr[-1],) int64 rows of `features`.
        k_max: The most groups of each cluster, (c,) int64, or of all of them; from k_min to the cluster's size.
        k_min: The fewest groups, 1 or more.

    Returns:
        The groupings. Similarities of 64 MiB of clusters, or of the largest alone, are held at a time: all clusters of
        n = 32,621 images (some 20 MiB), some of n = 1e6. Time is O(k_max m²) for a cluster's BUILD and O(m²) a swap.

    Raises:
        ValueError: Shapes or dtypes disagree, `indptr` falls, a member is no row, a k is impossible, or a row of a cluster is
            not finite.
    """
    indptr, members, k_max = _checked(features, indptr, members, k_max, k_min)
    device = _place(features, indptr.diff(), k_max)
    indptr, members, k_max = (x.to(device) for x in (indptr, members, k_max))
    first, sizes, ways = indptr[:-1], indptr.diff(), k_max - k_min + 1
    count, medoid, every = (
        len(sizes),
        _starts(k_max),
        (k_max * (k_max + 1) - k_min * (k_min - 1)) // 2,
    )
    found = _Found.of(count, int(k_max.sum()), len(members), int(ways.sum()), device)
    similarity = torch.empty(len(members), dtype=torch.float64, device=device)
    clusters = torch.arange(count, device=device)
    table = torch.stack([sizes, sizes, k_max, clusters, first, medoid, _starts(ways), every], dim=1)
    for some in _groups(sizes.cpu()):
        some = some.to(device)
        part = table[some]
        blocks, part[:, 0] = _dot_products(features, first[some], sizes[some], members)
        part[:, 7] = _starts(every[some])
        blocks = blocks.to(device)
        owner = torch.arange(len(some), device=device).repeat_interleave(sizes[some])
        points = ranges(first[some], sizes[some])
        offset, size, inside = part[owner, 0], part[owner, 1], points - part[owner, 4]
        _must_be_finite(blocks[offset + inside * (size + 1)], members[points])
        _group(blocks, part, k_min, found)
        similarity[points] = blocks[
            offset + found.medoids[part[owner, 5] + found.labels[points]] * size + inside
        ]
    rows = members[first.repeat_interleave(found.k) + found.medoids[ranges(medoid, found.k)]]
    return Groupings(
        *(x.cpu() for x in (found.k, rows, found.labels, similarity, found.scores, found.totals))
    )


def dot_products(features: Tensor, indptr: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Dot products of all pairs of a cluster's rows, (m, m) float64 one after another, and where each cluster's begin (c,)."""
    return _dot_products(features, indptr[:-1], indptr.diff(), members)


class _Found(NamedTuple):
    """Where results are written: `medoids` has room for k_max places inside a cluster."""

    k: Tensor
    medoids: Tensor
    labels: Tensor
    totals: Tensor
    scores: Tensor

    @classmethod
    def of(
        cls, clusters: int, medoids: int, members: int, ways: int, device: str | torch.device
    ) -> _Found:
        whole = (
            torch.zeros(n, dtype=torch.int64, device=device) for n in (clusters, medoids, members)
        )
        return cls(
            *whole, *(torch.zeros(ways, dtype=torch.float64, device=device) for _ in range(2))
        )

    def addresses(self) -> list[int]:
        return [native.address(x) for x in self]


def _checked(
    features: Tensor, indptr: Tensor, members: Tensor, k_max: Tensor | int, k_min: int
) -> tuple[Tensor, Tensor, Tensor]:
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(
            f"features: got {tuple(features.shape)} {features.dtype}, expected floating rows (n, D)"
        )
    for name, x in (("indptr", indptr), ("members", members)):
        if x.ndim != 1 or x.dtype != torch.int64:
            raise ValueError(
                f"{name}: got {tuple(x.shape)} {x.dtype}, expected one dimension of int64"
            )
    indptr, members = indptr.cpu().contiguous(), members.cpu().contiguous()
    if len(indptr) == 0 or int(indptr[0]) != 0 or int(indptr[-1]) != len(members):
        raise ValueError(
            f"indptr: got {indptr[[0, -1]].tolist() if len(indptr) else []}, expected 0 to {len(members)}"
        )
    sizes = indptr.diff()
    if bool((sizes < 0).any()):
        at = _first(sizes < 0)
        raise ValueError(
            f"indptr: got {int(indptr[at])} before {int(indptr[at + 1])}, expected no falling value"
        )
    outside = (members < 0) | (members >= len(features))
    if bool(outside.any()):
        raise ValueError(
            f"members: got {int(members[_first(outside)])}, expected 0 to {len(features) - 1}"
        )
    if k_min < 1:
        raise ValueError(f"k_min: got {k_min}, expected 1 or more")
    most = k_max.cpu() if isinstance(k_max, Tensor) else torch.full_like(sizes, k_max)
    if most.shape != sizes.shape or most.dtype != torch.int64:
        raise ValueError(
            f"k_max: got {tuple(most.shape)} {most.dtype}, expected ({len(sizes)},) int64"
        )
    wrong = (most < k_min) | (most > sizes)
    if bool(wrong.any()):
        at = _first(wrong)
        raise ValueError(
            f"k_max: got {int(most[at])} for cluster {at}, expected {k_min} to {int(sizes[at])}, its size"
        )
    return indptr, members, most.contiguous()


def _must_be_finite(squares: Tensor, rows: Tensor) -> None:
    if not bool(torch.isfinite(squares.sum())):
        bad = rows[~torch.isfinite(squares).cpu()]
        if len(bad):
            raise ValueError(f"features: found a value in row {int(bad.min())} that is not finite")


def _first(where: Tensor) -> int:
    return int(where.nonzero()[0, 0])


def _starts(counts: Tensor) -> Tensor:
    """The first of so many places each, one after the other."""
    return counts.cumsum(0) - counts


def _groups(sizes: Tensor) -> Iterator[Tensor]:
    """Clusters by falling size, as many at a time as `_BLOCK` bytes hold."""
    order = sizes.argsort(descending=True, stable=True)
    ends = (8 * sizes[order] ** 2).cumsum(0)
    begin, before = 0, 0
    while begin < len(order):
        end = max(begin + 1, int(torch.searchsorted(ends, before + _BLOCK, right=True)))
        yield order[begin:end]
        begin, before = end, int(ends[end - 1])


def _dot_products(
    features: Tensor, first: Tensor, sizes: Tensor, members: Tensor
) -> tuple[Tensor, Tensor]:
    features = features.detach()
    order = sizes.argsort(descending=True, stable=True)
    offsets = torch.empty_like(sizes)
    offsets[order] = _starts(sizes[order] ** 2)
    out = torch.empty(int((sizes**2).sum()), dtype=torch.float64, device=features.device)
    module = native.extension()
    if (
        module is not None
        and features.device.type == "cpu"
        and features.is_contiguous()
        and features.dtype in (torch.float32, torch.float64)
    ):
        arrays = [
            native.address(x) for x in (members, first.contiguous(), sizes.contiguous(), offsets)
        ]
        single = features.dtype == torch.float32
        module.dot_products(
            native.address(features),
            single,
            features.shape[1],
            *arrays,
            len(sizes),
            native.address(out),
            native.threads(),
        )
        return out, offsets
    # One batch for clusters of equal size, which lie side by side.
    for size, many in zip(
        *(x.tolist() for x in sizes[order].unique_consecutive(return_counts=True)), strict=True
    ):
        now, order = order[:many], order[many:]
        for some in now.split(max(1, _BLOCK // (8 * max(1, size * features.shape[1])))):
            where = (first[some][:, None] + torch.arange(size, device=first.device)).view(-1)
            rows = (
                features[members[where].to(features.device)]
                .double()
                .view(len(some), size, features.shape[1])
            )
            begin = int(offsets[some[0]])
            torch.bmm(
                rows,
                rows.mT,
                out=out[begin : begin + len(some) * size * size].view(len(some), size, size),
            )
    return out, offsets


def _place(features: Tensor, sizes: Tensor, k_max: Tensor) -> torch.device:
    """Where the clusters are grouped: on the GPU that has the features, if the extension has kernels for the largest there."""
    module = native.cuda_extension() if features.device.type == "cuda" else None
    if module is not None and len(sizes):
        with torch.cuda.device_of(features):
            if int(sizes.max()) <= module.kmedoids_cuda_most(int(k_max.max())):
                return features.device
    return torch.device("cpu")


def _group(
    blocks: Tensor, table: Tensor, k_min: int, found: _Found, start: Tensor | None = None
) -> None:
    """BUILD, SWAP, labels and scores of the clusters whose places `table` holds (MedoidBlock in csrc/kmedoids.h)."""
    module = native.extension()
    common = (native.address(blocks), native.address(table), len(table), k_min)
    if module is None:
        for row in table.tolist():
            _group_in_python(
                blocks.numpy(), row, k_min, found, None if start is None else start.tolist()
            )
    elif blocks.device.type == "cpu":
        begin = 0 if start is None else native.address(start)
        module.kmedoids(*common, begin, *found.addresses(), native.threads())
    else:
        k_max = table[:, 2]
        numbers = torch.arange(len(table), device=table.device).repeat_interleave(k_max - k_min + 1)
        ways = torch.stack(
            [numbers, ranges(torch.full_like(k_max, k_min), k_max - k_min + 1)], dim=1
        )
        every = torch.empty(int(ways[:, 1].sum()), dtype=torch.int64, device=table.device)
        largest, most = int(table[:, 1].max()), int(k_max.max())
        with torch.cuda.device_of(blocks):
            module.kmedoids_cuda(
                *common,
                native.address(ways),
                len(ways),
                largest,
                most,
                native.address(every),
                *found.addresses(),
                torch.cuda.current_stream().cuda_stream,
            )


def _group_in_python(
    blocks: np.ndarray, row: list[int], k_min: int, found: _Found, start: list[int] | None
) -> None:
    offset, m, k_max, cluster, point, medoid, way, _ = row
    s = blocks[offset : offset + m * m].reshape(m, m)
    built = _build(s, k_max) if start is None else start
    groupings = []
    for w, k in enumerate(range(k_min, k_max + 1)):
        medoids = _swap(s, built[:k])
        labels = _assign(s, medoids)
        groupings.append((medoids, labels))
        found.totals[way + w] = float(s[medoids].max(0).sum())
        found.scores[way + w] = _reliability(s, labels, k)
    scores = found.scores[way : way + len(groupings)].numpy()
    best = int(np.round(scores, _SCORE_DECIMALS).argmax())
    medoids, labels = groupings[best]
    found.k[cluster] = k_min + best
    found.medoids[medoid : medoid + len(medoids)] = torch.tensor(medoids)
    found.labels[point : point + m] = torch.from_numpy(labels)


def _build(s: np.ndarray, k: int) -> list[int]:
    """BUILD for k medoids; its first j are BUILD for j."""
    medoids = [_first_max(s.sum(1))]
    best = s[medoids[0]].copy()
    for _ in range(1, k):
        gain = np.maximum(s - best, 0).sum(1)
        gain[medoids] = -1
        medoids.append(_first_max(gain))
        best = np.maximum(best, s[medoids[-1]])
    return medoids


def _swap(s: np.ndarray, start: list[int]) -> list[int]:
    medoids, before, reached = list(start), list(start), -np.inf
    while True:
        to_medoids = s[medoids]
        total_now = to_medoids.max(0).sum()
        # Where sums are large, what their rounding promised is no gain: without this it could go round for ever.
        if not total_now > reached:
            return before
        before, reached = list(medoids), total_now
        nearest = to_medoids.argmax(0)
        best = to_medoids.max(0)
        # Without its nearest medoid a point falls back to the second.
        second = (
            np.partition(to_medoids, -2, axis=0)[-2]
            if len(medoids) > 1
            else np.full(len(s), -np.inf)
        )
        kept = np.maximum(s, best)
        lost = np.maximum(s, second) - kept
        # total[i, p]: the sum when the medoid at place p is exchanged for point i (FastPAM's decomposition).
        total = kept.sum(1)[:, None] + lost @ np.eye(len(medoids))[nearest]
        total[medoids] = -np.inf
        point, place = divmod(_first_max(total.ravel()), len(medoids))
        if not total[point, place] > total_now + 10.0**-_DECIMALS:
            return medoids
        medoids[place] = point


def _assign(s: np.ndarray, medoids: list[int]) -> np.ndarray:
    labels = s[medoids].argmax(0)
    labels[medoids] = np.arange(len(medoids))
    return labels


def _reliability(similarity: np.ndarray, groups: np.ndarray, k: int) -> float:
    """Eq. 4: the sum of comp * indep over groups."""
    s = similarity.clip(0, 1)
    total = 0.0
    for j in range(k):
        inside = groups == j
        own = s[inside]
        compactness = own[:, inside].min() if inside.sum() > 1 else 1.0
        total += compactness * (1 - own[:, ~inside].max(initial=0.0))
    return total


def _first_max(values: np.ndarray) -> int:
    return int(np.round(values, _DECIMALS).argmax())
