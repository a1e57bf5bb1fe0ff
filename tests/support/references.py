"""Slow float64 references, written only from the algorithm notes, to compare the library with.

They import nothing from the library and are not optimised: every function follows its section of
the notes step by step.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np


def _similarities(features: np.ndarray) -> np.ndarray:
    """Dot products of all pairs of rows, in float64."""
    rows = np.asarray(features, dtype=np.float64)
    return rows @ rows.T


def reference_neighbours(features: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest of each image (section 3 of the notes, step 1); shape (n, min(k, n)).

    The image itself is always first; the others follow by descending dot product, ties to the
    lowest index. Similarities are rounded to 12 decimals first, so that ties that are exact in real
    arithmetic stay ties.
    """
    rounded = np.round(_similarities(features), 12)
    n = len(rounded)
    neighbours = np.empty((n, min(k, n)), dtype=np.int64)
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: (-rounded[i, j], j))
        neighbours[i] = [i, *others][:k]
    return neighbours


def _reciprocal_sets(neighbours: np.ndarray, k: int) -> list[set[int]]:
    """R(i, k) of section 3 of the notes: the j in the first k of i with i in the first k of j."""
    lists = [{int(j) for j in row[:k]} for row in neighbours]
    return [{j for j in lists[i] if i in lists[j]} for i in range(len(lists))]


def reference_jaccard(features: np.ndarray, k1: int = 30, k2: int = 6) -> np.ndarray:
    """Return the dense k-reciprocal Jaccard distance of section 3 of the notes; shape (n, n).

    The half list has round(k1 / 2) + 1 columns (half to even) for the k1 that was asked for; every
    list, the one of length k2 too, is then cut at n.
    """
    similarity = _similarities(features)
    n = len(similarity)
    half_length = round(k1 / 2) + 1
    neighbours = reference_neighbours(features, n)
    full = _reciprocal_sets(neighbours, k1)
    half = _reciprocal_sets(neighbours, half_length)

    weights = np.zeros((n, n))
    for i in range(n):
        expanded = set(full[i])
        for q in full[i]:
            # |overlap| > 2/3 |half|, in whole numbers; always against the set before expansion.
            if 3 * len(half[q] & full[i]) > 2 * len(half[q]):
                expanded |= half[q]
        support = sorted(expanded)
        exponentials = np.exp(-(2.0 - 2.0 * similarity[i, support]))
        weights[i, support] = exponentials / exponentials.sum()

    averaged = np.array([weights[neighbours[i, :k2]].mean(axis=0) for i in range(n)])

    distance = np.empty((n, n))
    for i in range(n):
        overlap = np.minimum(averaged[i], averaged).sum(axis=1)
        distance[i] = np.maximum(1.0 - overlap / (2.0 - overlap), 0.0)
    return distance


def reference_dbscan(distance: np.ndarray, eps: float, min_samples: int = 4) -> np.ndarray:
    """Return DBSCAN labels as section 4 of the algorithm notes numbers them; noise is -1.

    A neighbour is at distance <= eps, and a point counts itself. Clusters are numbered by their
    lowest core index; a border point goes to the lowest-numbered cluster among its core neighbours.
    """
    distance = np.asarray(distance, dtype=np.float64)
    n = len(distance)
    neighbours = [{i} | {int(j) for j in np.flatnonzero(distance[i] <= eps)} for i in range(n)]
    core = [len(got) >= min_samples for got in neighbours]

    labels = np.full(n, -1, dtype=np.int64)
    clusters = 0
    for start in range(n):
        if not core[start] or labels[start] != -1:
            continue
        labels[start] = clusters
        pending = [start]
        while pending:
            for j in neighbours[pending.pop()]:
                if core[j] and labels[j] == -1:
                    labels[j] = clusters
                    pending.append(j)
        clusters += 1

    for i in range(n):
        if not core[i]:
            labels[i] = min((labels[j] for j in neighbours[i] if core[j]), default=-1)
    return labels


def reference_linkage(
    distance: np.ndarray,
    threshold: float,
    groups: np.ndarray | None = None,
    cannot_links: np.ndarray | None = None,
) -> tuple[np.ndarray, list[tuple[int, int, int, int, Fraction]]]:
    """Join the two groups with the greatest mean similarity, in fractions; O(n^5).

    The similarity of a pair is 1 - distance in multiples of 2^-32. Ties go to the lowest first
    group, then to the lowest second one, by their lowest images. Returns the labels (n,), and for
    each join both groups, their sizes and the mean similarity.
    """
    n = len(distance)
    similarity = np.rint((1.0 - np.asarray(distance, dtype=np.float64)) * 2**32).astype(np.int64)
    names = [-1] * n if groups is None else [int(g) for g in groups]
    members: dict[object, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(("single", i) if name == -1 else name, []).append(i)
    clusters = sorted(members.values())
    banned = np.zeros((n, n), dtype=bool)
    for a, b in np.zeros((0, 2), np.int64) if cannot_links is None else cannot_links:
        banned[a, b] = banned[b, a] = True
    least = Fraction(max(1, round(threshold * 2**32)), 2**32)

    joins = []
    while True:
        allowed = []
        for x, a in enumerate(clusters):
            for b in clusters[x + 1 :]:
                if not banned[np.ix_(a, b)].any():
                    total = int(similarity[np.ix_(a, b)].sum())
                    allowed.append((-Fraction(total, len(a) * len(b) * 2**32), a, b))
        best = min(allowed, default=None)
        if best is None or -best[0] < least:
            break
        mean, a, b = -best[0], best[1], best[2]
        joins.append((a[0], b[0], len(a), len(b), mean))
        clusters = sorted([c for c in clusters if c not in (a, b)] + [sorted(a + b)])

    labels = np.full(n, -1, dtype=np.int64)
    for number, cluster in enumerate(c for c in clusters if len(c) > 1):
        labels[cluster] = number
    return labels, joins


def _cluster_sets(labels: np.ndarray) -> list[frozenset[int]]:
    """The cluster of each image as a set of images; a noise image (-1) is a set of its own."""
    members: dict[int, set[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(int(label), set()).add(i)
    whole = {label: frozenset(got) for label, got in members.items()}
    return [frozenset({i}) if label == -1 else whole[int(label)] for i, label in enumerate(labels)]


def _one_minus_iou(a: frozenset[int], b: frozenset[int]) -> float:
    return 1.0 - len(a & b) / len(a | b)


def reference_self_paced(
    distance: np.ndarray,
    eps: float = 0.60,
    gap: float = 0.02,
    min_samples: int = 4,
    threshold: float | None = None,
) -> tuple[np.ndarray, float | None]:
    """Return the labels that pass the reliability test (section 4 of the notes), and the threshold.

    Without a threshold it is fixed here: the independence of the clusters with more than one member
    is sorted ascending and the element at position round(0.9 * count) is taken (half to even),
    clipped to the last valid index. If there is no such cluster it stays None. A given threshold is
    used and returned as it is.

    An image is kept iff its cluster's independence is at most the threshold and its own R_comp is
    at most its cluster's. Clusters with at least two kept images are renumbered 0, 1, ... in order
    of their lowest kept image; all other images are -1.
    """
    usual_labels = reference_dbscan(distance, eps, min_samples)
    usual = _cluster_sets(usual_labels)
    tight = _cluster_sets(reference_dbscan(distance, eps - gap, min_samples))
    loose = _cluster_sets(reference_dbscan(distance, eps + gap, min_samples))
    n = len(usual)

    r_indep = [_one_minus_iou(usual[i], loose[i]) for i in range(n)]
    r_comp = [_one_minus_iou(usual[i], tight[i]) for i in range(n)]
    clusters = [cluster for cluster in dict.fromkeys(usual) if len(cluster) > 1]
    indep = {cluster: min(r_indep[i] for i in cluster) for cluster in clusters}
    comp = {cluster: min(r_comp[i] for i in cluster) for cluster in clusters}

    labels = np.full(n, -1, dtype=np.int64)
    if not clusters:
        return labels, threshold
    if threshold is None:
        ordered = sorted(indep.values())
        threshold = ordered[min(round(0.9 * len(ordered)), len(ordered) - 1)]

    survivors = []
    for cluster in clusters:
        kept = sorted(
            i for i in cluster if indep[cluster] <= threshold and r_comp[i] <= comp[cluster]
        )
        if len(kept) >= 2:
            survivors.append(kept)
    for number, kept in enumerate(sorted(survivors)):
        labels[kept] = number
    return labels, threshold


def reference_ranking(
    similarity: np.ndarray,
    query_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_ids: np.ndarray,
    gallery_cameras: np.ndarray,
) -> dict[str, Any]:
    """Return mAP, mINP, cmc and skipped by the protocol of section 1 of the algorithm notes.

    Junk (id -1) and gallery images of the query's identity and camera are dropped; an unknown
    camera (-1) equals no camera. Equal similarities rank the lowest gallery index first. AP is the
    mean of the precision at each hit, the INP of a query its number of hits over the 1-based rank
    of the last one. A query without a match left, or with id -1, is skipped and counted. If every
    query is skipped, mAP, mINP and the curve are 0.
    """
    gallery = len(gallery_ids)
    average_precisions: list[float] = []
    inverse_penalties: list[float] = []
    first_hits = np.zeros(gallery)
    skipped = 0
    for q in range(len(query_ids)):
        kept = []
        for g in range(gallery):
            same_id = gallery_ids[g] == query_ids[q]
            same_camera = query_cameras[q] != -1 and gallery_cameras[g] == query_cameras[q]
            if gallery_ids[g] != -1 and not (same_id and same_camera):
                kept.append(g)
        kept.sort(key=lambda g: (-float(similarity[q][g]), g))
        hits = [rank for rank, g in enumerate(kept, start=1) if gallery_ids[g] == query_ids[q]]
        if query_ids[q] == -1 or not hits:
            skipped += 1
            continue
        average_precisions.append(
            sum(got / rank for got, rank in enumerate(hits, start=1)) / len(hits)
        )
        inverse_penalties.append(len(hits) / hits[-1])
        first_hits[hits[0] - 1] += 1
    ranked = len(average_precisions)
    return {
        "mAP": sum(average_precisions) / max(ranked, 1),
        "mINP": sum(inverse_penalties) / max(ranked, 1),
        "cmc": np.cumsum(first_hits) / max(ranked, 1),
        "skipped": skipped,
    }


def hand_ranking_case() -> tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]
]:
    """Return a small case of the protocol of section 1 of the algorithm notes, worked out by hand.

    The order is similarity, query ids, query cameras, gallery ids, gallery cameras, expected
    measures.
    """
    # Query 0 (id 1, camera 0): gallery 0 goes (same identity and camera), 3 goes (junk). Order 1 2
    # 5 4 7 6, hits at   ranks 1 and 4: AP = (1/1 + 2/4) / 2 = 3/4, INP = 2/4. Query 1 (id 2, camera
    # unknown): only 3 goes, for unknown equals no camera, not even the unknown one of gallery 5.
    # 1 and 5 tie at 0.6, so 1 comes first. Order 1 5 7 6 4 0 2, hits at ranks 2 and 7:   AP = (1/2
    # + 2/7) / 2 = 11/28, INP = 2/7. Query 2 (id 3, camera 2): its only match, gallery 6, has the
    # same camera: skipped. mAP = (21/28 + 11/28) / 2 = 4/7; mINP = (7/14 + 4/14) / 2 = 11/28; first
    # hits at ranks 1 and 2.
    similarity = np.array(
        [
            [0.95, 0.85, 0.80, 0.90, 0.30, 0.50, 0.10, 0.20],
            [0.20, 0.60, 0.10, 0.99, 0.30, 0.60, 0.40, 0.50],
            [0.10, 0.20, 0.30, 0.40, 0.50, 0.60, 0.90, 0.70],
        ]
    )
    query_ids = np.array([1, 2, 3])
    query_cameras = np.array([0, -1, 2])
    gallery_ids = np.array([1, 1, 2, -1, 1, 2, 3, 0])
    gallery_cameras = np.array([0, 1, 0, 1, 2, -1, 2, 1])
    expected = {
        "mAP": 4 / 7,
        "mINP": 11 / 28,
        "cmc": np.array([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        "skipped": 1,
    }
    return similarity, query_ids, query_cameras, gallery_ids, gallery_cameras, expected


def reference_pairs(labels: np.ndarray, identities: np.ndarray) -> tuple[float, float, float]:
    """Return pair precision, recall and F1 by brute force (section 5 of the notes).

    An image labelled -1 is unclustered and forms no predicted pair; identities are compared as they
    are. Without predicted pairs precision is 1, without true pairs recall is 1; F1 is 0 when both
    are 0.
    """
    predicted = true = both = 0
    for i in range(len(labels)):
        for j in range(i + 1, len(labels)):
            together = bool(labels[i] == labels[j] and labels[i] != -1)
            same = bool(identities[i] == identities[j])
            predicted += together
            true += same
            both += together and same
    precision = both / predicted if predicted else 1.0
    recall = both / true if true else 1.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return precision, recall, f1


def reference_clusters(
    labels: np.ndarray, identities: np.ndarray, cameras: np.ndarray | None = None
) -> tuple[float | None, ...]:
    """Return the scores of clusters by comparing every two images, in the order of `ClusterScores`.

    B-cubed precision, recall and F1, where an image labelled -1 is a cluster of one image; purity
    and completeness as means over the clusters of two or more images; recall of the pairs of one
    identity and two known cameras; share of the identities of two or more images that have more
    images than any other identity in some cluster of two or more. None where there is nothing to
    average.
    """
    n = len(labels)
    images = range(n)
    cluster = [
        {j for j in images if j == i or (labels[j] == labels[i] and labels[i] != -1)}
        for i in images
    ]
    person = [{j for j in images if identities[j] == identities[i]} for i in images]
    precisions = [len(cluster[i] & person[i]) / len(cluster[i]) for i in images]
    recalls = [len(cluster[i] & person[i]) / len(person[i]) for i in images]

    purities, completenesses, covered = [], [], set()
    for members in {frozenset(got) for got in cluster if len(got) > 1}:
        held = {int(identities[i]): len(members & person[i]) for i in members}
        totals = {int(identities[i]): len(person[i]) for i in members}
        most = max(held.values())
        frequent = [who for who, count in held.items() if count == most]
        purities.append(most / len(members))
        completenesses.append(max(most / totals[who] for who in frequent))
        if len(frequent) == 1:
            covered.add(frequent[0])
    several = {int(identities[i]) for i in images if len(person[i]) > 1}

    found = []
    if cameras is not None:
        for i in images:
            for j in person[i]:
                if i < j and -1 != cameras[i] != cameras[j] != -1:
                    found.append(float(j in cluster[i]))

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    precision, recall = mean(precisions), mean(recalls)
    f1 = 2 * precision * recall / (precision + recall) if precision and recall else None
    share = len(covered) / len(several) if several else None
    return precision, recall, f1, mean(purities), mean(completenesses), mean(found), share


def reference_instance_loss(
    features: np.ndarray,
    bank: np.ndarray,
    classes: np.ndarray,
    targets_class: np.ndarray,
    temperature: float,
) -> float:
    """Return the mean cross-entropy over the instance memory of section 4 of the algorithm notes.

    The logit of a class is the mean of f.v over its members, divided by the temperature; the
    softmax is over the classes that have members, and images with class -1 belong to none.
    """
    features = np.asarray(features, dtype=np.float64)
    bank = np.asarray(bank, dtype=np.float64)
    existing = sorted({int(c) for c in classes if c != -1})
    members = {c: [v for v, own in zip(bank, classes, strict=True) if own == c] for c in existing}
    losses = []
    for f, target in zip(features, targets_class, strict=True):
        logits = []
        for c in existing:
            products = [float(f @ v) for v in members[c]]
            logits.append(sum(products) / len(products) / temperature)
        greatest = max(logits)
        log_total = greatest + np.log(sum(np.exp(logit - greatest) for logit in logits))
        losses.append(log_total - logits[existing.index(int(target))])
    return float(np.mean(losses))


def reference_update(
    bank: np.ndarray, features: np.ndarray, rows: np.ndarray, momentum: float
) -> np.ndarray:
    """Return the memory after the momentum update (section 4 of the notes), as a new array.

    In batch order, v <- m v + (1 - m) f, brought to unit length before the next one, so a repeated
    row is updated repeatedly. A vector that comes out as zero stays zero.
    """
    updated = np.array(bank, dtype=np.float64)
    for f, row in zip(np.asarray(features, dtype=np.float64), rows, strict=True):
        mixed = momentum * updated[row] + (1.0 - momentum) * f
        length = np.sqrt((mixed**2).sum())
        updated[row] = mixed / length if length > 0 else mixed
    return updated


def reference_grouped_batchnorm(
    x: np.ndarray,
    group: int,
    weight: np.ndarray,
    bias: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return output, running mean and variance of the grouped BatchNorm (section 2 of the notes).

    Consecutive chunks of `group` images (axis 0) are normalised by their own mean and biased
    variance, each channel (axis 1, the other axes pooled). The last chunk absorbs a remainder
    smaller than `group`, and a batch smaller than `group` is one chunk. Running statistics follow
    chunk after chunk, with the unbiased variance.
    """
    x = np.asarray(x, dtype=np.float64)
    mean_now = np.array(running_mean, dtype=np.float64)
    var_now = np.array(running_var, dtype=np.float64)
    y = np.empty_like(x)
    chunks = max(len(x) // group, 1)
    for chunk in range(chunks):
        start = chunk * group
        stop = len(x) if chunk == chunks - 1 else start + group
        for c in range(x.shape[1]):
            values = x[start:stop, c]
            if values.size < 2:
                raise ValueError("a chunk needs at least two values per channel")
            mean = values.mean()
            squares = ((values - mean) ** 2).sum()
            normalised = (values - mean) / np.sqrt(squares / values.size + eps)
            y[start:stop, c] = float(weight[c]) * normalised + float(bias[c])
            mean_now[c] = (1.0 - momentum) * mean_now[c] + momentum * mean
            var_now[c] = (1.0 - momentum) * var_now[c] + momentum * squares / (values.size - 1)
    return y, mean_now, var_now


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def reference_standardised(rows: np.ndarray, cameras: np.ndarray, scale: bool) -> np.ndarray:
    """One camera after the other, straight from the docstring."""
    borrowed = 8
    everywhere = rows.mean(0)
    means = {}
    squares = {}
    for camera in np.unique(cameras):
        own = rows[cameras == camera]
        means[camera] = (own.sum(0) + borrowed * everywhere) / (len(own) + borrowed)
        squares[camera] = ((own - means[camera]) ** 2).sum(0)
    within = sum(squares.values()) / len(rows)
    alive = np.sqrt(within) > 1e-4 * np.sqrt(within.max())
    out = np.zeros_like(rows)
    for row, camera in enumerate(cameras):
        count = (cameras == camera).sum()
        deviation = np.sqrt((squares[camera] + borrowed * within) / (count + borrowed))
        out[row] = (rows[row] - means[camera]) * alive
        if scale:
            out[row] = np.where(alive, out[row] / np.where(alive, deviation, 1), 0)
        if not out[row].any():
            out[row] = rows[row]
    return _unit(out)


def reference_whitened(rows: np.ndarray, labels: np.ndarray, shrinkage: float) -> np.ndarray:
    """The mean of the clusters' covariances, inverted by its square root.

    The rows themselves where the images of each cluster are copies.
    """
    kept = [c for c in np.unique(labels) if c >= 0 and (labels == c).sum() > 1]
    if not kept:
        return rows
    within = np.mean([np.cov(rows[labels == c].T) for c in kept], axis=0)
    if np.trace(within) < 1e-12:
        return rows
    width = rows.shape[1]
    within = (1 - shrinkage) * within + shrinkage * np.trace(within) / width * np.eye(width)
    values, vectors = np.linalg.eigh(within)
    return _unit((rows - rows.mean(0)) @ (vectors / np.sqrt(values)) @ vectors.T)
