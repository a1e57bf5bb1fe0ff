"""k-medoids on a GPU, against the CPU's."""

from __future__ import annotations

from types import ModuleType

import numpy as np


def run(module: ModuleType) -> None:
    """Clusters whose similarities fit in shared memory or not, some of which take just less than 48 KiB of it."""
    groups(module, [1, 2, 5, 33, 64, 9], 1)
    if module.cuda:
        for largest in (70, 74, 77, 79, 90):
            groups(module, [largest, 3, 20], 1)
        groups(module, [200, 30, 31], 2)


def groups(module: ModuleType, sizes: list[int], k_min: int) -> None:
    random = np.random.default_rng(sum(sizes))
    table, similarity = [], []
    at = point = medoid = way = every = 0
    for cluster, m in enumerate(sizes):
        k_max = max(k_min, int((m / 2) ** 0.5))
        rows = np.rint(random.normal(size=(m, 8)) * 16) / 64
        similarity.append((rows @ rows.T).ravel())
        table.append([at, m, k_max, cluster, point, medoid, way, every])
        at, point, medoid, way = at + m * m, point + m, medoid + k_max, way + k_max - k_min + 1
        every += (k_max * (k_max + 1) - k_min * (k_min - 1)) // 2
    blocks, values = np.array(table, np.int64), np.concatenate(similarity)
    common = values.ctypes.data, blocks.ctypes.data, len(sizes), k_min

    def room() -> list[np.ndarray]:
        whole = [np.zeros(count, np.int64) for count in (len(sizes), medoid, point)]
        return [*whole, np.zeros(way), np.zeros(way)]

    here, again = room(), room()
    for threads, out in ((1, here), (4, again)):
        module.kmedoids(*common, 0, *(x.ctypes.data for x in out), threads)
    assert all(np.array_equal(a, b) for a, b in zip(here, again, strict=True))
    if module.cuda:
        ways = np.array(
            [[c, k] for c, row in enumerate(table) for k in range(k_min, row[2] + 1)], np.int64
        )
        scratch, there = np.zeros(every, np.int64), room()
        most = int(blocks[:, 2].max())
        assert max(sizes) <= module.kmedoids_cuda_most(most)
        module.kmedoids_cuda(
            *common,
            ways.ctypes.data,
            len(ways),
            max(sizes),
            most,
            scratch.ctypes.data,
            *(x.ctypes.data for x in there),
            0,
        )
        for a, b in zip(here[:1] + here[2:], there[:1] + there[2:], strict=True):
            assert np.abs(a - b).max() <= (1e-9 if a.dtype == np.float64 else 0)
        for row, k in zip(table, here[0].tolist(), strict=True):
            assert np.array_equal(here[1][row[5] : row[5] + k], there[1][row[5] : row[5] + k])
