"""k-medoids of many clusters: the extension, Python, the slow reference, and FasterPAM for quality.

Features whose entries are short binary fractions make every sum exact in any order, so that all
implementations see the same ties.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreid_al import native
from fastreid_al.clustering import Groupings, kmedoids, kmedoids_many
from fastreid_al.clustering.kmedoids import dot_products
from tests.support.references_active import _split_score, reference_kmedoids

module = import_module("fastreid_al.clustering.kmedoids")
needs_extension = pytest.mark.skipif(
    native.extension() is None, reason="the extension is not built"
)


@pytest.fixture(params=[pytest.param("extension", marks=needs_extension), "Python"])
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Python":
        monkeypatch.setattr(native, "extension", lambda: None)


def in_python(call: Callable[[], Groupings]) -> Groupings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "extension", lambda: None)
        return call()


def tied(rng: np.random.Generator, n: int, prototypes: int, flips: int = 2) -> np.ndarray:
    """Unit rows of 16 entries of +-1/4 near a few prototypes, many of them equal."""
    signs = rng.choice([-1.0, 1.0], size=(prototypes, 16))[rng.integers(0, prototypes, n)]
    for row in signs:
        row[rng.integers(0, 16, rng.integers(0, flips + 1))] *= -1
    return signs / 4


def cloud(
    rng: np.random.Generator, n: int, centres: int, dim: int = 12, noise: float = 0.5
) -> np.ndarray:
    """Rows near centres that are near each other, unit to four digits, in steps of 2^-14."""
    means = rng.normal(size=(1, dim)) + rng.normal(size=(max(1, centres), dim))
    rows = means[rng.integers(0, max(1, centres), n)] + noise * rng.normal(size=(n, dim))
    return np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True) * 2**14) / 2**14


def clusters_of(rng: np.random.Generator, sizes: list[int], n: int) -> tuple[Tensor, Tensor]:
    """Rows of clusters of these sizes, in no order, some of them in several clusters."""
    indptr = torch.tensor([0, *np.cumsum(sizes, dtype=np.int64)])
    return indptr, torch.from_numpy(rng.integers(0, n, sum(sizes)))


def assert_equal(got: Groupings, expected: Groupings) -> None:
    for name in ("k", "medoids", "labels"):
        assert getattr(got, name).dtype == torch.int64
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    for name in ("similarity", "scores", "totals"):
        assert getattr(got, name).dtype == torch.float64
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), rtol=1e-12, atol=1e-12
        )


def assert_as_the_reference(
    features: np.ndarray, indptr: Tensor, members: Tensor, k_max: list[int], k_min: int
) -> Groupings:
    """Every k of every cluster, step by step."""
    got = kmedoids_many(
        torch.from_numpy(features), indptr, members, torch.tensor(k_max, dtype=torch.int64), k_min
    )
    scores, totals = got.scores.tolist(), got.totals.tolist()
    medoids = got.medoids.split(got.k.tolist())
    for c, most in enumerate(k_max):
        rows = members[indptr[c] : indptr[c + 1]].numpy()
        s = features[rows] @ features[rows].T
        best, best_score = None, -np.inf
        for k in range(k_min, most + 1):
            chosen, places = reference_kmedoids(s, k)
            groups = [[j for j in range(len(rows)) if places[j] == p] for p in range(k)]
            score = _split_score(s, groups)
            assert scores.pop(0) == pytest.approx(score, abs=1e-12)
            assert totals.pop(0) == pytest.approx(s[chosen].max(0).sum(), abs=1e-9)
            if score > best_score + 5e-13:
                best, best_score = (k, chosen, places), score
        assert best is not None
        k, chosen, places = best
        assert int(got.k[c]) == k
        assert medoids[c].tolist() == rows[chosen].tolist()
        assert got.labels[indptr[c] : indptr[c + 1]].tolist() == places
        own = s[np.array(chosen)[places], np.arange(len(rows))]
        assert np.array_equal(got.similarity[indptr[c] : indptr[c + 1]].numpy(), own)
    assert not scores and not totals
    return got


SMALL_CLUSTERS = {
    "seed": st.integers(0, 2**32 - 1),
    "sizes": st.lists(st.integers(1, 24), max_size=5),
    "k_min": st.integers(1, 3),
    "prototypes": st.integers(0, 6),
}


@settings(max_examples=20, deadline=None)
@given(**SMALL_CLUSTERS)
def test_clusters_equal_the_reference(
    seed: int, sizes: list[int], k_min: int, prototypes: int
) -> None:
    check_against_the_reference(seed, sizes, k_min, prototypes)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(**SMALL_CLUSTERS)
def test_clusters_equal_the_reference_in_many_cases(
    seed: int, sizes: list[int], k_min: int, prototypes: int
) -> None:
    check_against_the_reference(seed, sizes, k_min, prototypes)


def check_against_the_reference(seed: int, sizes: list[int], k_min: int, prototypes: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [size for size in sizes if size >= k_min]
    features = tied(rng, 30, prototypes) if prototypes else cloud(rng, 30, 4)
    indptr, members = clusters_of(rng, sizes, 30)
    k_max = [int(rng.integers(k_min, min(size, k_min + 4) + 1)) for size in sizes]
    first = assert_as_the_reference(features, indptr, members, k_max, k_min)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "extension", lambda: None)
        second = assert_as_the_reference(features, indptr, members, k_max, k_min)
    assert_equal(first, second)


LARGE_CLUSTERS = {
    "seed": st.integers(0, 2**32 - 1),
    "sizes": st.lists(st.integers(1, 300), min_size=1, max_size=4),
    "dim": st.sampled_from([1, 3, 4, 130, 255, 256, 257, 700]),
    "single": st.booleans(),
    "prototypes": st.integers(0, 8),
}


@needs_extension
@settings(max_examples=8, deadline=None)
@given(**LARGE_CLUSTERS)
def test_the_extension_equals_python(
    seed: int, sizes: list[int], dim: int, single: bool, prototypes: int
) -> None:
    check_extension_against_python(seed, sizes, dim, single, prototypes)


@pytest.mark.slow
@needs_extension
@settings(max_examples=40, deadline=None)
@given(**LARGE_CLUSTERS)
def test_the_extension_equals_python_in_many_cases(
    seed: int, sizes: list[int], dim: int, single: bool, prototypes: int
) -> None:
    check_extension_against_python(seed, sizes, dim, single, prototypes)


def check_extension_against_python(
    seed: int, sizes: list[int], dim: int, single: bool, prototypes: int
) -> None:
    rng = np.random.default_rng(seed)
    array = tied(rng, 200, prototypes, 1) if prototypes else cloud(rng, 200, 5, dim)
    features = torch.from_numpy(array).to(torch.float32 if single else torch.float64)
    indptr, members = clusters_of(rng, sizes, 200)
    k_max = torch.tensor([max(1, int((size / 2) ** 0.5)) for size in sizes])
    expected = in_python(lambda: kmedoids_many(features, indptr, members, k_max, 1))
    assert_equal(kmedoids_many(features, indptr, members, k_max, 1), expected)


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize("size", [1, 2, 3, 7, 15, 16, 17, 33, 64, 300])
def test_sizes_around_whole_lanes(size: int) -> None:
    rng = np.random.default_rng(size)
    indptr, members = torch.tensor([0, size]), torch.from_numpy(rng.permutation(size))
    most = min(size, 3 if size > 64 else 5)
    for features in (cloud(rng, size, 4), tied(rng, size, 3)):
        assert_as_the_reference(features, indptr, members, [most], 1)


@pytest.mark.usefixtures("_engine")
def test_as_many_medoids_as_images_even_when_all_are_one_image() -> None:
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    got = kmedoids_many(
        features, torch.tensor([0, 3, 5]), torch.tensor([0, 0, 0, 1, 0]), torch.tensor([3, 2])
    )
    assert got.k.tolist() == [2, 2]
    assert got.medoids.tolist() == [0, 0, 1, 0]
    assert got.labels.tolist() == [0, 1, 0, 0, 1]
    assert got.scores.tolist() == pytest.approx([0.0, 0.0, 0.8], abs=1e-6)


@pytest.mark.usefixtures("_engine")
def test_results_do_not_depend_on_threads_on_the_group_or_on_the_order_of_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(cloud(rng, 400, 9, 40)).float()
    sizes = [*rng.integers(2, 60, 12).tolist(), 150, 2, 2, 9, 9]
    indptr, members = clusters_of(rng, sizes, 400)
    k_max = torch.tensor([max(2, int((size / 2) ** 0.5)) for size in sizes])
    whole = kmedoids_many(features, indptr, members, k_max)
    for threads in (1, 2, 7):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        again = kmedoids_many(features, indptr, members, k_max)
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    monkeypatch.setattr(module, "_BLOCK", 8 * 3000)
    assert_equal(kmedoids_many(features, indptr, members, k_max), whole)
    turned = kmedoids_many(
        features,
        torch.tensor([0, *np.cumsum(sizes[::-1])]),
        torch.cat(members.split(sizes)[::-1]),
        k_max.flip(0),
    )
    assert torch.equal(turned.k.flip(0), whole.k)
    assert torch.equal(torch.cat(turned.labels.split(sizes[::-1])[::-1]), whole.labels)


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize(
    "form", ["float16", "bfloat16", "float32", "columns of a wider array", "every other row"]
)
def test_any_floating_rows(form: str) -> None:
    rng = np.random.default_rng(1)
    features = torch.from_numpy(tied(rng, 60, 6))
    indptr, members = clusters_of(rng, [20, 9, 31], 60)
    expected = kmedoids_many(features, indptr, members, 3)
    if form == "columns of a wider array":
        features = torch.cat([features, torch.full((60, 5), torch.nan)], dim=1)[:, :16]
    elif form == "every other row":
        features = features.repeat_interleave(2, dim=0)[::2]
    else:
        features = features.to(getattr(torch, form))
    assert_equal(kmedoids_many(features, indptr, members, 3), expected)
    assert_equal(kmedoids_many(features.clone().requires_grad_(), indptr, members, 3), expected)


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize("rows", [0, 5])
def test_no_clusters_at_all(rows: int) -> None:
    got = kmedoids_many(
        torch.zeros(rows, 4),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        2,
    )
    assert all(len(x) == 0 for x in got)


@pytest.mark.usefixtures("_engine")
def test_one_cluster_of_many_is_what_one_alone_gives() -> None:
    rng = np.random.default_rng(2)
    features = torch.from_numpy(cloud(rng, 90, 6))
    indptr, members = clusters_of(rng, [40, 50], 90)
    for k in (1, 2, 5, 8):
        got = kmedoids_many(features, indptr, members, k, k)
        for c in (0, 1):
            rows = members[indptr[c] : indptr[c + 1]]
            alone = kmedoids(features[rows] @ features[rows].T, k)
            assert torch.equal(got.medoids[c * k : (c + 1) * k], rows[alone.medoids])
            assert torch.equal(got.labels[indptr[c] : indptr[c + 1]], alone.labels)


@pytest.mark.usefixtures("_engine")
def test_swap_starts_from_given_medoids() -> None:
    rng = np.random.default_rng(3)
    similarity = torch.from_numpy((x := cloud(rng, 40, 4)) @ x.T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "extension", lambda: None)
        expected = [kmedoids(similarity, 4, start) for start in ([3, 1, 2, 0], [39, 11, 20, 5])]
    for start, reference in zip(([3, 1, 2, 0], (39, 11, 20, 5)), expected, strict=True):
        got = kmedoids(similarity, 4, start)
        assert got.medoids.tolist() == reference.medoids.tolist()
        assert got.labels.tolist() == reference.labels.tolist()
    best = kmedoids(similarity, 4).medoids.tolist()
    assert kmedoids(similarity, 4, best).medoids.tolist() == best


@needs_extension
@pytest.mark.parametrize("dim", [3, 37, 256, 300, 2048])
def test_equal_rows_have_equal_products_wherever_they_stand(dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = torch.from_numpy(rng.normal(size=(7, dim)))
    members = torch.from_numpy(rng.integers(0, 7, 61))
    blocks, offsets = dot_products(rows, torch.tensor([0, 50, 61]), members)
    for begin, end, offset in ((0, 50, int(offsets[0])), (50, 61, int(offsets[1]))):
        size = end - begin
        block = blocks[offset : offset + size * size].view(size, size)
        here = members[begin:end]
        torch.testing.assert_close(block, rows[here] @ rows[here].T, rtol=1e-12, atol=1e-10)
        assert torch.equal(block, block.T)
        for row in here.unique():
            assert (block[:, here == row] == block[:, here == row][:, :1]).all()


def test_losses_are_no_greater_than_those_of_faster_pam() -> None:
    """On average over clusters: a greedy start may lose to the best random one, not to the mean."""
    faster = pytest.importorskip("kmedoids")
    rng = np.random.default_rng(4)
    ours, theirs = [], []
    for _ in range(60):
        m, k = int(rng.integers(12, 120)), int(rng.integers(2, 9))
        features = torch.from_numpy(
            cloud(rng, m, int(rng.integers(1, 12)), noise=float(rng.uniform(0.2, 1.0)))
        )
        got = kmedoids_many(features, torch.tensor([0, m]), torch.arange(m), k, k)
        distances = (1 - features @ features.T).numpy()
        losses = [faster.fasterpam(distances, k, random_state=seed).loss for seed in range(5)]
        ours.append(m - float(got.totals[0]))
        theirs.append(float(np.mean(losses)))
        assert ours[-1] <= max(losses) * 1.05 + 1e-9
    assert np.mean(ours) <= np.mean(theirs)


def refused(**changes: object) -> dict[str, object]:
    return {
        "features": torch.eye(6),
        "indptr": torch.tensor([0, 3, 6]),
        "members": torch.arange(6),
        "k_max": torch.tensor([2, 3]),
        "k_min": 2,
    } | changes


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.ones(6)}, r"features: got shape \(6,\), expected \(n, D\)"),
        ({"features": torch.ones(6, 2, dtype=torch.int64)}, "features: got"),
        ({"indptr": torch.tensor([0.0, 3.0, 6.0])}, "indptr: got dtype torch.float32"),
        ({"indptr": torch.tensor([[0, 3, 6]])}, "indptr: got"),
        ({"indptr": torch.tensor([], dtype=torch.int64)}, "indptr: got"),
        ({"indptr": torch.tensor([1, 3, 6])}, r"indptr: got \[1, 6\], expected 0 to 6"),
        ({"indptr": torch.tensor([0, 3, 5])}, r"indptr: got \[0, 5\], expected 0 to 6"),
        ({"indptr": torch.tensor([0, 5, 3, 6]), "k_max": 2}, "indptr: got 5 before 3"),
        ({"members": torch.tensor([0, 1, 2, 3, 4, 6])}, "members: got 6, expected 0 to 5"),
        ({"members": torch.tensor([0, 1, -1, 3, 4, 5])}, "members: got -1, expected 0 to 5"),
        ({"members": torch.arange(6.0)}, "members: got"),
        ({"k_max": torch.tensor([2, 4])}, "k_max: got 4 for cluster 1, expected 2 to 3"),
        ({"k_max": torch.tensor([1, 2])}, "k_max: got 1 for cluster 0, expected 2 to 3"),
        ({"k_max": torch.tensor([2])}, r"k_max: got shape \(1,\), expected \(2,\)"),
        ({"k_max": 0}, "k_max: got 0"),
        ({"k_min": 0}, "k_min: got 0"),
        ({"k_min": 3}, "k_max: got 2 for cluster 0, expected 3 to 3"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        kmedoids_many(**refused(**changes))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_row_that_is_not_finite_is_named(value: float, dtype: torch.dtype) -> None:
    features = torch.eye(6, dtype=dtype)
    features[4, 1] = features[5, 0] = value
    with pytest.raises(ValueError, match="row 4 that is not finite"):
        kmedoids_many(features, torch.tensor([0, 3, 6]), torch.tensor([0, 2, 1, 3, 5, 4]), 2)
    assert len(kmedoids_many(features, torch.tensor([0, 4]), torch.arange(4), 2).labels) == 4


@pytest.mark.usefixtures("_engine")
def test_similarities_that_are_not_finite_are_refused() -> None:
    similarity = torch.eye(5)
    similarity[3, 2] = torch.nan
    with pytest.raises(ValueError, match="row 3"):
        kmedoids(similarity, 2)
    with pytest.raises(ValueError, match="start"):
        kmedoids(torch.eye(5), 2, [1, 1])


@pytest.mark.parametrize("extension", [True, False], ids=["extension", "Python"])
@pytest.mark.parametrize("scale", [1e4, 1e10])
def test_exchanges_end_where_sums_are_large(
    extension: bool, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal points, and gains that are rounding: these were exchanged for ever."""
    if not extension:
        monkeypatch.setattr(native, "extension", lambda: None)
    points = torch.randn(100, 3, generator=torch.Generator().manual_seed(2)).repeat(2, 1)
    got = kmedoids(-torch.cdist(points, points) * scale, 5)
    assert len(set(got.medoids.tolist())) == 5
    assert got.labels[got.medoids].tolist() == [0, 1, 2, 3, 4]


def test_a_start_is_whole_numbers() -> None:
    with pytest.raises(ValueError, match=r"start: got 0.5 in a list, expected integers"):
        kmedoids(torch.eye(5), 2, start=[0.5, 1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 different points"):
        kmedoids(torch.eye(5), 2, start=torch.tensor([1, 1]))


def test_a_matrix_that_is_not_symmetric_is_refused_and_one_that_is_but_for_rounding_is_not() -> (
    None
):
    with pytest.raises(ValueError, match="expected a symmetric matrix"):
        kmedoids(torch.rand(9, 9, generator=torch.Generator().manual_seed(0)), 3)
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    similarity = rows @ rows.T
    similarity[3, 70] = similarity[3, 70].nextafter(torch.tensor(9.0))
    assert len(kmedoids(similarity, 4).medoids) == 4
