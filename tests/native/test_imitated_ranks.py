"""Two ranks on imitated CUDA devices with a stand-in for NCCL: results as those of two ranks on
CPUs over gloo, no tensor of the CPU in a collective of the run's group, and no other waits of the
host than those that are listed.

After a change of the list: `python tests/imitated/rank_cases.py EXTENSION --write`, with
TRITON_INTERPRET=1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastreid_al.distributed import world as world_module
from fastreid_al.distributed.world import World
from tests.imitated import waits
from tests.support.imitated_cuda import imitated_cuda
from tests.support.imitated_nccl import imitated_nccl
from tests.support.kernels import imitated_results
from tests.support.process_pool import Pool

#: Largest difference of a result from that on CPUs. Losses of some 10 are among the results.
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def results(emulated_library: Path) -> dict[str, Any]:
    """The result of each case of `tests/imitated/rank_cases.py`, by name."""
    return imitated_results("rank_cases.py", emulated_library)


@pytest.mark.slow
def test_two_ranks_on_devices_give_what_two_ranks_on_cpus_give(results: dict[str, Any]) -> None:
    wrong = {name: r["difference"] for name, r in results.items() if r["difference"] > TOLERANCE}
    assert wrong == {}
    assert len(results) >= 11


@pytest.mark.slow
def test_the_host_waits_at_the_listed_lines_only(results: dict[str, Any]) -> None:
    found = {name: result["waits"] for name, result in results.items() if result["waits"]}
    listed = waits.listed()
    assert found == {n: lines for n, lines in listed.items() if n.startswith(waits.TWO_RANKS)}


@pytest.mark.slow
def test_steps_of_ucal_and_extraction_do_not_wait(results: dict[str, Any]) -> None:
    for name in ("step of ucal, images", "step of ucal, clusters", "extraction"):
        assert results[waits.TWO_RANKS + name]["waits"] == []


@pytest.mark.slow
def test_tensors_go_through_the_group_of_the_devices(results: dict[str, Any]) -> None:
    counts = {name.removeprefix(waits.TWO_RANKS): r["collectives"] for name, r in results.items()}
    assert counts["step of ucal, images"][world_module._REDUCE_SCATTER.__name__] == 1
    assert counts["step of nnct"]["all_reduce"] >= 1
    assert counts["clustering"]["all_to_all_single"] >= 1
    assert counts["ranking"]["broadcast"] >= 1
    # A checkpoint is written by the hosts.
    assert counts["checkpoint"] == {}
    for name, collectives in counts.items():
        # Objects and barriers would make the host wait for the device.
        assert not {x for x in collectives if "object" in x or x == "barrier"}, name


def refused(world: World, fault: str) -> str:
    """What the stand-in says to a planted fault."""
    with imitated_cuda(), imitated_nccl(world.group):
        x = torch.arange(6.0).view(2, 3).to("cuda")
        try:
            FAULTS[fault](world, x)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            return str(error)
    return "nothing"


FAULTS: dict[str, Any] = {
    "cpu": lambda world, x: dist.all_reduce(torch.ones(2), group=world.group),
    "strides": lambda world, x: dist.all_reduce(x.T, group=world.group),
    "out on the cpu": lambda world, x: world_module._ALL_GATHER(
        torch.zeros(4, 3), x, group=world.group
    ),
    "int16": lambda world, x: dist.broadcast(x.short(), group=world.group, group_src=0),
    "two dtypes": lambda world, x: world_module._ALL_GATHER(
        torch.zeros(4, 3, dtype=torch.float64, device="cuda"), x, group=world.group
    ),
    "too little room": lambda world, x: world_module._ALL_GATHER(
        torch.zeros(3, 3, device="cuda"), x, group=world.group
    ),
    "shapes of a list": lambda world, x: dist.all_gather(
        [torch.zeros(2, 3, device="cuda"), torch.zeros(3, 3, device="cuda")], x, group=world.group
    ),
    "shapes of the ranks": lambda world, x: dist.all_reduce(
        torch.zeros(world.rank + 1, device="cuda"), group=world.group
    ),
    "rows of the ranks": lambda world, x: dist.all_to_all_single(
        torch.zeros(2, 3, device="cuda"),
        x,
        [1, 1],
        [2 * world.rank, 2 - 2 * world.rank],
        world.group,
    ),
    "not imitated": lambda world, x: dist.send(x, 0, group=world.group),
    "device among hosts": lambda world, x: dist.all_reduce(x),
}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cpu", "all_reduce: No backend type associated with device type cpu"),
        ("strides", "all_reduce: Tensors must be contiguous"),
        (
            "out on the cpu",
            f"{world_module._ALL_GATHER.__name__}: No backend type associated with device type cpu",
        ),
        ("int16", "broadcast: Unconvertible NCCL type torch.int16"),
        ("two dtypes", "must have the same type"),
        ("too little room", "tensors of 9 and of 6 x 2 values"),
        ("shapes of a list", "Tensor list must have one shape"),
        ("shapes of the ranks", "all_reduce: ranks differ"),
        ("rows of the ranks", "all_to_all_single: ranks send"),
        ("not imitated", "send is not imitated"),
        ("device among hosts", "a tensor of the device in a group of the hosts"),
    ],
)
def test_what_nccl_refuses_is_refused(pool: Pool, fault: str, message: str) -> None:
    pytest.importorskip("triton")
    for said in pool.run(refused, 2, fault):
        assert message in said


def exchanged(world: World) -> None:
    """Collectives of a world whose group is the stand-in."""
    with imitated_cuda() as record, imitated_nccl(world.group) as stand:
        assert dist.get_backend(world.group) == "nccl"
        x = torch.arange(4.0).add(world.rank).to("cuda")
        total = world.all_reduce_sum(x)
        part = world.reduce_scatter(x)
        rows = world.all_gather((x > 1)[:, None])
        sent, counts = world.all_to_all_rows(x, [1, 3], [3, 3] if world.rank else [1, 1])
        assert not record.waits
        dist.barrier(group=world.group)
    assert total.device.type == part.device.type == sent.device.type == "cuda"
    assert total.content.tolist() == [1, 3, 5, 7]
    assert part.content.tolist() == [[1, 3], [5, 7]][world.rank]
    assert rows.content.flatten().tolist() == [False, False, True, True, False, True, True, True]
    assert sum(counts) == len(sent)
    assert stand.calls["barrier"] == 1


def test_content_moves_between_devices_without_a_wait(pool: Pool) -> None:
    pytest.importorskip("triton")
    pool.run(exchanged, 2)
