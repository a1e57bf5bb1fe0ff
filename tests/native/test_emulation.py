"""The emulation of CUDA behaves like CUDA, and a missing wait in a kernel is found."""

from __future__ import annotations

import subprocess
from pathlib import Path

import build_native
import pytest

pytestmark = pytest.mark.skipif(build_native.compiler() is None, reason="no C++ compiler")
KERNELS = ("sums", "shuffles", "histogram", "warps", "links", "stuck", "overflow", "refused")
OF_CLUSTERS = ("exchange", "late", "stuck-cluster", "copies", "products", "rounding")


def run(program: Path, kernel: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, kernel], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_native.build_program(
        build_native.HERE / "emulation.cpp", tmp_path_factory.mktemp("emulation")
    )


@pytest.fixture(scope="module")
def of_clusters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clusters")
    return build_native.build_program(build_native.HERE / "emulation_clusters.cpp", folder)


@pytest.fixture(scope="module")
def watched_clusters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched_clusters")
    source = build_native.HERE / "emulation_clusters.cpp"
    return build_native.build_program(source, folder, sanitizer="thread")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    return build_native.build_program(
        build_native.HERE / "emulation.cpp", folder, sanitizer="thread"
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", ["1", "7"])
def test_emulated_kernels_compute_what_a_gpu_computes(program: Path, kernel: str, seed: str):
    done = run(program, kernel, FASTREID_AL_EMULATED_SEED=seed)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kernel", OF_CLUSTERS)
@pytest.mark.parametrize("seed", ["1", "7"])
def test_emulated_clusters_compute_what_a_gpu_computes(of_clusters: Path, kernel: str, seed: str):
    done = run(of_clusters, kernel, FASTREID_AL_EMULATED_SEED=seed)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kernel", ["exchange-without-waiting", "copies-without-waiting"])
def test_a_missing_wait_gives_wrong_values(of_clusters: Path, kernel: str):
    done = run(of_clusters, kernel)
    assert done.returncode == 1 and "got" in done.stdout


def test_dynamic_shared_memory_has_the_size_that_the_environment_says(program: Path):
    assert run(program, "sums", FASTREID_AL_EMULATED_SHARED_BYTES="512").returncode == 0
    refused = run(program, "sums", FASTREID_AL_EMULATED_SHARED_BYTES="511")
    assert refused.returncode != 0 and "512 of 511" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["sums", "shuffles", "histogram", "warps", "links"])
def test_a_kernel_that_waits_has_no_race(watched: Path, kernel: str):
    done = run(watched, kernel)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["sums-without-waiting", "warps-without-waiting"])
def test_a_missing_wait_is_a_race(watched: Path, kernel: str):
    done = run(watched, kernel)
    assert done.returncode != 0
    assert "data race" in done.stderr


@pytest.mark.slow
def test_a_cluster_that_releases_what_it_writes_has_no_race(watched_clusters: Path):
    done = run(watched_clusters, "exchange")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["exchange-without-waiting", "exchange-without-release"])
def test_a_write_to_another_block_that_is_not_released_is_a_race(
    watched_clusters: Path, kernel: str
):
    done = run(watched_clusters, kernel)
    assert done.returncode != 0
    assert "data race" in done.stderr


@pytest.mark.parametrize("flags", [[], ["-DFASTREID_AL_STD_THREADS"]], ids=["OpenMP", "threads"])
def test_loops_over_threads_do_each_range_once(tmp_path: Path, flags: list[str]):
    program = build_native.build_program(build_native.HERE / "threads.cpp", tmp_path, flags)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
