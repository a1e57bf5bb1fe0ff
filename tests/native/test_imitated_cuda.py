"""The engine's CUDA paths on an imitated device: results as on the CPU, and no other waits of the
host than those that are listed.

After a change of the list: `python tests/imitated/cases.py EXTENSION --write`, with
TRITON_INTERPRET=1.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.imitated import waits
from tests.support.imitated_cuda import DEVICE, ROOT, Imitated, content_of, imitated_cuda
from tests.support.kernels import imitated_results

#: Largest difference of a result from that on the CPU: float32 sums in another order.
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def results(emulated_library: Path) -> dict[str, Any]:
    """The result of each case of `tests/imitated/cases.py`, by name."""
    return imitated_results("cases.py", emulated_library)


@pytest.mark.slow
def test_results_are_those_of_the_cpu(results: dict[str, Any]) -> None:
    wrong = {name: r["difference"] for name, r in results.items() if r["difference"] > TOLERANCE}
    assert wrong == {}
    assert len(results) >= 17


@pytest.mark.slow
def test_the_host_waits_at_the_listed_lines_only(results: dict[str, Any]) -> None:
    found = {name: result["waits"] for name, result in results.items() if result["waits"]}
    listed = waits.listed()
    assert found == {n: lines for n, lines in listed.items() if not n.startswith(waits.TWO_RANKS)}


@pytest.mark.slow
def test_a_step_waits_only_for_sizes_of_label_lists(results: dict[str, Any]) -> None:
    assert results["step of ucal, images"]["waits"] == []
    assert results["step of ucal, clusters"]["waits"] == []
    assert results["step of ucal, hardest"]["waits"] == []
    places = [wait.split(": ")[:3] for wait in results["step of nnct"]["waits"]]
    assert places == [
        ["kernels/reid_kernels/labels_cpu.py", function, kind]
        for function, kind in (("_above", "nonzero"), ("_lists", "item"), ("walk", "item"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["bits", "sparse"])
def test_labels_are_listed_in_one_launch_without_a_wait_where_room_is_given(
    results: dict[str, Any], layout: str
) -> None:
    result = results[f"label memory with room, {layout}"]
    assert result["waits"] == []
    assert result["launches"] == {
        "plmb_update_cuda": 1,
        "plmb_lookup_cuda": 1,
        "plmb_bits_cuda": 1,
    }


@pytest.mark.slow
def test_kernels_are_launched(results: dict[str, Any]) -> None:
    step = results["step of nnct"]["launches"]
    # Two steps with two neighbours: two products of labels, and two of the losses, each once for
    # all three sets of labels.
    assert step["similarity_kernel"] == 4
    assert step["select_kernel"] == 6
    assert step["weighted_rows_kernel"] == 2
    assert step["plmb_update_cuda"] == step["plmb_bits_cuda"] == 2
    assert results["run of ucal"]["launches"]["overlaps_cuda"] >= 1


def run_planted(source: str) -> tuple[Any, Any]:
    """Run lines as if they were a file of the kernels; return their variable `result` and the
    record.
    """
    pytest.importorskip("triton")
    code = compile(source, str(ROOT / "kernels" / "planted.py"), "exec")
    names: dict[str, Any] = {"torch": torch}
    with imitated_cuda() as record:
        exec(code, names)
    return names.get("result"), record


def test_tensors_say_where_they_are_and_compute() -> None:
    result, record = run_planted(
        "x = torch.arange(6.0).to('cuda').view(2, 3).requires_grad_()\n"
        "y = (x * torch.ones(3, device='cuda')).square().sum()\n"
        "y.backward()\n"
        "result = x, y, x.grad\n"
    )
    x, y, gradient = result
    assert isinstance(x, Imitated)
    assert x.device == y.device == gradient.device == DEVICE
    assert float(content_of(y)) == 55
    assert content_of(gradient).tolist() == [[0, 2, 4], [6, 8, 10]]
    assert {wait.kind for wait in record.waits} == {"copy"}


def test_a_tensor_of_the_cpu_among_those_of_the_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        run_planted("torch.ones(3, device='cuda') + torch.ones(3)\n")
    with pytest.raises(TypeError, match="numpy"):
        run_planted("torch.ones(3, device='cuda').numpy()\n")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("x.sum().item()", "item"),
        ("bool(x.any())", "item"),
        ("float(x[0])", "item"),
        ("x.tolist()", "tolist"),
        ("x.cpu()", "copy"),
        ("x.nonzero(as_tuple=True)", "nonzero"),
        ("x[x > 0]", "mask as index"),
        ("x.unique()", "unique"),
        ("torch.tensor([1, 2], device='cuda')", "copy"),
        ("x.new_tensor(1.0)", "copy"),
        ("torch.arange(3, device='cuda').repeat_interleave(x.long())", "repeat_interleave"),
        ("torch.cuda.synchronize()", "synchronize"),
    ],
)
def test_a_line_that_waits_is_found(line: str, kind: str) -> None:
    _, record = run_planted(f"x = torch.ones(3, device='cuda')\n{line}\n")
    assert kind in {wait.kind for wait in record.waits if wait.source == line or not wait.source}


def test_lines_that_do_not_wait_are_not_counted() -> None:
    _, record = run_planted(
        "x = torch.ones(3, device='cuda')\n"
        "y = torch.where(x > 0, x, 0.0).cumsum(0)[torch.arange(2, device='cuda')]\n"
        "z = torch.arange(3, device='cuda').repeat_interleave(x.long(), output_size=3)\n"
        "w = torch.ones(3).pin_memory().to('cuda', non_blocking=True)\n"
    )
    assert not record.waits


def test_events_measure_the_time_between_them() -> None:
    result, _ = run_planted(
        "import time\n"
        "start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))\n"
        "start.record()\ntime.sleep(0.02)\nend.record()\n"
        "result = start.elapsed_time(end)\n"
    )
    assert result >= 20


def test_a_generator_of_the_device_draws_there() -> None:
    result, _ = run_planted(
        "draw = lambda: torch.Generator('cuda').manual_seed(1)\n"
        "result = [torch.randn(3, generator=draw(), device='cuda') for _ in range(2)]\n"
    )
    first, second = result
    assert first.device == DEVICE
    assert torch.equal(content_of(first), content_of(second))


def test_classes_become_one_hot_rows_of_the_device() -> None:
    result, _ = run_planted(
        "x = torch.tensor([1, 0], device='cuda')\n"
        "result = torch.nn.functional.one_hot(x, 3) * torch.ones(3, device='cuda')\n"
    )
    assert content_of(result).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_pytorch_is_as_before_afterwards() -> None:
    before = torch.cuda.is_available(), torch.cuda.Stream, torch.inference_mode
    run_planted("x = torch.ones(3, device='cuda')\n")
    assert (torch.cuda.is_available(), torch.cuda.Stream, torch.inference_mode) == before
    assert torch.ones(3).device.type == "cpu"


def test_the_list_names_lines_that_exist() -> None:
    for lines in waits.listed().values():
        for line in lines:
            file, function, _, source = line.split(": ", 3)
            text = (Path(ROOT) / file).read_text()
            assert source in text, line
            assert function.startswith("<") or f"def {function}(" in text, line


def test_extension_is_taken_whole() -> None:
    class Module(ModuleType):
        cuda = True

        @staticmethod
        def count_cuda() -> int:
            return 3

    from fastreid_al import native

    pytest.importorskip("triton")
    with imitated_cuda(Module("emulated")) as record:
        extension = native.cuda_extension()
        assert extension is not None
        assert extension.count_cuda() == 3
    assert record.launches["count_cuda"] == 1
