"""The library on CUDA against itself on the CPU, and a small training there."""

from __future__ import annotations

import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import (
    jaccard_cuda,
    jaccard_graph,
    nearest_neighbours,
    self_paced_labels,
)
from fastreid_al.config import (
    BatchConfig,
    ClusterConfig,
    ImageConfig,
    MemoryConfig,
    NetworkConfig,
    OptimizerConfig,
    RunConfig,
    SyntheticConfig,
)
from fastreid_al.data.augment import Augment
from fastreid_al.memory import ClusterMemory, FeatureMemory, InstanceMemory
from fastreid_al.metrics import rank_gallery
from fastreid_al.models import build_model
from tests.support.features import clustered_features, unit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


def on_grid(n: int, clusters: int, dim: int = 64, seed: int = 0) -> Tensor:
    """Unit float32 rows of +-1 / 8 whose dot products are exact in any order of summing, on any device; many are equal."""
    random = np.random.default_rng(seed)
    rows = random.choice([-1.0, 1.0], (clusters, dim))[random.integers(clusters, size=n)]
    rows[random.random((n, dim)) < 0.08] *= -1
    return torch.from_numpy(rows / math.sqrt(dim)).float()


def double(n: int, clusters: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(clustered_features(n, clusters, seed=seed, spread=0.6))


def test_the_extension_has_a_cuda_part_for_this_device() -> None:
    assert native.cuda_extension() is not None


@pytest.mark.parametrize("compiled", [True, False], ids=["extension", "PyTorch"])
@pytest.mark.parametrize(
    "features", [double(1500, 80), on_grid(1500, 80)], ids=["float64", "float32 with ties"]
)
def test_graph_and_labels_equal_those_of_the_cpu(
    features: Tensor, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = jaccard_graph(features)
    labels, threshold = self_paced_labels(here)
    assert int(labels.max()) > 10
    if not compiled:
        monkeypatch.setattr(native, "extension", lambda: None)
    assert torch.equal(
        nearest_neighbours(features.to(DEVICE), 30).cpu(), nearest_neighbours(features, 30)
    )
    there = jaccard_graph(features.to(DEVICE))
    assert all(x.device.type == DEVICE for x in there[:3])
    assert torch.equal(here.indptr, there.indptr.cpu())
    assert torch.equal(here.indices, there.indices.cpu())
    # Whole numbers are summed: what may differ is the rounding of single weights, which follow each device's exponential.
    torch.testing.assert_close(here.distances, there.distances.cpu(), rtol=0, atol=1e-7)
    found, found_threshold = self_paced_labels(there)
    assert torch.equal(labels, found.cpu())
    assert threshold == pytest.approx(found_threshold, abs=1e-12)


def test_rows_whose_partners_fit_no_table_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    features = on_grid(3000, 12)
    expected = jaccard_graph(features)
    monkeypatch.setattr(jaccard_cuda, "_SLOTS", 512)
    monkeypatch.setattr(jaccard_cuda, "_PAIRS_PER_ROW", 1)
    found = jaccard_graph(features.to(DEVICE))
    assert torch.equal(expected.indices, found.indices.cpu())
    torch.testing.assert_close(expected.distances, found.distances.cpu(), rtol=0, atol=1e-7)


def test_features_that_are_not_finite_are_named_on_cuda() -> None:
    features = double(50, 5).to(DEVICE)
    features[7, 0] = torch.nan
    with pytest.raises(ValueError, match="the first is row 7"):
        jaccard_graph(features)


@pytest.mark.parametrize("ids_on_cuda", [True, False])
def test_ranking_equals_that_of_the_cpu(ids_on_cuda: bool) -> None:
    random = np.random.default_rng(0)
    query, gallery = on_grid(200, 30), on_grid(1200, 30)
    query_ids, gallery_ids = (torch.from_numpy(random.integers(-1, 40, n)) for n in (200, 1200))
    query_cameras, gallery_cameras = (
        torch.from_numpy(random.integers(-1, 4, n)) for n in (200, 1200)
    )
    here = rank_gallery(query, query_ids, query_cameras, gallery, gallery_ids, gallery_cameras)
    facts = [query_ids, query_cameras, gallery_ids, gallery_cameras]
    qi, qc, gi, gc = (t.to(DEVICE) for t in facts) if ids_on_cuda else facts
    there = rank_gallery(query.to(DEVICE), qi, qc, gallery.to(DEVICE), gi, gc)
    assert here.queries > 100
    assert (there.queries, there.skipped) == (here.queries, here.skipped)
    assert there.mAP == pytest.approx(here.mAP, abs=1e-12)
    assert there.mINP == pytest.approx(here.mINP, abs=1e-12)
    assert torch.equal(there.cmc, here.cmc)


def test_augmentation_equals_that_of_the_cpu() -> None:
    config = ImageConfig(height=64, width=32, pad=4, jitter=0.2)
    here, there = Augment(config, seed=3), Augment(config, seed=3)
    for _ in range(4):
        pixels = torch.randint(256, (16, 3, 64, 32), dtype=torch.uint8)
        expected, found = here(pixels), there(pixels.to(DEVICE))
        assert found.device.type == DEVICE
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)
    assert torch.equal(here.generator.get_state(), there.generator.get_state())


def test_grouped_batchnorm_equals_that_of_the_cpu() -> None:
    # In float64, for convolutions in float32 may run in TF32 on CUDA.
    model = build_model("osnet_x0_25", "none", bn_group=4).double()
    images = torch.randn(10, 3, 64, 32, dtype=torch.float64)
    expected = model(images)
    running = {name: t.clone() for name, t in model.state_dict().items() if "running" in name}
    torch.manual_seed(0)
    other = build_model("osnet_x0_25", "none", bn_group=4).double()
    other.load_state_dict({**model.state_dict(), **_fresh_statistics(model)})
    other.to(DEVICE)
    torch.testing.assert_close(other(images.to(DEVICE)).cpu(), expected, rtol=0, atol=1e-8)
    found = other.state_dict()
    for name, values in running.items():
        torch.testing.assert_close(found[name].cpu(), values, rtol=1e-8, atol=1e-10)


def _fresh_statistics(model: torch.nn.Module) -> dict[str, Tensor]:
    state = {
        name: t
        for name, t in model.state_dict().items()
        if "running" in name or "num_batches" in name
    }
    return {
        name: torch.ones_like(t) if name.endswith("var") else torch.zeros_like(t)
        for name, t in state.items()
    }


MEMORIES = [
    pytest.param(lambda: InstanceMemory(0.2, 0.05), id="instance"),
    pytest.param(lambda: ClusterMemory(0.1, 0.05), id="cluster"),
    pytest.param(lambda: ClusterMemory(0.1, 0.05, hardest=True), id="cluster, hardest"),
]


@pytest.mark.parametrize("build", MEMORIES)
def test_memory_and_loss_equal_those_of_the_cpu(build) -> None:
    features = double(300, 20)
    # The classes come from the CPU, as those of the clustering do; some images have none.
    classes = torch.arange(300) % 25 - 1
    sides: list[tuple[FeatureMemory, torch.device]] = [
        (build(), torch.device("cpu")),
        (build(), torch.device(DEVICE)),
    ]
    for memory, device in sides:
        memory.start(features.to(device))
        memory.begin_epoch(features.to(device), classes)
    random = np.random.default_rng(1)
    for _ in range(5):
        # With repeated images, and only images that have a class.
        rows = torch.from_numpy(random.choice(np.flatnonzero(classes.numpy() >= 0)[:40], 32))
        batch = torch.from_numpy(unit(random.normal(size=(32, features.shape[1]))))
        losses, gradients = [], []
        for memory, device in sides:
            x = batch.to(device).requires_grad_()
            loss = memory.loss(x, rows.to(device))
            loss.backward()
            memory.update(x.detach(), rows.to(device))
            losses.append(loss.item())
            gradients.append(x.grad.cpu())
            assert memory.bank.device.type == device.type
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9)
        torch.testing.assert_close(sides[0][0].bank, sides[1][0].bank.cpu(), rtol=0, atol=1e-9)


@pytest.fixture
def small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    for package in ("rich", "matplotlib", "sqlalchemy"):
        pytest.importorskip(package)
    monkeypatch.setenv("FASTREID_AL_CACHE", str(tmp_path / "cache"))
    try:
        import platformdirs  # noqa: F401
    except ImportError:
        # It only finds the cache folder, which is given here.
        monkeypatch.setitem(sys.modules, "platformdirs", types.ModuleType("platformdirs"))
    return RunConfig(
        method="supervised",
        model="osnet_x0_25",
        weights="none",
        epochs=2,
        device=DEVICE,
        evaluate_every=9,
        run_dir=str(tmp_path / "run"),
        synthetic=SyntheticConfig(
            train_identities=16,
            train_images=160,
            test_identities=8,
            query_images=8,
            gallery_images=40,
            height=64,
        ),
        image=ImageConfig(height=64, width=32, pad=4),
        network=NetworkConfig(bn_group=16),
        batch=BatchConfig(size=32, per_identity=4, iterations=20),
        cluster=ClusterConfig(k1=10),
        optimizer=OptimizerConfig(lr=1e-3),
    )


def test_training_runs_and_resumes_and_lowers_the_loss(small_run: RunConfig) -> None:
    from fastreid_al.runs import run_training

    first = run_training(small_run)
    assert [r["epoch"] for r in first.history] == [0, 1, 2]
    after = run_training(replace(small_run, epochs=4), resume=True)
    assert [r["epoch"] for r in after.history] == [0, 1, 2, 3, 4]
    assert after.history[:3] == first.history
    assert after.history[-1]["loss"] < first.history[1]["loss"]
    assert 0 < after.history[-1]["mAP"] <= 1


@pytest.mark.parametrize(
    ("memory", "source"),
    [(MemoryConfig(), "memory"), (MemoryConfig("cluster", hardest=True), "extract")],
    ids=["instance memory", "cluster memory"],
)
def test_unlabelled_training_runs_and_resumes(
    small_run: RunConfig, memory: MemoryConfig, source: str
) -> None:
    from fastreid_al.runs import run_training

    cluster = replace(small_run.cluster, source=source)  # type: ignore[arg-type]
    config = replace(small_run, method="ucal", memory=memory, cluster=cluster, epochs=1)
    run_training(config)
    after = run_training(replace(config, epochs=2), resume=True)
    assert [r["epoch"] for r in after.history] == [0, 1, 2]
    assert all(np.isfinite(r["loss"]) for r in after.history[1:])


def test_a_run_stopped_within_an_epoch_goes_on(
    small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from fastreid_al.engine import Interrupted
    from fastreid_al.methods import Supervised
    from fastreid_al.runs import run_training

    update, calls = Supervised.update, []

    def stop_at_the_fifth(self: Supervised, features: Tensor, rows: Tensor) -> None:
        update(self, features, rows)
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Supervised, "update", stop_at_the_fifth)
    config = replace(small_run, epochs=1)
    with pytest.raises(Interrupted):
        run_training(config)
    after = run_training(config, resume=True)
    assert len(calls) == config.batch.iterations
    assert after.history[-1]["epoch"] == 1


@pytest.mark.parametrize("strategy", ["ucal", "gain", "spal", "random"])
def test_questions_and_refined_labels_equal_those_of_the_cpu(strategy: str) -> None:
    pytest.importorskip("sqlalchemy")
    from fastreid_al.active import propose_merges, propose_splits, refine
    from fastreid_al.annotators import Oracle
    from fastreid_al.answers import Asker
    from fastreid_al.config import QuestionConfig

    features = on_grid(1200, 60)
    identities = torch.arange(1200) % 60
    labels = torch.from_numpy(np.random.default_rng(0).integers(-1, 30, 1200))
    for propose in (propose_splits, propose_merges):
        here, there = propose(features, labels), propose(features.to(DEVICE), labels)
        assert here
        assert [q.images for q in here] == [q.images for q in there]
    config = QuestionConfig(per_epoch=100, k_max_rule="root")
    here, there = (
        refine(f, labels, Asker(Oracle(identities)), strategy, config)
        for f in (features, features.to(DEVICE))
    )
    assert there.spent.questions == here.spent.questions > 0
    assert torch.equal(here.labels, there.labels)
