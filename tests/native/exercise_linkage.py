"""Average linkage in C++ against joining the best of all pairs of groups, in whole numbers."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np

UNIT = 2**32

Merge = tuple[int, int, int, int, int]


def run(module: ModuleType) -> None:
    """Graphs with ties, without edges, of several components, with initial groups and bans."""
    for seed, (n, edges) in enumerate(((0, 0), (1, 0), (30, 0), (12, 66), (40, 120), (50, 300))):
        for kind in (np.float32, np.float64):
            for levels in (3, 1000):
                check(module, seed, n, edges, levels, kind)
    check_components(module)


def check(module: ModuleType, seed: int, n: int, edges: int, levels: int, kind: type) -> None:
    random = np.random.default_rng(seed)
    i, j = np.triu_indices(n, 1)
    chosen = np.sort(random.permutation(len(i))[:edges])
    i, j = i[chosen], j[chosen]
    distances = (random.integers(0, levels + 1, len(i)) / levels).astype(kind)
    for threshold in (1, UNIT // 4, UNIT // 2, UNIT):
        for groups, bans in (
            (np.arange(n), np.zeros((0, 2), np.int64)),
            initial_groups(random, n, i, j),
        ):
            expected = joined(i, j, distances, groups, bans, threshold)
            for threads in (1, 4):
                got = merges(module, n, i, j, distances, groups, bans, threshold, threads)
                assert got == expected


def initial_groups(
    random: np.random.Generator, n: int, i: np.ndarray, j: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest image of each image's group, and pairs that lie in two of them."""
    names = np.where(random.random(n) < 0.3, random.integers(0, 3, n), 3 + np.arange(n))
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    groups = first[inverse] if n else np.arange(0)
    pairs = np.stack([i, j], 1)[random.random(len(i)) < 0.2]
    others = random.integers(0, max(1, n), (n // 4, 2))
    bans = np.concatenate([pairs, others])
    return groups, bans[groups[bans[:, 0]] != groups[bans[:, 1]]] if n else bans


def check_components(module: ModuleType) -> None:
    """Many components for several threads, whose merges are returned in one order."""
    random = np.random.default_rng(0)
    size, count = 6, 400
    i, j = np.triu_indices(size, 1)
    offsets = size * np.arange(count)[:, None]
    order = random.permutation(size * count)
    pairs = np.stack([order[(offsets + i).ravel()], order[(offsets + j).ravel()]], 1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    distances = random.integers(0, 9, len(pairs)) / 8
    n = size * count
    none = np.zeros((0, 2), np.int64)
    found = [
        merges(module, n, *pairs.T, distances, np.arange(n), none, UNIT // 3, threads)
        for threads in (1, 4)
    ]
    assert found[0] == found[1]
    keys = [(-Fraction(s, a * b), first, second) for first, second, a, b, s in found[0]]
    assert keys == sorted(keys)
    assert len(keys) > count


def merges(
    module: ModuleType,
    n: int,
    i: np.ndarray,
    j: np.ndarray,
    distances: np.ndarray,
    groups: np.ndarray,
    bans: np.ndarray,
    threshold: int,
    threads: int,
) -> list[Merge]:
    rows, columns = np.concatenate([i, j]), np.concatenate([j, i])
    by_row = np.lexsort((columns, rows))
    columns = columns[by_row].astype(np.int64)
    values = np.tile(distances, 2)[by_row].copy()
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]).astype(np.int64)
    groups, bans = groups.astype(np.int64), np.ascontiguousarray(bans, np.int64)
    double = values.dtype == np.float64
    form = module.average_linkage_float64 if double else module.average_linkage_float32
    found = form(
        indptr=indptr.ctypes.data,
        indices=columns.ctypes.data,
        distances=values.ctypes.data,
        n=n,
        groups=groups.ctypes.data,
        cannot_links=bans.ctypes.data,
        cannot_link_count=len(bans),
        threshold=threshold,
        threads=threads,
    )
    first, second, sums = (np.empty(found.count, np.int64) for _ in range(3))
    sizes = np.empty((found.count, 2), np.int64)
    found.write(*(x.ctypes.data for x in (first, second, sizes, sums)))
    columns_of = (first, second, sizes[:, 0], sizes[:, 1], sums)
    return list(zip(*(x.tolist() for x in columns_of), strict=True))


def joined(
    i: np.ndarray,
    j: np.ndarray,
    distances: np.ndarray,
    groups: np.ndarray,
    bans: np.ndarray,
    threshold: int,
) -> list[Merge]:
    """The best of all pairs again and again: few groups, so it may take cubic time."""
    members: dict[int, list[int]] = {}
    for image, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(image)
    units = np.rint((1 - distances.astype(np.float64)) * UNIT).astype(np.int64).tolist()
    sums: dict[tuple[int, int], int] = {}
    banned: set[tuple[int, int]] = set()
    for a, b, s in zip(groups[i].tolist(), groups[j].tolist(), units, strict=True):
        if a != b:
            pair = min(a, b), max(a, b)
            sums[pair] = sums.get(pair, 0) + s
    for a, b in groups[bans].tolist() if len(bans) else []:
        banned.add((min(a, b), max(a, b)))
    out = []
    while True:
        best = None
        for (a, b), s in sums.items():
            pairs = len(members[a]) * len(members[b])
            key = -Fraction(s, pairs), a, b
            if s >= threshold * pairs and (a, b) not in banned and (best is None or key < best):
                best = key
        if best is None:
            return out
        _, a, b = best
        out.append((a, b, len(members[a]), len(members[b]), sums[a, b]))
        members[a] += members.pop(b)
        sums = renamed(sums, a, b)
        banned = set(renamed(dict.fromkeys(banned, 0), a, b))


def renamed(sums: dict[tuple[int, int], int], a: int, b: int) -> dict[tuple[int, int], int]:
    """The sums after group b was joined to group a."""
    out: dict[tuple[int, int], int] = {}
    for pair, s in sums.items():
        low, high = sorted(a if group == b else group for group in pair)
        if low != high:
            out[low, high] = out.get((low, high), 0) + s
    return out
