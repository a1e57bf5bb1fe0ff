"""k-medoids for several numbers of threads, and on a GPU against the CPU."""

from __future__ import annotations

from types import ModuleType

import numpy as np


def run(module: ModuleType) -> None:
    """Clusters whose similarities fit in shared memory or not; some take just less than 48 KiB."""
    groups(module, [1, 2, 5, 33, 64, 9], 1)
    if module.cuda:
        for largest in (70, 74, 77, 79, 90):
            groups(module, [largest, 3, 20], 1)
        groups(module, [200, 30, 31], 2)


def groups(module: ModuleType, sizes: list[int], k_min: int) -> None:
    random = np.random.default_rng(sum(sizes))
    table, similarity = [], []
    similarity_offset = label_offset = medoid_offset = score_offset = scratch_offset = 0
    for cluster, m in enumerate(sizes):
        k_max = max(k_min, int((m / 2) ** 0.5))
        rows = np.rint(random.normal(size=(m, 8)) * 16) / 64
        similarity.append((rows @ rows.T).ravel())
        # The columns of MedoidBlock in csrc/kmedoids.h.
        table.append(
            [
                similarity_offset,
                m,
                k_max,
                cluster,
                label_offset,
                medoid_offset,
                score_offset,
                scratch_offset,
            ]
        )
        similarity_offset += m * m
        label_offset += m
        medoid_offset += k_max
        score_offset += k_max - k_min + 1
        scratch_offset += (k_max * (k_max + 1) - k_min * (k_min - 1)) // 2
    blocks, values = np.array(table, np.int64), np.concatenate(similarity)
    common = values.ctypes.data, blocks.ctypes.data, len(sizes), k_min

    def empty_results() -> list[np.ndarray]:
        """k, medoids, labels, totals and scores."""
        counts = (len(sizes), medoid_offset, label_offset)
        integers = [np.zeros(count, np.int64) for count in counts]
        return [*integers, np.zeros(score_offset), np.zeros(score_offset)]

    cpu = empty_results()
    cpu_threads = empty_results()
    for threads, out in ((1, cpu), (4, cpu_threads)):
        module.kmedoids(*common, 0, *(x.ctypes.data for x in out), threads)
    assert all(np.array_equal(a, b) for a, b in zip(cpu, cpu_threads, strict=True))
    if module.cuda:
        tasks = np.array(
            [[c, k] for c, row in enumerate(table) for k in range(k_min, row[2] + 1)], np.int64
        )
        scratch = np.zeros(scratch_offset, np.int64)
        gpu = empty_results()
        k_largest = int(blocks[:, 2].max())
        assert max(sizes) <= module.kmedoids_cuda_max_points(k_largest)
        module.kmedoids_cuda(
            *common,
            tasks.ctypes.data,
            len(tasks),
            max(sizes),
            k_largest,
            scratch.ctypes.data,
            *(x.ctypes.data for x in gpu),
            0,
        )
        for a, b in zip(cpu[:1] + cpu[2:], gpu[:1] + gpu[2:], strict=True):
            assert np.abs(a - b).max() <= (1e-9 if a.dtype == np.float64 else 0)
        for row, k in zip(table, cpu[0].tolist(), strict=True):
            used = slice(row[5], row[5] + k)
            assert np.array_equal(cpu[1][used], gpu[1][used])
