"""The drop-in memories have the losses, gradients and updates of the published memories."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from reid_kernels import compat
from torch import Tensor

from tests.support import kernels_restated as restated

N, DIM, BATCH = 41, 24, 12
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def _unit(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, DIM, dtype=torch.float64)).to(dtype)


def _labels() -> Tensor:
    """Classes 0 to 6 but 3, with several images each, and singletons up to 35."""
    labels = torch.cat([torch.tensor([0, 1, 2, 4, 5, 6]).repeat(5), torch.arange(25, 36)])
    return labels[torch.randperm(N)]


def _indexes() -> Tensor:
    """A batch that holds an image three times and another twice."""
    indexes = torch.randint(N, (BATCH,))
    return indexes[torch.tensor([0, 1, 2, 3, 0, 5, 6, 2, 8, 0, 10, 11])]


def _same(got: Tensor, expected: Tensor) -> None:
    """Equal to the float64 value, to the rounding of what was found."""
    wide = got.dtype == torch.float64
    torch.testing.assert_close(
        got.double(), expected.detach(), rtol=1e-11 if wide else 1e-5, atol=1e-12 if wide else 1e-6
    )


def _steps(
    module, memory: Tensor, plain, plain_memory: Tensor, batches, dtype: torch.dtype
) -> None:
    """Losses, gradients and memories alike at each step; batches are of inputs and further
    arguments.
    """
    for inputs, arguments, plain_arguments in batches:
        before = plain_memory.clone()
        ours, theirs = inputs.to(dtype, copy=True).requires_grad_(), inputs.clone().requires_grad_()
        loss, expected = module(ours, *arguments), plain(theirs, *plain_arguments)
        _same(memory, before)
        loss.backward()
        expected.backward()
        _same(loss, expected)
        _same(ours.grad, theirs.grad)
        _same(memory, plain_memory)
        assert not torch.equal(before, plain_memory)


def _hybrid(dtype: torch.dtype, labels: Tensor, temp: float = 0.05):
    module = compat.HybridMemory(DIM, N, temp=temp).to(dtype)
    features = _unit(N)
    module.features.copy_(features)
    module.labels = labels
    return module, restated.HybridMemory(features, labels, temp)


def _cluster(dtype: torch.dtype, use_hard: bool):
    module = compat.ClusterMemory(DIM, N, use_hard=use_hard).to(dtype)
    features = _unit(N)
    module.features.copy_(features)
    return module, restated.ClusterMemory(features, use_hard=use_hard)


@DTYPES
@pytest.mark.parametrize("without_class", [False, True])
def test_hybrid_memory_trains_as_published(dtype, without_class):
    labels = _labels()
    if without_class:
        labels[::4] = -1
    module, plain = _hybrid(dtype, labels)
    batches = []
    for _ in range(3):
        indexes = _indexes()
        indexes[5] = 0
        batches.append((_unit(BATCH), (indexes,), (indexes,)))
    _steps(module, module.features, plain, plain.features, batches, dtype)


@DTYPES
def test_hybrid_memory_keeps_the_small_term_where_all_logits_are_low(dtype):
    module, plain = _hybrid(dtype, _labels())
    near = F.normalize(0.1 * plain.features + plain.features[:1])
    plain.features.copy_(near)
    module.features.copy_(near)
    inputs = F.normalize(0.1 * _unit(BATCH) - near[:1])
    indexes = _indexes()
    logits = (inputs @ near.T / 0.05).exp().sum(1)
    assert logits.max() < 1e-6
    _steps(
        module, module.features, plain, plain.features, [(inputs, (indexes,), (indexes,))], dtype
    )


@DTYPES
@pytest.mark.parametrize("use_hard", [False, True])
def test_cluster_memory_trains_as_published(dtype, use_hard):
    module, plain = _cluster(dtype, use_hard)
    batches = []
    for _ in range(3):
        targets = torch.randint(N, (4,)).repeat_interleave(3)
        targets[8] = -1
        batches.append((3 * torch.randn(BATCH, DIM, dtype=torch.float64), (targets,), (targets,)))
    _steps(module, module.features, plain, plain.features, batches, dtype)


def test_the_first_of_equally_hard_images_moves_its_cluster():
    module, _ = _cluster(torch.float32, use_hard=True)
    module.features.zero_()[:, 0] = 1
    inputs = torch.zeros(3, DIM)
    inputs[0, 1], inputs[1, 2], inputs[2, 0] = 1, 1, 1
    module(inputs.requires_grad_(), torch.tensor([7, 7, 7])).backward()
    assert module.features[7].nonzero()[:, 0].tolist() == [0, 1]


def _csr(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    return F.pad(torch.tensor([len(row) for row in rows]).cumsum(0), (1, 0)), torch.tensor(
        [i for row in rows for i in row]
    )


@DTYPES
def test_mmcl_memory_trains_as_published(dtype):
    """Two epochs of single labels from a memory of zeros, then two of several."""
    module = compat.MMCLMemory(DIM, N, hard_ratio=0.1).to(dtype)
    plain = restated.MMCLMemory(torch.zeros(N, DIM, dtype=torch.float64), hard_ratio=0.1)
    everything = torch.arange(N)
    # A memory of zeros has no similarity that stands out; filled, no two are alike.
    start = [(_unit(N), (everything, 0), (everything, 0))]
    for inputs, arguments, _ in start:
        module(inputs.to(dtype).requires_grad_(), *arguments).backward()
        plain(inputs.clone().requires_grad_(), *arguments).backward()
    batches = []
    for epoch in (1, 2, 30, 59):
        indexes = _indexes()
        positives = None
        if epoch >= 6:
            positives = [sorted({int(i), *torch.randint(N, (4,)).tolist()}) for i in indexes]
        ours = None if positives is None else _csr(positives)
        batches.append((_unit(BATCH), (indexes, epoch, ours), (indexes, epoch, positives)))
    _steps(module, module.mem, plain, plain.mem, batches, dtype)


def test_mmcl_memory_predicts_as_published():
    groups = _unit(6).repeat_interleave(7, 0)[:N]
    memory = F.normalize(groups + 0.6 * _unit(N))
    module = compat.MMCLMemory(DIM, N).double()
    module.mem.copy_(memory)
    plain = restated.MMCLMemory(memory)
    indexes = torch.randperm(N)
    indptr, indices = module.predict(indexes)
    got = [sorted(row.tolist()) for row in indices.tensor_split(indptr[1:-1])]
    assert got == plain.predict(indexes)
    assert max(map(len, got)) > 2


def test_mmcl_memory_takes_the_momentum_in_place_of_the_epoch():
    by_epoch, by_alpha = compat.MMCLMemory(DIM, N, epochs=50), compat.MMCLMemory(DIM, N)
    by_alpha.mem.copy_(by_epoch.mem.copy_(_unit(N)))
    inputs, indexes = _unit(BATCH, torch.float32), _indexes()
    by_epoch(inputs.clone().requires_grad_(), indexes, 20).backward()
    by_alpha(inputs.clone().requires_grad_(), indexes, alpha=0.2).backward()
    assert torch.equal(by_epoch.mem, by_alpha.mem)
    with pytest.raises(ValueError, match="epoch, alpha: got None and None"):
        by_alpha(inputs, indexes)


def test_two_batches_before_one_backward_pass_both_reach_the_memory():
    module, plain = _hybrid(torch.float64, _labels())
    first, second, indexes = _unit(BATCH), _unit(BATCH), _indexes()
    for memory in (module, plain):
        (
            memory(first.clone().requires_grad_(), indexes)
            + memory(second.clone().requires_grad_(), indexes)
        ).backward()
    _same(module.features, plain.features)


def test_nothing_is_updated_in_evaluation():
    hybrid, _ = _hybrid(torch.float32, _labels())
    cluster, _ = _cluster(torch.float32, use_hard=True)
    before = hybrid.features.clone(), cluster.features.clone()
    layer = torch.nn.Linear(DIM, DIM)
    with torch.no_grad():
        loss = hybrid(F.normalize(layer(_unit(BATCH, torch.float32))), _indexes())
    cluster(_unit(BATCH, torch.float32), _indexes())
    assert torch.isfinite(loss)
    assert torch.equal(hybrid.features, before[0]) and torch.equal(cluster.features, before[1])


def test_half_inputs_meet_a_float32_memory():
    module, _ = _hybrid(torch.float32, _labels())
    inputs = _unit(BATCH, torch.bfloat16).requires_grad_()
    loss = module(inputs, _indexes())
    loss.backward()
    assert loss.dtype == module.features.dtype == torch.float32
    assert inputs.grad.dtype == torch.bfloat16 and bool(inputs.grad.any())


def test_a_batch_without_a_class_only_updates_the_memory():
    module, _ = _hybrid(torch.float32, torch.full((N,), -1))
    inputs, before = _unit(BATCH, torch.float32).requires_grad_(), module.features.clone()
    loss = module(inputs, _indexes())
    loss.backward()
    assert loss.item() == 0 and not bool(inputs.grad.any())
    assert not torch.equal(module.features, before)


def test_mistakes_are_named_when_the_loss_is_taken():
    module, _ = _hybrid(torch.float32, _labels())
    inputs = _unit(BATCH, torch.float32)
    with pytest.raises(
        ValueError, match=rf"indexes: got {N} at index 3, expected values in \[0, {N}\)"
    ):
        module(inputs, torch.tensor([0, 1, 2, N] * 3))
    with pytest.raises(ValueError, match=r"indexes: got dtype torch\.int32"):
        module(inputs, _indexes().int())
    with pytest.raises(ValueError, match=f"inputs: got rows of width 3, expected {DIM}"):
        module(inputs[:, :3], _indexes())
    with pytest.raises(ValueError, match="targets: got -2 at index 0"):
        _cluster(torch.float32, use_hard=False)[0](inputs, torch.full((BATCH,), -2))


def test_the_original_ways_to_fill_a_memory_work():
    module = compat.ClusterMemory(DIM, 5)
    module.features = _unit(3, torch.float32)
    module(torch.randn(4, DIM, requires_grad=True), torch.tensor([0, 1, 2, 2])).backward()
    again = compat.ClusterMemory(DIM, 3)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.features, module.features)


@pytest.mark.parametrize("name", ["hybrid", "cluster", "hard", "mmcl"])
def test_a_compiled_memory_trains_like_another(name):
    if name == "mmcl":
        module = compat.MMCLMemory(DIM, N, hard_ratio=0.1).double()
        module.mem.copy_(_unit(N))
        memory, plain = module.mem, restated.MMCLMemory(module.mem.clone(), hard_ratio=0.1)
        plain_memory = plain.mem
    else:
        made = (
            _hybrid(torch.float64, _labels())
            if name == "hybrid"
            else _cluster(torch.float64, name == "hard")
        )
        (module, plain), memory, plain_memory = made, made[0].features, made[1].features
    batches = []
    for step in range(3):
        arguments = (_indexes(), 20 + step) if name == "mmcl" else (_indexes(),)
        batches.append((_unit(BATCH), arguments, arguments))
    _steps(
        torch.compile(module, backend="aot_eager"),
        memory,
        plain,
        plain_memory,
        batches,
        torch.float64,
    )


RANK = """
import os, sys, torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from reid_kernels.compat import ClusterMemory

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(8, 8))
memory = ClusterMemory(8, 5)
memory.features = torch.nn.functional.normalize(torch.randn(5, 8))
images, targets = torch.randn(6, 8), torch.tensor([0, 3, 1, 1, 4, 0])
parts = images.chunk(2), targets.chunk(2)
x, ids = parts[0][rank] @ weight, parts[1][rank]
gathered = [torch.empty_like(ids) for _ in range(2)]
dist.all_gather(gathered, ids)
loss = memory(torch.cat(all_gather(x)), torch.cat(gathered))
loss.backward()
dist.all_reduce(weight.grad)
torch.save((loss.detach(), weight.grad / 2, memory.features), f"{folder}/{rank}")

alone = ClusterMemory(8, 5)
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(8, 8))
alone.features = torch.nn.functional.normalize(torch.randn(5, 8))
loss = alone(images @ weight, targets)
loss.backward()
torch.save((loss.detach(), weight.grad, alone.features), f"{folder}/alone{rank}")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_that_gather_train_as_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second, alone = (torch.load(tmp_path / name) for name in ("0", "1", "alone0"))
    for a, b, c in zip(first, second, alone, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(b, c, rtol=1e-5, atol=1e-6)
    assert torch.equal(first[2], second[2])
