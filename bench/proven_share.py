"""Share of queries whose neighbours the float16 pass of `similarity_topk` proves.

    python bench/proven_share.py --scale SCALE --figures OUT.jsonl [--features FILE]

Queries without proof are searched again, with more groups and then in float32, which takes many
times as long. The share is a matter of arithmetic and of the features: planted ones, and those of a
file. Each problem is a line of JSON in OUT.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np
import torch
import torch.nn.functional as F
from reid_kernels import similarity_topk
from torch import Tensor

from fastreid_al.files import append_text
from fastreid_al.models.safetensors_file import read_safetensors

#: Queries, rows of the bank, width, k. With as many queries as rows each row leaves itself out.
SIZES = {
    "tiny": [(8, 64, 32, 3)],
    "small": [(500, 5_000, 512, 30)],
    "market": [(12_936, 12_936, 2_048, 29)],
    "msmt17": [(32_621, 32_621, 2_048, 29)],
    "million": [(1_024, 1_000_000, 2_048, 32)],
    "goals": [(32_621, 32_621, 2_048, 29), (1_024, 1_000_000, 2_048, 32)],
}
K = 29


def main() -> None:
    """Write the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SIZES, default="goals")
    parser.add_argument("--figures", type=Path, required=True, metavar="OUT.jsonl")
    parser.add_argument("--features", type=Path, metavar="FILE")
    options = parser.parse_args()
    for name, query, bank, k in problems(options.scale, options.features):
        figure = {
            "name": f"proven[{name}]",
            "group": "proven",
            "passed": True,
            "median_s": None,
            "extra_info": {"problem": name, **shares(query, bank, k)},
        }
        append_text(options.figures, json.dumps(figure) + "\n")


def problems(scale: str, features: Path | None) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """Name, queries, bank and k of each problem; real features first."""
    if features is not None:
        rows = F.normalize(load_features(features).float().to("cuda"))
        k = min(K, len(rows) - 1)
        yield f"{features.name}, {len(rows):,} x {rows.shape[1]:,}, k = {k}", rows, rows, k
    for queries, n, dim, k in SIZES[scale]:
        bank, _ = harness.unit_rows("cuda", "float32", n, dim)
        places = torch.arange(queries, device="cuda") * (n // queries)
        query = bank if queries == n else harness.near(bank, places)
        yield f"planted, {queries:,} of {n:,} x {dim:,}, k = {k}", query, bank, k


def load_features(path: Path) -> Tensor:
    """Features (n, D) of a file: the only matrix of floats in it, or the one named "features".

    Raises:
        ValueError: The file has no such matrix, or several.
    """
    if path.suffix == ".npy":
        found: dict[str, Any] = {"features": torch.from_numpy(np.load(path, allow_pickle=False))}
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            found = {
                name: torch.from_numpy(array)
                for name, array in arrays.items()
                if array.dtype.kind == "f"
            }
    elif path.suffix == ".safetensors":
        found = dict(read_safetensors(path))
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = {"features": content} if isinstance(content, Tensor) else dict(content)
    matrices = {
        name: x
        for name, x in found.items()
        if isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point()
    }
    if "features" in matrices:
        return matrices["features"]
    if len(matrices) != 1:
        raise ValueError(
            f"{path}: got {len(matrices)} matrices of floats, expected one, or one named features"
        )
    return next(iter(matrices.values()))


def shares(query: Tensor, bank: Tensor, k: int) -> dict[str, float]:
    """Shares of the queries that each pass of a search settles.

    Args:
        query: (B, D) float32 on the device.
        bank: (n, D) float32; the queries themselves if they are searched among each other.
        k: Number of neighbours.
    """
    from reid_kernels import topk_triton

    count = len(query)
    settled: list[int] = []
    in_float32 = 0
    search = topk_triton._topk

    def noted(rows: Tensor, *rest: Any, **more: Any) -> Any:
        nonlocal in_float32
        found = search(rows, *rest, **more)
        if more["proven"]:
            settled.append(int(found[2].sum()))
        else:
            in_float32 += len(rows)
        return found

    own = torch.arange(count, device=query.device) if query is bank else None
    with mock.patch.object(topk_triton, "_topk", noted):
        similarity_topk(query, bank, k, normalize=False, exclude=own)
    return {
        "proven": settled[0] / count,
        "proven_later": sum(settled[1:]) / count,
        "in_float32": in_float32 / count,
    }


if __name__ == "__main__":
    main()
