"""Pseudo-labels over ranks with one GPU each are those of a single GPU."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import torch.distributed as dist

from fastreid_al.clustering import jaccard_graph, self_paced_labels
from fastreid_al.distributed.world import SINGLE_PROCESS, World
from fastreid_al.synthetic import planted_partition

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]


def labels_of(world: World, n: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    features = planted_partition(n, 64, exact=True).features[world.local_slice(n)].cuda(world.rank)
    graph = jaccard_graph(features, world=world)
    return [x.cpu() for x in graph[:3]], self_paced_labels(graph, world=world)[0].cpu()


def on_rank(rank: int, size: int, folder: str, n: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.cuda.set_device(rank)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group(
        "nccl", store=store, rank=rank, world_size=size, device_id=torch.device("cuda", rank)
    )
    control = dist.new_group(backend="gloo")
    try:
        return labels_of(World(dist.group.WORLD, control=control), n)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("n", [5, 3_001])
def test_graph_and_labels_are_those_of_one_gpu(n: int) -> None:
    size = torch.cuda.device_count()
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(size, mp_context=context) as pool,
    ):
        got = [
            job.result()
            for job in [pool.submit(on_rank, rank, size, folder, n) for rank in range(size)]
        ]
    graph, labels = labels_of(SINGLE_PROCESS, n)
    assert all(torch.equal(theirs, labels) for _, theirs in got)
    assert torch.equal(torch.cat([arrays[1] for arrays, _ in got]), graph[1])
    assert torch.equal(torch.cat([arrays[0].diff() for arrays, _ in got]), graph[0].diff())
    assert torch.allclose(torch.cat([arrays[2] for arrays, _ in got]), graph[2], rtol=0, atol=1e-6)
