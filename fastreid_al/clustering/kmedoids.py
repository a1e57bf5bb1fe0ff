"""k-medoids by PAM: BUILD, then SWAP (Kaufman and Rousseeuw 1990).

`kmedoids` takes one similarity matrix, `kmedoids_many` all clusters of a clustering at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..arguments import as_features, as_ids, as_integer, as_tensor
from .csr import ranges

#: Sums that agree to this many decimals are ties: smaller differences are rounding errors. Ties go
#: to the lowest index, so that the result is the same on every machine.
_DECIMALS = 9
#: Scores that agree to this many decimals are ties, which go to the smallest k.
_SCORE_DECIMALS = 12
#: How far a matrix may be from symmetric, relative to its greatest value: products of rows are by
#: rounding.
_SYMMETRIC = 1e-4
#: Bytes of similarities, and of rows in float64, that are held at a time; more only if one cluster
#: needs more.
_BLOCK = 2**26


class KMedoids(NamedTuple):
    """Medoids (k,) int64 in the order in which they were found, and labels (m,) int64.

    The label of a point is the position of its medoid in `medoids`.
    """

    medoids: Tensor
    labels: Tensor


class Groupings(NamedTuple):
    """The best grouping of each of c clusters, on the CPU.

    Args:
        k: Number of groups of each cluster, (c,) int64.
        medoids: Rows of the medoids, k of each cluster, one cluster after the other: (k.sum(),)
            int64.
        labels: For each of `members` the position of its medoid among those of its cluster, int64.
        similarity: For each of `members` its similarity to its medoid, float64.
        scores: The score of every k from k_min to k_max, one cluster after the other, float64:
            (sum of k_max - k_min + 1,).
        totals: For the same k, the sum of the members' similarities to their most similar medoids,
            float64: (sum of k_max - k_min + 1,).
    """

    k: Tensor
    medoids: Tensor
    labels: Tensor
    similarity: Tensor
    scores: Tensor
    totals: Tensor


def kmedoids(similarity: Tensor, k: int, start: Sequence[int] | None = None) -> KMedoids:
    """Choose k medoids by PAM: a local maximum of the points' similarities to their medoids.

    BUILD adds one medoid after the other, each time the one that increases the sum most. SWAP
    exchanges a medoid for another point, the best exchange first, until no exchange helps. Ties go
    to the lowest index.

    Args:
        similarity: (m, m), symmetric, of any floating dtype; computed in float64.
        k: Number of medoids, 1 to m.
        start: k medoids from which SWAP starts; those of BUILD by default.

    Returns:
        The medoids, and each point's most similar one (ties to the first found; a medoid is its
        own). Takes about four arrays (m, m) in float64 while it runs: 32 MB at m = 1,000. Time is
        O(k m²) for BUILD and O(m²) for a swap.

    Raises:
        ValueError: k is outside [1, m], the matrix is not square, not symmetric or not finite, or
            `start` does not name k different points.
    """
    s = as_tensor("similarity", similarity, 2, "(m, m)").detach()
    if not s.is_floating_point():
        raise ValueError(f"similarity: got dtype {s.dtype}, expected a floating dtype")
    s = s.to("cpu", torch.float64).contiguous()  # (m, m)
    _check_similarity(s)
    m = len(s)
    k = as_integer("k", k)
    if not 1 <= k <= m:
        raise ValueError(f"k: got {k}, expected 1 to {m}, the number of points")
    first_medoids = None if start is None else _check_start(start, k, m)
    results = _Results.empty(clusters=1, medoids=k, members=m, scores=1, device="cpu")
    zero = torch.tensor([0])
    table = _Table(zero, torch.tensor([m]), torch.tensor([k]), zero, zero, zero, zero, zero)
    _group(s.view(-1), table, k, results, first_medoids)
    return KMedoids(results.medoids, results.labels)


def kmedoids_many(
    features: Tensor, indptr: Tensor, members: Tensor, k_max: Tensor | int, k_min: int = 2
) -> Groupings:
    """k-medoids of every cluster for every k from k_min to k_max, and the k of the greatest score.

    The result is that of `kmedoids` on the dot products of a cluster's rows, summed in float64, for
    all clusters in one call. BUILD runs once for k_max; its first k medoids start SWAP for k. The
    score of a grouping is sum_j comp_j * indep_j (UCAL, Eq. 4): comp_j is the least similarity
    inside group j, 1 for a single image (Eq. 2); indep_j is one minus the greatest similarity to an
    image of another group (Eq. 3), 1 if there is none. Similarities are clamped to [0, 1]. Of equal
    scores the smallest k is taken.

    It runs on the device of the features; on the CPU with `native.threads()` threads. The result
    does not depend on the number of threads.

    Args:
        features: (n, D) unit-norm rows of any floating dtype.
        indptr: (c + 1,) int64: the rows of cluster i are members[indptr[i]:indptr[i + 1]].
        members: (indptr[-1],) int64 rows of `features`.
        k_max: The most groups, (c,) int64 for each cluster or one number for all; from k_min to the
            cluster's size.
        k_min: The fewest groups, 1 or more.

    Returns:
        The groupings. The similarities of 64 MiB of clusters are held at a time, or of one larger
        cluster: all clusters of n = 32,621 (about 20 MiB), a part of those of n = 1e6. Time is
        O(k_max m²) for the BUILD of a cluster and O(m²) for a swap.

    Raises:
        ValueError: Shapes or dtypes disagree, `indptr` decreases, a member is not a row, a k is
            impossible, or a row of a cluster is not finite.
    """
    # Only the rows of clusters must be finite, which is checked by their products.
    features = as_features("features", features, finite=False)
    k_min = as_integer("k_min", k_min, 1)
    indptr, members, k_max = _checked(features, indptr, members, k_max, k_min)
    device = _grouping_device(features, indptr.diff(), k_max)
    members = members.to(device)
    table = _Table.of_clusters(indptr.to(device), k_max.to(device), k_min)
    results = _Results.of_table(table, k_min)
    similarity = torch.empty(len(members), dtype=torch.float64, device=device)
    for clusters in _batches(table.size.cpu()):
        batch = table.select(clusters.to(device))
        similarities, offsets = _dot_products(features, batch.label_offset, batch.size, members)
        similarities = similarities.to(device)
        # Similarities and scratch exist for one batch only, so their offsets are those inside the
        # batch.
        batch = batch._replace(
            similarity_offset=offsets, scratch_offset=_offsets(batch.scratch_size(k_min))
        )
        entries = batch.members()
        _check_finite(similarities[entries.diagonal()], members[entries.position])
        _group(similarities, batch, k_min, results)
        nearest = results.medoids[entries.medoid_offset + results.labels[entries.position]]
        similarity[entries.position] = similarities[entries.similarity_to(nearest)]
    return Groupings(
        k=results.k.cpu(),
        medoids=_medoid_rows(table, results, members).cpu(),
        labels=results.labels.cpu(),
        similarity=similarity.cpu(),
        scores=results.scores.cpu(),
        totals=results.totals.cpu(),
    )


def dot_products(features: Tensor, indptr: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Dot products of all pairs of rows of each cluster, summed in float64.

    Args:
        features: (n, D) rows of any floating dtype.
        indptr: (c + 1,) int64: the rows of cluster i are members[indptr[i]:indptr[i + 1]].
        members: (indptr[-1],) int64 rows of `features`.

    Returns:
        The matrices (m, m), one cluster after another in one dimension, float64; and the index at
        which each cluster's matrix begins, (c,) int64.
    """
    return _dot_products(features, indptr[:-1], indptr.diff(), members)


class _Members(NamedTuple):
    """One entry per member of the clusters of a batch, all int64: where its values lie.

    Args:
        position: Of the member in `members` and in `labels`.
        inside: Of the member inside its cluster.
        size: Of its cluster.
        similarity_offset: Where the similarities of its cluster begin.
        medoid_offset: Where the medoids of its cluster begin.
    """

    position: Tensor
    inside: Tensor
    size: Tensor
    similarity_offset: Tensor
    medoid_offset: Tensor

    def diagonal(self) -> Tensor:
        """Where each member's similarity to itself lies."""
        return self.similarity_to(self.inside)

    def similarity_to(self, other: Tensor) -> Tensor:
        """Where each member's similarity to another one lies, given by its index in the cluster."""
        return self.similarity_offset + other * self.size + self.inside


class _Table(NamedTuple):
    """Where the values of each cluster begin: columns (c,) int64.

    They are the fields of MedoidBlock in csrc/kmedoids.h, in the same order.

    Args:
        similarity_offset: Of size * size similarities.
        size: Number of members.
        k_max: The most groups.
        cluster: Index of the cluster.
        label_offset: Of size labels; the cluster's members begin there too.
        medoid_offset: Of k_max medoids, of which the best k are in use.
        score_offset: Of a total and a score for each k.
        scratch_offset: Of the medoids of every k; used on a GPU.
    """

    similarity_offset: Tensor
    size: Tensor
    k_max: Tensor
    cluster: Tensor
    label_offset: Tensor
    medoid_offset: Tensor
    score_offset: Tensor
    scratch_offset: Tensor

    @classmethod
    def of_clusters(cls, indptr: Tensor, k_max: Tensor, k_min: int) -> _Table:
        """All clusters. Offsets of similarities and scratch stay 0 until a batch is formed."""
        return cls(
            similarity_offset=torch.zeros_like(k_max),
            size=indptr.diff(),
            k_max=k_max,
            cluster=torch.arange(len(k_max), device=k_max.device),
            label_offset=indptr[:-1],
            medoid_offset=_offsets(k_max),
            score_offset=_offsets(k_max - k_min + 1),
            scratch_offset=torch.zeros_like(k_max),
        )

    def select(self, clusters: Tensor) -> _Table:
        """The rows of these clusters, in this order."""
        return _Table(*(column[clusters] for column in self))

    def scratch_size(self, k_min: int) -> Tensor:
        """Medoids of every k from k_min to k_max: k_min + ... + k_max."""
        return (self.k_max * (self.k_max + 1) - k_min * (k_min - 1)) // 2

    def members(self) -> _Members:
        """The members of the clusters, one cluster after the other."""
        rows = torch.arange(len(self.size), device=self.size.device)
        owner = rows.repeat_interleave(self.size)
        position = ranges(self.label_offset, self.size)
        return _Members(
            position=position,
            inside=position - self.label_offset[owner],
            size=self.size[owner],
            similarity_offset=self.similarity_offset[owner],
            medoid_offset=self.medoid_offset[owner],
        )


class _Results(NamedTuple):
    """Where results are written.

    Medoids are positions inside their cluster; there is room for k_max of each cluster.
    """

    k: Tensor
    medoids: Tensor
    labels: Tensor
    totals: Tensor
    scores: Tensor

    @classmethod
    def of_table(cls, table: _Table, k_min: int) -> _Results:
        return cls.empty(
            clusters=len(table.size),
            medoids=int(table.k_max.sum()),
            members=int(table.size.sum()),
            scores=int((table.k_max - k_min + 1).sum()),
            device=table.size.device,
        )

    @classmethod
    def empty(
        cls,
        *,
        clusters: int,
        medoids: int,
        members: int,
        scores: int,
        device: str | torch.device,
    ) -> _Results:
        return cls(
            k=torch.zeros(clusters, dtype=torch.int64, device=device),
            medoids=torch.zeros(medoids, dtype=torch.int64, device=device),
            labels=torch.zeros(members, dtype=torch.int64, device=device),
            totals=torch.zeros(scores, dtype=torch.float64, device=device),
            scores=torch.zeros(scores, dtype=torch.float64, device=device),
        )

    def addresses(self) -> list[int]:
        return [native.address(x) for x in self]


def _medoid_rows(table: _Table, results: _Results, members: Tensor) -> Tensor:
    """Rows of the features of the medoids in use, one cluster after the other."""
    cluster_start = table.label_offset.repeat_interleave(results.k)
    inside = results.medoids[ranges(table.medoid_offset, results.k)]
    return members[cluster_start + inside]


def _check_similarity(s: Tensor) -> None:
    if s.shape[0] != s.shape[1]:
        raise ValueError(f"similarity: got shape {tuple(s.shape)}, expected (m, m)")
    # The sum is one pass without a copy; only if it is not finite every value is tested.
    if not bool(torch.isfinite(s.sum())) and not bool(torch.isfinite(s).all()):
        row = _first(~torch.isfinite(s).all(1))
        raise ValueError(f"similarity: got a value in row {row} that is not finite")
    difference = float((s.tril(-1).mT - s.triu(1)).abs().max()) if len(s) else 0.0
    if len(s) and difference > _SYMMETRIC * max(1.0, float(s.abs().max())):
        raise ValueError(
            f"similarity: got s[i, j] and s[j, i] that differ by {difference:.3g}, "
            "expected a symmetric matrix"
        )


def _check_start(start: Sequence[int], k: int, m: int) -> Tensor:
    points = as_ids("start", start).tolist()
    if len(points) != k or len(set(points)) != k or not all(0 <= i < m for i in points):
        raise ValueError(f"start: got {points}, expected {k} different points")
    return torch.tensor(points)


def _checked(
    features: Tensor, indptr: Tensor, members: Tensor, k_max: Tensor | int, k_min: int
) -> tuple[Tensor, Tensor, Tensor]:
    """indptr, members and k_max on the CPU, after checks of all arguments of `kmedoids_many`."""
    indptr = as_ids("indptr", indptr, per="cluster, and the end").cpu().contiguous()
    members = as_ids("members", members, per="image of a cluster").cpu().contiguous()
    if len(indptr) == 0 or int(indptr[0]) != 0 or int(indptr[-1]) != len(members):
        raise ValueError(
            f"indptr: got {indptr[[0, -1]].tolist() if len(indptr) else []}, "
            f"expected 0 to {len(members)}"
        )
    sizes = indptr.diff()
    if bool((sizes < 0).any()):
        at = _first(sizes < 0)
        raise ValueError(
            f"indptr: got {int(indptr[at])} before {int(indptr[at + 1])}, expected ascending values"
        )
    outside = (members < 0) | (members >= len(features))
    if bool(outside.any()):
        raise ValueError(
            f"members: got {int(members[_first(outside)])}, expected 0 to {len(features) - 1}"
        )
    if isinstance(k_max, Tensor | np.ndarray | list | tuple) and np.ndim(k_max):
        most = as_ids("k_max", k_max, len(sizes), per="cluster").cpu()
    else:
        most = torch.full_like(sizes, as_integer("k_max", k_max))
    wrong = (most < k_min) | (most > sizes)
    if bool(wrong.any()):
        at = _first(wrong)
        raise ValueError(
            f"k_max: got {int(most[at])} for cluster {at}, "
            f"expected {k_min} to {int(sizes[at])}, its size"
        )
    return indptr, members, most.contiguous()


def _check_finite(squares: Tensor, rows: Tensor) -> None:
    if bool(torch.isfinite(squares.sum())):
        return
    bad = rows[~torch.isfinite(squares).cpu()]
    if len(bad):
        raise ValueError(f"features: got a value in row {int(bad.min())} that is not finite")


def _first(where: Tensor) -> int:
    return int(where.nonzero()[0, 0])


def _offsets(counts: Tensor) -> Tensor:
    """Where each of the consecutive ranges of these lengths begins."""
    return counts.cumsum(0) - counts


def _batches(sizes: Tensor) -> Iterator[Tensor]:
    """Clusters by falling size; one at least and at most `_BLOCK` bytes of similarities a batch."""
    order = sizes.argsort(descending=True, stable=True)
    ends = (8 * sizes[order] ** 2).cumsum(0)  # bytes of the similarities up to each cluster
    begin = 0
    before = 0
    while begin < len(order):
        end = max(begin + 1, int(torch.searchsorted(ends, before + _BLOCK, right=True)))
        yield order[begin:end]
        begin = end
        before = int(ends[end - 1])


def _dot_products(
    features: Tensor, first: Tensor, sizes: Tensor, members: Tensor
) -> tuple[Tensor, Tensor]:
    """`dot_products` of the clusters with members[first] to members[first + size - 1]."""
    features = features.detach()
    # By falling size, so that clusters of equal size lie next to each other and form one batch of
    # bmm.
    order = sizes.argsort(descending=True, stable=True)
    offsets = torch.empty_like(sizes)
    offsets[order] = _offsets(sizes[order] ** 2)
    out = torch.empty(int((sizes**2).sum()), dtype=torch.float64, device=features.device)
    compiled = (
        native.extension() is not None
        and features.device.type == "cpu"
        and features.is_contiguous()
        and features.dtype in (torch.float32, torch.float64)
    )
    if compiled:
        _dot_products_compiled(features, first, sizes, members, offsets, out)
    else:
        _dot_products_by_bmm(features, first, sizes, members, offsets, order, out)
    return out, offsets


def _dot_products_compiled(
    features: Tensor, first: Tensor, sizes: Tensor, members: Tensor, offsets: Tensor, out: Tensor
) -> None:
    module = native.extension()
    assert module is not None
    single = features.dtype == torch.float32
    form = module.dot_products_float32 if single else module.dot_products_float64
    first = first.contiguous()
    sizes = sizes.contiguous()
    form(
        native.address(features),
        features.shape[1],
        native.address(members),
        native.address(first),
        native.address(sizes),
        native.address(offsets),
        len(sizes),
        native.address(out),
        native.threads(),
    )


def _dot_products_by_bmm(
    features: Tensor,
    first: Tensor,
    sizes: Tensor,
    members: Tensor,
    offsets: Tensor,
    order: Tensor,
    out: Tensor,
) -> None:
    dim = features.shape[1]
    distinct, counts = sizes[order].unique_consecutive(return_counts=True)
    groups = order.split(counts.tolist())
    for size, clusters in zip(distinct.tolist(), groups, strict=True):
        inside = torch.arange(size, device=first.device)
        for batch in clusters.split(max(1, _BLOCK // (8 * max(1, size * dim)))):
            positions = (first[batch][:, None] + inside).view(-1)
            rows = features[members[positions].to(features.device)].double()
            rows = rows.view(len(batch), size, dim)  # (B, m, D)
            begin = int(offsets[batch[0]])
            matrices = out[begin : begin + len(batch) * size * size]
            torch.bmm(rows, rows.mT, out=matrices.view(len(batch), size, size))


def _grouping_device(features: Tensor, sizes: Tensor, k_max: Tensor) -> torch.device:
    """The GPU of the features if its kernels can process the largest cluster, else the CPU."""
    module = native.cuda_extension() if features.device.type == "cuda" else None
    if module is not None and len(sizes):
        with torch.cuda.device_of(features):
            if int(sizes.max()) <= module.kmedoids_cuda_max_points(int(k_max.max())):
                return features.device
    return torch.device("cpu")


def _group(
    similarities: Tensor,
    table: _Table,
    k_min: int,
    results: _Results,
    start: Tensor | None = None,
) -> None:
    """BUILD, SWAP, labels and scores of the clusters of the table; writes to `results`."""
    module = native.extension()
    if module is None:
        for c in range(len(table.size)):
            cluster = _Table(*(column[c] for column in table))
            _group_in_python(similarities.numpy(), cluster, k_min, results, start)
        return
    packed = torch.stack(table, dim=1)  # (c, 8) int64, rows of MedoidBlock
    common = (native.address(similarities), native.address(packed), len(packed), k_min)
    if similarities.device.type == "cpu":
        start_address = 0 if start is None else native.address(start)
        module.kmedoids(*common, start_address, *results.addresses(), native.threads())
        return
    # One task per cluster and k: (tasks, 2) int64.
    steps = table.k_max - k_min + 1
    rows = torch.arange(len(packed), device=packed.device).repeat_interleave(steps)
    tasks = torch.stack([rows, ranges(torch.full_like(steps, k_min), steps)], dim=1)
    task_medoids = torch.empty(int(tasks[:, 1].sum()), dtype=torch.int64, device=packed.device)
    with torch.cuda.device_of(similarities):
        module.kmedoids_cuda(
            *common,
            native.address(tasks),
            len(tasks),
            int(table.size.max()),
            int(table.k_max.max()),
            native.address(task_medoids),
            *results.addresses(),
            torch.cuda.current_stream().cuda_stream,
        )


def _group_in_python(
    similarities: np.ndarray, cluster: _Table, k_min: int, results: _Results, start: Tensor | None
) -> None:
    """`_group` of one cluster in NumPy; `cluster` holds one number for each column of the table."""
    m = int(cluster.size)
    k_max = int(cluster.k_max)
    offset = int(cluster.similarity_offset)
    s = similarities[offset : offset + m * m].reshape(m, m)
    built = _build(s, k_max) if start is None else start.tolist()
    groupings = []
    for k in range(k_min, k_max + 1):
        medoids = _swap(s, built[:k])
        labels = _assign(s, medoids)
        groupings.append((medoids, labels))
        at = int(cluster.score_offset) + k - k_min
        results.totals[at] = float(s[medoids].max(0).sum())
        results.scores[at] = _reliability(s, labels, k)
    first = int(cluster.score_offset)
    scores = results.scores[first : first + len(groupings)].numpy()
    best = int(np.round(scores, _SCORE_DECIMALS).argmax())
    medoids, labels = groupings[best]
    first_medoid = int(cluster.medoid_offset)
    first_label = int(cluster.label_offset)
    results.k[int(cluster.cluster)] = k_min + best
    results.medoids[first_medoid : first_medoid + len(medoids)] = torch.tensor(medoids)
    results.labels[first_label : first_label + m] = torch.from_numpy(labels)


def _build(s: np.ndarray, k: int) -> list[int]:
    """BUILD for k medoids; its first j medoids are those of BUILD for j."""
    medoids = [_first_max(s.sum(1))]
    best = s[medoids[0]].copy()
    for _ in range(1, k):
        gain = np.maximum(s - best, 0).sum(1)
        gain[medoids] = -1
        medoids.append(_first_max(gain))
        best = np.maximum(best, s[medoids[-1]])
    return medoids


def _swap(s: np.ndarray, start: list[int]) -> list[int]:
    """SWAP from these medoids."""
    medoids = list(start)
    before = list(start)
    reached = -np.inf
    while True:
        to_medoids = s[medoids]
        total_now = to_medoids.max(0).sum()
        # Where sums are large, the promised gain can be a rounding error. Undo such an exchange, or
        # the loop could repeat it for ever.
        if not total_now > reached:
            return before
        before = list(medoids)
        reached = total_now
        nearest = to_medoids.argmax(0)  # (m,)
        best = to_medoids.max(0)  # (m,)
        # Without its nearest medoid a point falls back to the second.
        second = (
            np.partition(to_medoids, -2, axis=0)[-2]
            if len(medoids) > 1
            else np.full(len(s), -np.inf)
        )
        # total[i, p]: the sum if medoid p is exchanged for point i. FastPAM's decomposition: add
        # point i first, then subtract what the points of medoid p lose when they fall back to point
        # i or to their second medoid.
        kept = np.maximum(s, best)  # (m, m)
        lost = np.maximum(s, second) - kept  # (m, m)
        total = kept.sum(1)[:, None] + lost @ np.eye(len(medoids))[nearest]
        total[medoids] = -np.inf
        point, replaced = divmod(_first_max(total.ravel()), len(medoids))
        if not total[point, replaced] > total_now + 10.0**-_DECIMALS:
            return medoids
        medoids[replaced] = point


def _assign(s: np.ndarray, medoids: list[int]) -> np.ndarray:
    """Each point's most similar medoid; a medoid is its own, even if another one is as similar."""
    labels = s[medoids].argmax(0)
    labels[medoids] = np.arange(len(medoids))
    return labels


def _reliability(similarity: np.ndarray, groups: np.ndarray, k: int) -> float:
    """The score of a grouping: the sum of comp * indep over its groups (UCAL, Eq. 4)."""
    s = similarity.clip(0, 1)
    total = 0.0
    for j in range(k):
        inside = groups == j
        rows = s[inside]
        compactness = rows[:, inside].min() if inside.sum() > 1 else 1.0
        total += compactness * (1 - rows[:, ~inside].max(initial=0.0))
    return total


def _first_max(values: np.ndarray) -> int:
    return int(np.round(values, _DECIMALS).argmax())
