"""Pseudo-labels of one epoch over ranks.

Processes of one machine over gloo, each with its share of the images.

Seconds of the slowest rank, and of its processor, where all share the threads of one process; what
the features, lists and graph of the largest share take; the peak of the resident set over the
start. The labels must be those of one process.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import harness
import pytest
import torch
import torch.distributed as dist
from bench_pseudo_labels import K1, K2, LOOSE
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.clustering import jaccard_graph, nearest_neighbours, self_paced_labels
from fastreid_al.distributed.world import SINGLE_PROCESS, World
from fastreid_al.synthetic import planted_partition

SIZES = {
    "small": [(2_000, 64)],
    "market": [(12_936, 512)],
    "msmt17": [(32_668, 512)],
    "million": [(200_000, 128)],
}
PROCESSES = [1, 2, 4]
#: At the small size for a look alone.
MOST_SMALL = 2
_MIB = 2**20


def share(rank: int, size: int, folder: str, n: int, dim: int, threads: int) -> dict[str, Any]:
    """What one rank of some finds and takes."""
    torch.set_num_threads(threads)
    world = SINGLE_PROCESS
    if size > 1:
        dist.init_process_group(
            "gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size
        )
        world = World(dist.group.WORLD)
    found: dict[str, Any] = {}

    def make(device: str) -> tuple[Tensor]:
        """The same rows on any number of ranks; what a first call starts is done."""
        features = planted_partition(n, dim, exact=True).features.to(device)
        labels(features[:500][world.local_slice(500)])
        return (features[world.local_slice(n)].clone(),)

    def labels(features: Tensor) -> None:
        began = time.process_time()
        lists, neighbours_s = harness.clocked(nearest_neighbours, features, K1, world)
        listed = functools.partial(jaccard_graph, neighbours=lists, world=world)
        graph, graph_s = harness.clocked(listed, features, K1, K2, LOOSE)
        (labels, _), clusters_s = harness.clocked(
            functools.partial(self_paced_labels, graph, world=world)
        )
        found.update(neighbours_s=neighbours_s, graph_s=graph_s, clusters_s=clusters_s)
        found["seconds"] = neighbours_s + graph_s + clusters_s
        found["processor_s"] = time.process_time() - began
        found["features_MiB"] = round(features.nbytes / _MIB, 1)
        found["lists_MiB"] = round(lists.nbytes / _MIB, 1)
        found["graph_MiB"] = round(sum(x.nbytes for x in graph[:3]) / _MIB, 1)
        found["labels"] = hashlib.sha256(labels.numpy().tobytes()).hexdigest()
        found["clusters"] = int(labels.max()) + 1

    found |= harness.peak_memory_here(labels, harness.Inputs(make, ()), "cpu")
    if size > 1:
        dist.destroy_process_group()
    return found


def run(size: int, n: int, dim: int) -> dict[str, Any]:
    """The slowest and greatest of all ranks."""
    threads = max(1, torch.get_num_threads() // size)
    processes = multiprocessing.get_context("forkserver")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(size, mp_context=processes) as pool,
    ):
        jobs = [pool.submit(share, rank, size, folder, n, dim, threads) for rank in range(size)]
        shares = [job.result() for job in jobs]
    (labels,) = {s["labels"] for s in shares}
    return {name: max(s[name] for s in shares) for name in shares[0]} | {
        "labels": labels,
        "threads_a_rank": threads,
    }


@functools.cache
def alone(n: int, dim: int) -> dict[str, Any]:
    return run(1, n, dim)


@pytest.mark.parametrize("processes", PROCESSES)
def test_sharded_labels(
    benchmark: BenchmarkFixture, size: tuple[int, int], processes: int, device: str, scale: str
) -> None:
    if device != "cpu":
        pytest.skip("ranks that share one GPU say nothing of several")
    if scale == "small" and processes > MOST_SMALL:
        pytest.skip(f"past {MOST_SMALL} processes they take longer to start than to run")
    n, dim = size
    benchmark.group = f"pseudo-labels over ranks, {n:,} x {dim:,}"
    call = functools.partial(alone if processes == 1 else functools.partial(run, processes), n, dim)
    found = benchmark.pedantic(call, rounds=1, iterations=1)
    assert found["labels"] == alone(n, dim)["labels"], (
        f"the labels of {processes} ranks differ from those of one"
    )
    info = {name: value for name, value in found.items() if name != "labels"}
    benchmark.extra_info.update(
        processes=processes, n=n, dim=dim, **harness.surroundings(device), **info
    )
