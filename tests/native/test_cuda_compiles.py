"""Every CUDA source compiles for the architectures of this nvcc, and no kernel spills registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_native
import pytest

NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
SOURCES = [*sorted(build_native.SOURCES.glob("*.cu")), build_native.HERE / "emulation.cpp"]
#: A100, H100 and H200, B200.
CHIPS = ("80", "90", "100")
#: Bytes of static shared memory that a block may have on any of them.
STATIC_SHARED = 48 * 1024

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
]


def kernels_of(output: str) -> list[dict[str, int | str]]:
    """What `nvcc -Xptxas -v` prints about each kernel."""
    got: list[dict[str, int | str]] = []
    for block in re.split(r"Compiling entry function ", output)[1:]:
        name = re.match(r"'(\S+)' for 'sm_\d+", block)
        frame = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block
        )
        registers = re.search(r"Used (\d+) registers", block)
        shared = re.search(r"(\d+) bytes smem", block)
        assert name and frame and registers, block
        got.append(
            {
                "kernel": name[1],
                "registers": int(registers[1]),
                "shared": int(shared[1]) if shared else 0,
                "stack": int(frame[1]),
                "spilled": int(frame[2]) + int(frame[3]),
            }
        )
    return got


@pytest.fixture(scope="module")
def compiled(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[Path, str], subprocess.CompletedProcess[str]]:
    assert NVCC is not None
    listed = subprocess.run(
        [NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    chips = [chip for chip in CHIPS if f"compute_{chip}\n" in listed]
    assert chips, listed
    folder = tmp_path_factory.mktemp("cubins")

    def compile_one(job: tuple[Path, str]) -> subprocess.CompletedProcess[str]:
        source, chip = job
        flags = ["-std=c++17", "-O3", "-x", "cu", f"-I{build_native.SOURCES}", "-Xptxas", "-v"]
        target = f"-gencode=arch=compute_{chip},code=sm_{chip}"
        command = [NVCC, *flags, target, "-c", source, "-o", folder / f"{source.stem}_{chip}.o"]
        return subprocess.run(command, capture_output=True, text=True)

    jobs = [(source, chip) for source in SOURCES for chip in chips]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(compile_one, jobs), strict=True))


def test_one_read_kernel_has_its_sums_in_registers(compiled):
    for (path, chip), done in compiled.items():
        if path.name != "bank_contrast_cuda.cu":
            continue
        assert done.returncode == 0, done.stdout + done.stderr
        kernels = kernels_of(done.stdout + done.stderr)
        parts = [kernel for kernel in kernels if "part_kernel" in str(kernel["kernel"])]
        # Two formats, five shapes.
        assert len(parts) == 10
        for kernel in parts:
            # An array that is not in registers has a stack frame. Before compute capability 9.0 the
            # kernel has no body.
            assert kernel["stack"] == 0, f"sm_{chip}: {kernel}"
            has_body = int(kernel["registers"]) > 100
            assert has_body == (int(chip) >= 90), f"sm_{chip}: {kernel}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_cuda_source_compiles_and_spills_no_registers(compiled, source: Path):
    for (path, chip), done in compiled.items():
        if path != source:
            continue
        assert done.returncode == 0, done.stdout + done.stderr
        kernels = kernels_of(done.stdout + done.stderr)
        assert kernels
        for kernel in kernels:
            print(f"{source.name} sm_{chip}: {kernel}")
            assert kernel["spilled"] == 0, f"sm_{chip}: {kernel}"
            assert int(kernel["shared"]) <= STATIC_SHARED, f"sm_{chip}: {kernel}"
