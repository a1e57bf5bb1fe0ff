"""Times of single kernels on a CUDA device.

    python bench/kernel_times.py --scale SCALE --figures OUT.jsonl

Each operator is called once while the launches of its Triton kernels are noted. Then the first
launch of each kernel is repeated alone: between two events, with inputs that are not in the caches.
The whole operator and the label memory's functions are measured in the same way. Each median is a
line of JSON in OUT.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import bench_plmb
import bench_update_bank
import gpu_model
import harness
import torch
import triton
from gpu_parts import SCALES
from reid_kernels import bank_contrast_loss, similarity_topk
from reid_kernels.multilabel import sum_of_multilabel_bank_losses
from triton.runtime.jit import KernelInterface

from fastreid_al.files import append_text

TEMPERATURE = 0.05
#: Positives of each feature.
POSITIVES = 20


class Problem(NamedTuple):
    """A call whose launches are measured.

    Args:
        operator: Name, as in the model.
        shape: Shape, as in the model.
        make: Makes the call, with its inputs on the device.
    """

    operator: str
    shape: str
    make: Callable[[], Callable[[], Any]]


class Launch(NamedTuple):
    """A launch of a kernel.

    Args:
        name: Name of the kernel.
        again: Launches it once more with the same arguments.
    """

    name: str
    again: Callable[[], Any]


def main() -> None:
    """Write the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="goals")
    parser.add_argument("--figures", type=Path, required=True, metavar="OUT.jsonl")
    options = parser.parse_args()
    for problem in problems(tiny=options.scale == "tiny"):
        for figure in measured(problem):
            append_text(options.figures, json.dumps(figure) + "\n")
        torch.cuda.empty_cache()


def problems(tiny: bool) -> list[Problem]:
    """The problems, those with the largest gaps to their goals first.

    Args:
        tiny: Whether sizes are those that only show that this program works.
    """

    def pick(own: tuple[int, ...], small: tuple[int, ...]) -> tuple[int, ...]:
        return small if tiny else own

    found = [
        *(
            Problem("bank_contrast_loss", shape, partial(contrast, *size))
            for size, shape in (
                (pick((batch, 100_000, 2_048), (4, 20, 16)), gpu_model.CONTRAST[batch])
                for batch in gpu_model.CONTRAST
            )
        ),
        Problem(
            "similarity_topk, proven",
            gpu_model.TOPK,
            lambda: topk(*pick((1_024, 1_000_000, 2_048, 32), (4, 32, 16, 2))),
        ),
        Problem(
            "similarity_topk of all images",
            gpu_model.NEIGHBOURS,
            lambda: neighbours(*pick((32_621, 2_048, 29), (4, 16, 2))),
        ),
        Problem(
            "multilabel_bank_loss, two sets",
            gpu_model.MULTILABEL,
            lambda: multilabel(*pick((64, 32_621, 2_048), (2, 20, 16))),
        ),
        Problem(
            "update_bank_",
            "64 to 64 of 32,621 x 2,048, float32",
            lambda: update_bank(*pick((64, 64, 32_621, 2_048), (4, 4, 20, 16))),
        ),
        *(
            Problem(
                f"label memory, {name}",
                gpu_model.LABEL_MEMORY,
                partial(label_memory, name, *pick((64, 20, 32_621), (4, 2, 40))),
            )
            for name in bench_plmb.CALLS
        ),
    ]
    return [one._replace(shape=f"tiny, for {one.shape}") for one in found] if tiny else found


def contrast(batch: int, n: int, dim: int) -> Callable[[], Any]:
    """`bank_contrast_loss` of bfloat16 rows, forward and gradient."""
    bank, _ = harness.unit_rows("cuda", "bfloat16", n, dim)
    targets = torch.arange(batch, device="cuda") * (n // batch)
    features = harness.near(bank, targets)
    return lambda: harness.value_and_gradient(
        bank_contrast_loss, features, bank, targets, TEMPERATURE
    )


def topk(queries: int, n: int, dim: int, k: int) -> Callable[[], Any]:
    """`similarity_topk` of float32 rows."""
    bank, _ = harness.unit_rows("cuda", "float32", n, dim)
    query = harness.near(bank, torch.arange(queries, device="cuda") * (n // queries))
    return lambda: similarity_topk(query, bank, k, normalize=False)


def neighbours(n: int, dim: int, k: int) -> Callable[[], Any]:
    """`similarity_topk` of all rows among each other."""
    rows, _ = harness.unit_rows("cuda", "float32", n, dim)
    own = torch.arange(n, device="cuda")
    return lambda: similarity_topk(rows, rows, k, normalize=False, exclude=own)


def multilabel(batch: int, n: int, dim: int) -> Callable[[], Any]:
    """The sum of `multilabel_bank_loss` over two sets of labels, forward and gradient."""
    bank, _ = harness.unit_rows("cuda", "float32", n, dim)
    features = harness.near(bank, torch.arange(batch, device="cuda") * (n // batch))
    count = min(POSITIVES, n // 4)
    indptr = torch.arange(batch + 1, device="cuda") * count
    generator = torch.Generator().manual_seed(0)
    sets = []
    for _ in range(2):
        rows = [torch.randperm(n, generator=generator)[:count].sort().values for _ in range(batch)]
        sets.append((indptr, torch.cat(rows).to("cuda")))
    return lambda: harness.value_and_gradient(
        sum_of_multilabel_bank_losses, features, bank, sets, [1.0, 1.0]
    )


def update_bank(batch: int, named: int, n: int, dim: int) -> Callable[[], Any]:
    """`update_bank_` of float32 rows."""
    problem = bench_update_bank.make("cuda", "float32", batch, named, n, dim)
    return lambda: bench_update_bank.ours(*problem)


def label_memory(name: str, batch: int, labels: int, n: int) -> Callable[[], Any]:
    """A function of the label memory."""
    bank, given = bench_plmb.make("cuda", "ours", batch, labels, n)
    return lambda: bench_plmb.CALLS[name](bank, given)


def measured(problem: Problem) -> Iterator[dict[str, Any]]:
    """The figures of an operator as a whole and of its kernels."""
    call = problem.make()
    call()
    with noted_launches() as launches:
        call()
    yield figure(problem, "all", median_seconds(call), 1)
    names = [launch.name for launch in launches]
    for name in dict.fromkeys(names):
        first = next(launch for launch in launches if launch.name == name)
        yield figure(problem, name, median_seconds(first.again), names.count(name))


def median_seconds(call: Callable[[], Any]) -> float:
    """Median of the device's seconds with cold caches."""
    cold = torch.empty(harness._FLUSH, dtype=torch.int8, device="cuda")
    once = harness._seconds(call, (), "cuda", cold)
    rounds = min(harness._ROUNDS, max(3, int(0.2 * harness._SECONDS / max(once, 1e-6))))
    if rounds == 1:
        return once
    return statistics.median(harness._seconds(call, (), "cuda", cold) for _ in range(rounds))


@contextlib.contextmanager
def noted_launches() -> Iterator[list[Launch]]:
    """The launches of Triton kernels inside a block, in order."""
    launches: list[Launch] = []
    start = KernelInterface.__getitem__

    def noting(kernel: Any, grid: Any) -> Callable[..., Any]:
        launch = start(kernel, grid)

        def noted(*args: Any, **kwargs: Any) -> Any:
            again = lambda: launch(*args, **kwargs)  # noqa: E731
            launches.append(Launch(kernel.__name__, again))
            return again()

        return noted

    with mock.patch.object(KernelInterface, "__getitem__", noting):
        yield launches


def figure(problem: Problem, kernel: str, seconds: float, launches: int) -> dict[str, Any]:
    """A figure as `bench/report.py` reads it."""
    return {
        "name": f"kernel[{kernel}]",
        "group": f"{problem.operator}, {problem.shape}",
        "passed": True,
        "median_s": seconds,
        "extra_info": {
            "step": "kernels",
            "form": problem.operator,
            "problem": problem.shape,
            "kernel": kernel,
            "launches": launches,
            "cuda_event_median_ms": round(1e3 * seconds, 5),
            "triton": triton.__version__,
            **harness.surroundings("cuda"),
        },
    }


if __name__ == "__main__":
    main()
