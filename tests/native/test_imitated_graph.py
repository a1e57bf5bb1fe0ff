"""Captures of CUDA graphs on the imitated device: what operators and steps launch can be captured
and repeated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.imitated_cuda import ROOT, imitated_cuda
from tests.support.imitated_graph import CaptureError, captured_twice, capturing, differences
from tests.support.kernels import imitated_results
from tests.support.operators import examples

#: What waits for sizes, which only the device knows, and so cannot be captured.
NOT_CAPTURED = {
    # It visits the neighbours above a threshold, in rounds.
    "operator label_prediction": "nonzero in a capture: kernels/reid_kernels/labels_cpu.py: _above",
    # It computes again the rows whose candidates are not certain; at "ieee" there are none.
    "operator similarity_topk": "nonzero in a capture: kernels/reid_kernels/topk_triton.py",
    # It begins with the label prediction; "losses of nnct" is the rest of it.
    "step of nnct, predicted labels": "nonzero in a capture: kernels/reid_kernels/labels_cpu.py",
}


def in_project(source: str, **names: Any) -> None:
    """Run lines as if they were a file of the kernels."""
    code = compile(source, str(ROOT / "kernels" / "planted.py"), "exec")
    exec(code, {"torch": torch, **names})


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("x.sum().item()", "item"),
        ("bool(x.any())", "item"),
        ("x.tolist()", "tolist"),
        ("x.nonzero()", "nonzero"),
        ("x[x > 0]", "mask as index"),
        ("x.cpu()", "copy"),
        ("torch.ones(3).to('cuda')", "copy"),
        ("torch.ones(3).to('cuda', non_blocking=True)", "copy"),
        ("x.copy_(torch.ones(3), non_blocking=True)", "copy of pageable memory"),
        ("h.copy_(x)", "copy"),
        ("torch.tensor([1.0], device='cuda')", "copy"),
        ("torch.cuda.synchronize()", "synchronize"),
        ("torch.cuda.current_stream().synchronize()", "stream"),
        ("torch.cuda.Event().synchronize()", "event"),
        ("torch.cuda.Event().query()", "event query"),
        ("torch.cuda.current_stream().query()", "stream query"),
        ("torch.cuda.empty_cache()", "empty_cache"),
        ("torch.ones(3).pin_memory()", "allocation of pinned memory"),
        ("torch.empty(3, pin_memory=True)", "allocation of pinned memory"),
        ("torch.manual_seed(0)", "seed"),
        ("torch.cuda.manual_seed_all(0)", "seed"),
    ],
)
def test_what_ends_a_capture_raises_with_its_line(line: str, kind: str) -> None:
    pytest.importorskip("triton")
    with imitated_cuda():
        names = {"x": torch.ones(3, device="cuda"), "h": torch.ones(3).pin_memory()}
        in_project(f"{line}\n", **names)
        refusal = pytest.raises(CaptureError, match=f"^{kind} in a capture: kernels/planted.py")
        with refusal, capturing():
            in_project(f"{line}\n", **names)
        # Afterwards all is as before.
        in_project(f"{line}\n", **names)


def captures(line: str, renew: str) -> list[str]:
    """Differences between two captures of a line on buffers x (3,) and ids (3,)."""
    pytest.importorskip("triton")
    with imitated_cuda():
        names: dict[str, Any] = {
            "x": torch.ones(3, device="cuda"),
            "ids": torch.arange(3, device="cuda"),
            "h": torch.ones(3).pin_memory(),
            "kept": [],
        }
        code = {text: compile(text, "line", "exec") for text in (line, renew)}
        names["torch"] = torch
        one, other = captured_twice(
            lambda: exec(code[line], names), lambda: exec(code[renew], names)
        )
        assert one.launches
        return differences(one.launches, other.launches)


@pytest.mark.parametrize(
    "line",
    [
        "y = (x * 2)[ids].cumsum(0); x.add_(y)",
        "y = torch.zeros(4, device='cuda'); y[:3] += x",
        "x.copy_(h, non_blocking=True)",
        "y = torch.where(x > 0, x, 0.0).sum()",
    ],
)
def test_the_same_launches_with_new_content_do_not_differ(line: str) -> None:
    assert captures(line, "x.mul_(-1); ids.copy_(ids.flip(0))") == []


@pytest.mark.parametrize(
    ("line", "renew", "message"),
    [
        ("y = x * len(kept)", "kept.append(1)", "launch 0: .*aten::mul"),
        ("y = x[: 1 + len(kept)] + 1", "kept.append(1)", "launch 0: .*aten::"),
        ("y = x + 1", "x = x.clone(); kept.append(x)", "launch 0: .*aten::add"),
        ("for _ in kept or [0]: y = x + 1", "kept.append(1)", "1 launches and 2"),
    ],
)
def test_other_constants_shapes_addresses_and_launches_are_found(
    line: str, renew: str, message: str
) -> None:
    found = captures(line, renew)
    assert any(re.match(message, text) for text in found), found


@pytest.fixture(scope="module")
def results(emulated_library: Path) -> dict[str, Any]:
    """The result of each case of `tests/imitated/graph_cases.py`, by name."""
    return imitated_results("graph_cases.py", emulated_library)


@pytest.mark.slow
def test_operators_and_steps_can_be_captured(results: dict[str, Any]) -> None:
    assert {f"operator {name}" for name in examples()} <= results.keys()
    ended = {name: result["ended"] for name, result in results.items() if result["ended"]}
    assert ended.keys() == NOT_CAPTURED.keys(), ended
    for name, message in NOT_CAPTURED.items():
        assert ended[name].startswith(message)


@pytest.mark.slow
def test_a_second_capture_with_other_content_makes_the_same_launches(
    results: dict[str, Any],
) -> None:
    assert {name: r["differences"] for name, r in results.items() if r["differences"]} == {}


@pytest.mark.slow
def test_what_is_captured_launches_the_kernels(results: dict[str, Any]) -> None:
    for name, result in results.items():
        # The choice of the hardest images is PyTorch's.
        assert result["launches"] or name in {*NOT_CAPTURED, "hardest_targets"}, name
    for layout in ("bits", "sparse"):
        assert results[f"label memory, {layout}"]["launches"] == {
            "plmb_update_cuda": 1,
            "plmb_bits_cuda": 1,
            "plmb_lookup_cuda": 1,
        }
    assert results["step of ucal, images"]["launches"]["update_kernel"] == 1
    assert results["losses of nnct"]["launches"]["weighted_rows_kernel"] == 1
