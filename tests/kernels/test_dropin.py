"""The folder of operators works wherever it is put: installed, copied, loaded by path,
without triton.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.operators import example_sources, examples

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "kernels" / "reid_kernels"
README = ROOT / "kernels" / "README.md"
SOURCES = sorted(FOLDER.glob("*.py"))
FENCED = re.findall(
    r"^ *```python\n(.*?)^ *```", README.read_text(), flags=re.MULTILINE | re.DOTALL
)
BLOCKS = [textwrap.dedent(block) for block in FENCED]

#: Compares every operator of the module `ops` with its reference in float64, and trains one memory.
EVERY_OPERATOR = f"""
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

{example_sources()}
calls = {{}}
for name, value in list(globals().items()):
    if name.startswith("example_"):
        calls[name.removeprefix("example_")] = value
references = {{name for name in ops.__all__ if name.endswith("_reference")}}
assert references == {{name + "_reference" for name in calls}}

torch.manual_seed(0)
wide = [F.normalize(torch.randn(rows, 16, dtype=torch.float64)) for rows in (9, 40)]
x, bank = (rows.float() for rows in wide)
for name, call in calls.items():
    public = name if name in ops.__all__ else name + "_"
    got = call(getattr(ops, public), x, bank)
    expected = call(getattr(ops, name + "_reference"), *wide)
    if isinstance(got, Tensor):
        got, expected = (got,), (expected,)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-4, atol=1e-5)
    print(name)
memory = ops.compat.ClusterMemory(16, 40)
memory.features.copy_(bank)
before = memory.features.clone()
memory(x.clone().requires_grad_(), torch.arange(9)).backward()
assert not torch.equal(before, memory.features)
"""


def _run(code: str, folder: Path, *options: str, path: list[str] | None = None) -> str:
    """What the code prints, in a Python of its own that starts in the folder."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")
    }
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _site_packages() -> list[str]:
    """Where torch lies; named as a path they lead to no editable installation."""
    folders = [Path(entry).resolve() for entry in sys.path if entry and Path(entry).is_dir()]
    return [str(folder) for folder in folders if folder.name.endswith("-packages")]


def test_installed_it_loads_neither_triton_nor_the_rest_of_the_project(tmp_path):
    code = """
import sys, torch
before = set(sys.modules)
import reid_kernels.compat
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert not new & {"triton", "fastreid_al", "numpy", "scipy"}, new
"""
    _run(code, tmp_path)


@pytest.mark.parametrize(
    "place", ["reid_kernels", pytest.param("vendor/ops", marks=pytest.mark.slow)]
)
def test_every_operator_runs_in_a_copy_of_the_folder(tmp_path, place):
    copy = tmp_path / place
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    name = place.replace("/", ".")
    # -S: no .pth file is read, so that an editable installation cannot lend the folder of the
    # repository.
    code = f"""
import {name} as ops
from pathlib import Path
assert Path(ops.__file__).parent == Path({str(copy)!r}), ops.__file__
{EVERY_OPERATOR}
import sys
assert "fastreid_al" not in sys.modules
files = [str(getattr(module, "__file__", "")) for module in list(sys.modules.values())]
assert not [file for file in files if file.startswith({str(FOLDER)!r})]
"""
    printed = _run(code, tmp_path, "-S", path=[str(tmp_path), *_site_packages()])
    assert "similarity_topk" in printed


@pytest.mark.slow
def test_a_folder_loaded_by_path_coexists_with_the_installed_one(tmp_path):
    if not hasattr(pytest.importorskip("kernels"), "get_local_kernel"):
        pytest.skip("the client package `kernels` is not installed")
    code = f"""
from pathlib import Path
import reid_kernels
import torch
from kernels import get_local_kernel
ops = get_local_kernel(Path({str(FOLDER)!r}))
assert ops is not reid_kernels and ops.__all__ == reid_kernels.__all__
{EVERY_OPERATOR}
for name in ("similarity_topk", "label_prediction"):
    here, there = (calls[name](getattr(module, name), x, bank) for module in (ops, reid_kernels))
    assert all(map(torch.equal, here, there))
for name in ("bank_contrast_loss", "multilabel_bank_loss"):
    found = []
    for module in (ops, reid_kernels):
        leaf = x.clone().requires_grad_()
        loss = calls[name](getattr(module, name), leaf, bank)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
banks = [calls["update_bank"](module.update_bank_, x, bank) for module in (ops, reid_kernels)]
assert torch.equal(*banks)
"""
    _run(code, tmp_path)


def test_without_triton_every_operator_runs_on_a_cpu(tmp_path):
    _run(
        f"import sys\nsys.modules['triton'] = None\nimport reid_kernels as ops\n{EVERY_OPERATOR}",
        tmp_path,
    )


def _imports(source: Path, *, when_loaded: bool = False) -> tuple[set[str], set[str]]:
    """Top names of the packages that a source imports, and names of its neighbours; anywhere, or
    when it is loaded.
    """
    tree = ast.parse(source.read_text())
    packages, neighbours = set(), set()
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            packages.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1
            neighbours |= {node.module} if node.module else {alias.name for alias in node.names}
    return packages - sys.stdlib_module_names, neighbours


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_source_imports_only_torch_triton_and_its_neighbours(source):
    packages, neighbours = _imports(source)
    assert packages <= {"torch", "triton"}
    assert neighbours <= {path.stem for path in SOURCES}


def test_triton_is_imported_where_a_kernel_is_launched_and_not_before():
    needing = {path.stem for path in SOURCES if "triton" in _imports(path)[0]}
    assert needing
    for source in SOURCES:
        if source.stem not in needing and not source.stem.endswith("_triton"):
            assert not _imports(source, when_loaded=True)[1] & needing, source.name


def test_the_folder_above_is_not_a_package():
    assert not (FOLDER.parent / "__init__.py").exists()
    assert FOLDER / "__init__.py" in SOURCES and len(SOURCES) > 8


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_examples_of_the_readme_run(block):
    if "get_local_kernel" in block and not hasattr(
        pytest.importorskip("kernels"), "get_local_kernel"
    ):
        pytest.skip("the client package `kernels` is not installed")
    _run(block, ROOT)


def test_the_readme_s_cmc_is_that_of_full_ranked_lists():
    names: dict = {}
    exec(next(block for block in BLOCKS if "cmc" in block), names)
    query, gallery, answers = names["query"], names["gallery"], []
    for row, pid, camera in zip(
        1 - query @ gallery.T, names["q_pids"], names["q_camids"], strict=True
    ):
        order = np.argsort(row.numpy(), kind="stable")
        pids, cameras = names["g_pids"].numpy()[order], names["g_camids"].numpy()[order]
        match = (pids == int(pid))[(pids != int(pid)) | (cameras != int(camera))]
        if match.any():
            answers.append(np.maximum.accumulate(match)[: names["max_rank"]])
    assert 0 < len(answers) < len(query)
    torch.testing.assert_close(names["cmc"].double(), torch.from_numpy(np.mean(answers, axis=0)))
    assert bool((names["cmc"].diff() > 0).any())


@pytest.mark.parametrize("name", examples())
def test_the_readme_has_a_row_for_each_operator(name):
    assert re.search(rf"^\| `{name}_?\(", README.read_text(), flags=re.MULTILINE)


def test_names_that_look_alike_register_apart():
    from reid_kernels._ops import _namespace

    names = ["mine.ops", "mine_ops", "mine.Ops", "Zwölf.ops", "reid_kernels_", "reid_kernels"]
    spaces = [_namespace(name) for name in names]
    assert len(set(spaces)) == len(names)
    assert spaces[-1] == "reid_kernels"
    assert all(space.isascii() and space.isidentifier() for space in spaces)
