"""Training with a labelled source: losses and memories against loops in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_al.config import BatchConfig, ClusterConfig, MemoryConfig, NNCTConfig
from fastreid_al.errors import SettingError, TrainingError
from fastreid_al.memory import ClusterMemory, InstanceMemory
from fastreid_al.methods import NNCT, UCAL
from fastreid_al.methods.adaptation import Source, SourceClassifier
from tests.support.features import clustered_features
from tests.support.references import reference_update

N, M, DIM = 60, 40, 8
BATCH = BatchConfig(size=16, per_identity=4, iterations=3)
#: Ten identities, of which number 4 has no image.
IDENTITIES = torch.arange(M) % 10 + (torch.arange(M) % 10 >= 4)
SOURCE = Source(IDENTITIES, torch.arange(M) // 10)
TARGET = F.normalize(torch.from_numpy(clustered_features(N, 6, spread=0.6, dim=DIM)).double())
BESIDE = F.normalize(
    torch.from_numpy(clustered_features(M, 10, spread=0.6, dim=DIM, seed=3)).double()
)


def extract(domain: str = "target") -> Tensor:
    return BESIDE if domain == "source" else TARGET


def nnct(weight: float = 0.3) -> NNCT:
    classifier = SourceClassifier(SOURCE, DIM, weight, seed=0).double()
    return NNCT(N, 1, NNCTConfig(single_label=6), BATCH, epochs=10, seed=0, source=classifier)


def ucal(kind: str, source: Source | None = SOURCE) -> UCAL:
    memory = MemoryConfig(kind=kind, hardest=kind == "cluster", temperature=0.1)  # type: ignore
    cluster = ClusterConfig(k1=10, k2=2, source="extract" if kind == "cluster" else "memory")
    return UCAL(torch.arange(N) % 4, cluster, BATCH, memory, seed=0, source=source)


def embeddings(seed: int) -> Tensor:
    return (
        3 * torch.randn(2 * BATCH.size, DIM, generator=torch.Generator().manual_seed(seed)).double()
    )


def test_identities_are_numbered_without_gaps_and_unlabelled_sources_refused() -> None:
    assert SOURCE.count == 10
    assert SOURCE.identities.tolist() == [i % 10 for i in range(M)]
    cameras = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="2 of 4 training images of the source have no identity"):
        Source(torch.tensor([0, -1, 1, -1]), cameras)
    with pytest.raises(ValueError, match="the source has 1 identity in 4 training images"):
        Source(torch.tensor([3, 3, 3, 3]), cameras)


@pytest.mark.parametrize("make", [nnct, lambda: ucal("instance"), lambda: ucal("cluster")])
def test_batches_hold_as_many_images_of_the_source_behind_those_of_the_target(
    make: Callable[[], NNCT | UCAL],
) -> None:
    method = make()
    method.label_images(0, extract)
    batches, again = list(method.batches(0)), list(method.batches(0))
    assert len(batches) == BATCH.iterations
    for rows, same in zip(batches, again, strict=True):
        assert torch.equal(rows, same)
        target, source = rows.split(BATCH.size)
        assert bool(((target >= 0) & (target < N)).all())
        assert bool(((source >= N) & (source < N + M)).all())
        if isinstance(method, UCAL):
            assert SOURCE.identities[source - N].view(-1, 4).unique(dim=1).shape == (4, 1)
    assert not torch.equal(batches[0][BATCH.size :], next(iter(method.batches(1)))[BATCH.size :])


def test_batches_of_the_target_are_those_of_a_run_without_a_source() -> None:
    alone, both = ucal("instance", None), ucal("instance")
    for method in (alone, both):
        method.label_images(0, extract)
    assert torch.equal(alone.labels, both.labels)
    for a, b in zip(alone.batches(0), both.batches(0), strict=True):
        assert torch.equal(a, b[: BATCH.size])
    plain = NNCT(N, 1, NNCTConfig(), BATCH, 10, 0)
    for a, b in zip(plain.batches(0), nnct().batches(0), strict=True):
        assert torch.equal(a, b[: BATCH.size])


def mmcl_by_loops(features: np.ndarray, bank: np.ndarray, rows: list[int]) -> float:
    """Each image its own only label, and the one hardest negative of 59."""
    losses = []
    for f, row in zip(features, rows, strict=True):
        s = [float(f @ v) for v in bank]
        losses.append(5.0 * (1 - s[row]) ** 2 + (1 + max(s[:row] + s[row + 1 :])) ** 2)
    return float(np.mean(losses))


def cross_entropy_by_loops(
    features: np.ndarray, weights: np.ndarray, identities: list[int]
) -> float:
    losses = []
    for f, own in zip(features, identities, strict=True):
        logits = [float(f @ w) for w in weights]
        losses.append(np.log(sum(np.exp(x) for x in logits)) - logits[own])
    return float(np.mean(losses))


def test_nnct_weighs_cross_entropy_of_raw_features_against_its_own_loss() -> None:
    method = nnct(0.3)
    method.label_images(0, extract)
    rows = next(iter(method.batches(0)))
    method.loss(embeddings(0), rows)
    method.update(embeddings(0), rows)
    assert int(method.memory.bank.any(1).sum()) == BATCH.size
    assert method.source is not None
    torch.nn.init.normal_(method.source.linear.weight, generator=torch.Generator().manual_seed(2))
    x = embeddings(1).requires_grad_()
    loss = method.loss(x, rows)
    target = mmcl_by_loops(
        F.normalize(x.detach())[:16].numpy(), method.memory.bank.numpy(), rows[:16].tolist()
    )
    weights = method.source.linear.weight.detach().numpy()
    source = cross_entropy_by_loops(
        x.detach()[16:].numpy(), weights, SOURCE.identities[rows[16:] - N].tolist()
    )
    assert loss.item() == pytest.approx(0.7 * source + 0.3 * target, abs=1e-10)
    loss.backward()
    assert x.grad is not None and bool(x.grad[:16].any()) and bool(x.grad[16:].any())
    assert method.source.linear.weight.grad is not None


def test_the_classifier_begins_small_and_follows_the_seed() -> None:
    wide = Source(torch.arange(M).repeat(2), torch.zeros(2 * M, dtype=torch.int64))
    first, same, other = (
        SourceClassifier(wide, 256, 0.3, seed).linear.weight for seed in (0, 0, 1)
    )
    assert first.std().item() == pytest.approx(1e-3, rel=0.05)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_state_of_nnct_holds_the_classifier() -> None:
    first, second = nnct(), nnct()
    torch.nn.init.normal_(next(first.layers().parameters()))
    first.label_images(0, extract)
    rows = next(iter(first.batches(0)))
    first.loss(embeddings(0), rows)
    kept = next(second.layers().parameters())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.loss(embeddings(1), rows), second.loss(embeddings(1), rows))
    # An optimizer that was made before goes on with the very same tensor.
    assert next(second.layers().parameters()) is kept


def classes_by_loops(method: UCAL) -> list[np.ndarray]:
    """The bank rows of each class: the target's, then the source's identities."""
    bank = method.memory.bank.numpy()
    target = method.memory.classes[:N].tolist()
    if isinstance(method.memory, ClusterMemory):
        return [row[None] for row in bank]
    own = [np.stack([bank[i] for i in range(N) if target[i] == c]) for c in range(max(target) + 1)]
    return own + [row[None] for row in bank[N:]]


@pytest.mark.parametrize("kind", ["instance", "cluster"])
def test_ucal_contrasts_all_classes_of_both_domains(kind: str) -> None:
    method = ucal(kind)
    method.label_images(0, extract)
    rows = next(iter(method.batches(0)))
    x = embeddings(1)
    features, classes = F.normalize(x).numpy(), classes_by_loops(method)
    target_classes = int(method.memory.classes[:N].max()) + 1
    assert len(classes) == target_classes + SOURCE.count
    losses = []
    for f, row in zip(features, rows.tolist(), strict=True):
        own = (
            int(method.memory.classes[row])
            if row < N
            else target_classes + int(SOURCE.identities[row - N])
        )
        logits = [float(np.mean([f @ v for v in members])) / 0.1 for members in classes]
        losses.append(np.log(sum(np.exp(z) for z in logits)) - logits[own])
    expected = np.mean(losses[:16]) + np.mean(losses[16:])
    assert method.loss(x, rows).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["instance", "cluster"])
def test_centroids_of_the_source_begin_as_means_and_move_with_its_images(kind: str) -> None:
    method = ucal(kind)
    method.label_images(0, extract)
    means = [np.mean([BESIDE[i].numpy() for i in range(M) if i % 10 == c], 0) for c in range(10)]
    start = np.stack([m / np.linalg.norm(m) for m in means])
    before = method.memory.bank.clone().numpy()
    assert np.allclose(before[-10:], start, atol=1e-12)
    rows = next(iter(method.batches(0)))
    x = embeddings(1)
    features = F.normalize(x).numpy()
    count = int(method.memory.classes[:N].max()) + 1
    if kind == "instance":
        slots = [r if r < N else N + int(SOURCE.identities[r - N]) for r in rows.tolist()]
        expected = reference_update(before.copy(), features, np.array(slots), 0.2)
    else:
        slots = [
            int(method.memory.classes[r]) if r < N else count + (r - N) % 10 for r in rows.tolist()
        ]
        hard = [
            min((i for i in range(32) if slots[i] == s), key=lambda i: features[i] @ before[s])
            for s in set(slots)
        ]
        expected = reference_update(
            before.copy(), features[hard], np.array([slots[i] for i in hard]), 0.1
        )
    method.update(x, rows)
    assert np.allclose(method.memory.bank.numpy(), expected, atol=1e-12)
    moved = method.memory.bank[-10:].clone()
    assert not np.allclose(moved.numpy(), start)
    calls: list[str] = []
    method.label_images(1, lambda domain="target": calls.append(domain) or extract(domain))
    assert calls == ([] if kind == "instance" else ["target"])
    assert torch.equal(method.memory.bank[-10:], moved)


@pytest.mark.parametrize("kind", ["instance", "cluster"])
def test_clusters_are_those_of_the_target_alone_and_state_continues(kind: str) -> None:
    method = ucal(kind)
    facts = method.label_images(0, extract)
    assert facts["clustered"] + facts["alone"] == N == len(method.labels)
    rows = next(iter(method.batches(0)))
    method.update(embeddings(1), rows)
    other = ucal(kind)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.loss(embeddings(2), rows), method.loss(embeddings(2), rows))
    assert other.label_images(1, extract) == method.label_images(1, extract)
    other.update(embeddings(3), rows)
    method.update(embeddings(3), rows)
    assert torch.equal(other.memory.bank, method.memory.bank)


def test_one_single_cluster_can_be_told_from_the_source_but_none_cannot() -> None:
    method = ucal("instance")
    method.assign = lambda epoch, features: (torch.zeros(N, dtype=torch.int64),) * 2  # type: ignore
    assert method.label_images(0, extract)["classes"] == 1
    method.assign = lambda epoch, features: (torch.full((N,), -1),) * 2  # type: ignore
    with pytest.raises(TrainingError, match="no cluster"):
        method.label_images(1, extract)


def test_memories_without_a_source_hold_nothing_more() -> None:
    for memory in (InstanceMemory(0.2, 0.1), ClusterMemory(0.1, 0.1)):
        memory.start(TARGET)
        memory.begin_epoch(TARGET, torch.arange(N) % 6)
        assert memory.source_count == 0
        assert len(memory.bank) == (N if isinstance(memory, InstanceMemory) else 6)
        assert len(memory.classes) == N


def test_nnct_needs_a_batch_of_the_source() -> None:
    few = SourceClassifier(
        Source(torch.arange(10) % 2, torch.zeros(10, dtype=torch.int64)), DIM, 0.3, 0
    )
    with pytest.raises(
        SettingError,
        match=r"`batch\.size`: got 16, expected at most 10, the number of training images of the",
    ):
        NNCT(N, 1, NNCTConfig(), BATCH, 10, 0, few)
