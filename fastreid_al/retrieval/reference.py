"""Searches among images of known identities, from which the sureness of a search is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.records import UNKNOWN, Record
from .open_set import UnknownThreshold, choose_threshold, measure_rate
from .probability import MatchProbability, calibration_error, fit_probability

#: Images of the sample, and images of one identity in it.
MOST_IMAGES, PER_IDENTITY = 4000, 4
#: Most queries of a search.
_QUERIES = 2000
#: Candidates of a query from which the probability is learnt.
_CANDIDATES = 50
#: Least number of identities in either half.
LEAST_IDENTITIES = 10
#: Values of a block of similarities: 64 MB.
_BLOCK = 2**24


def sample_images(records: Sequence[Record], seed: int = 0) -> list[int]:
    """Choose images of known identity: up to 4 of each identity, of as many cameras as possible.

    Args:
        records: The images.
        seed: Seed of the choice.

    Returns:
        Their rows, ascending, 4,000 at most; the same for the same records.
    """
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    of_identity: dict[int, dict[int, list[int]]] = {}
    for row in order:
        record = records[row]
        if record.identity != UNKNOWN:
            of_identity.setdefault(record.identity, {}).setdefault(record.camera, []).append(row)
    chosen: list[int] = []
    for cameras in of_identity.values():
        # The first image of every camera, then the second ones.
        turns = chain.from_iterable(zip_longest(*cameras.values()))
        rows = [row for row in turns if row is not None][:PER_IDENTITY]
        if len(chosen) + len(rows) > MOST_IMAGES:
            break
        chosen += rows
    return sorted(chosen)


def matches_per_query(records: Sequence[Record], same_camera: bool) -> float:
    """Return how many matches an image has among the other images, on average.

    Args:
        records: The images; those without an identity are left out.
        same_camera: Whether images of the same known camera count.
    """
    known = [record for record in records if record.identity != UNKNOWN]
    count: dict[int, int] = {}
    of_camera: dict[tuple[int, int], int] = {}
    for record in known:
        count[record.identity] = count.get(record.identity, 0) + 1
        key = record.identity, record.camera
        of_camera[key] = of_camera.get(key, 0) + 1
    total = sum(size * size for size in count.values())
    for (_, camera), size in of_camera.items():
        total -= size if same_camera or camera == UNKNOWN else size * size
    return total / max(1, len(known))


class Searched(NamedTuple):
    """What queries found among the other images of a sample.

    Args:
        similarity: (q, k) float32 of the best candidates, descending; -inf where there are fewer.
        same: (q, k) bool, whether the candidate has the query's identity.
        impostor: (q,) float32, best similarity of another identity.
        best: (q,) float32, best similarity of all.
        matches: (q,) int64, images of the query's identity among them.
    """

    similarity: Tensor
    same: Tensor
    impostor: Tensor
    best: Tensor
    matches: Tensor


def search_sample(
    features: Tensor,
    identities: Tensor,
    cameras: Tensor,
    queries: Tensor,
    gallery: Tensor,
    *,
    same_camera: bool = False,
) -> Searched:
    """Search a part of a sample for some of its images.

    The query's own image is left out, and images of its identity by the same known camera are
    unless `same_camera` is set.

    Args:
        features: (n, D) float32, unit-norm.
        identities: (n,) int64, all known.
        cameras: (n,) int64, -1 where unknown.
        queries: (q,) int64 rows.
        gallery: (g,) int64 rows.
        same_camera: Whether matches of the query's own camera count.

    Returns:
        The best 50 candidates and more, by blocks of 64 MB of similarities.
    """
    k = min(_CANDIDATES, len(gallery))
    bank = features[gallery]
    found = []
    for rows in queries.split(max(1, _BLOCK // max(1, len(gallery)))):
        similarity = features[rows] @ bank.T  # (b, g)
        same = identities[rows, None] == identities[gallery]
        left_out = rows[:, None] == gallery
        if not same_camera:
            known = cameras[rows, None] != UNKNOWN
            left_out |= same & known & (cameras[rows, None] == cameras[gallery])
        similarity = similarity.masked_fill(left_out, -torch.inf)
        values, places = similarity.topk(k, 1)
        found.append(
            Searched(
                values,
                same.gather(1, places),
                similarity.masked_fill(same, -torch.inf).amax(1),
                values[:, 0],
                (same & ~left_out).sum(1),
            )
        )
    return Searched(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@dataclass(frozen=True)
class Sureness:
    """What a sample of known identities says about a search of a gallery.

    Args:
        probability: Of a match, by similarity; None where it cannot be learnt.
        threshold: When a query is unknown; None where it cannot be chosen.
        pairs: Pairs that the probability was fitted to.
        error: Its calibration error on pairs of other identities; None where there are none.
        images: Images of the sample.
        identities: Identities of the sample.
    """

    probability: MatchProbability | None
    threshold: UnknownThreshold | None
    pairs: int
    error: float | None
    images: int
    identities: int


def learn_sureness(
    features: Tensor,
    identities: Tensor,
    cameras: Tensor,
    gallery_size: int,
    false_match_rate: float,
    *,
    same_camera: bool = False,
    seed: int = 0,
) -> Sureness:
    """Learn from images of known identities how sure a search is.

    Half of the identities choose the curve and the threshold, the other half measures them. For
    the error rates each identity gives one query, so that queries are independent; the gallery is
    the sample without the query's identity, or a part of it as large as the searched gallery.

    Args:
        features: (n, D) float32, unit-norm, of the sample.
        identities: (n,) int64, all known.
        cameras: (n,) int64, -1 where unknown.
        gallery_size: Images of the gallery that is searched.
        false_match_rate: The share of unknown queries that may be taken for known ones.
        same_camera: Whether matches of the query's own camera count.
        seed: Seed of the division.

    Returns:
        Probability and threshold, where there are enough identities.
    """
    random = np.random.default_rng(seed)
    numbers = identities.unique()
    chosen = numbers[torch.from_numpy(random.permutation(len(numbers)))]
    fitted = torch.isin(identities, chosen[: len(chosen) // 2])
    order = torch.from_numpy(random.permutation(len(features)))
    whole = torch.arange(len(features))

    def search(rows: Tensor, gallery: Tensor) -> Searched:
        rows = rows[:_QUERIES]
        return search_sample(features, identities, cameras, rows, gallery, same_camera=same_camera)

    halves = [order[fitted[order]], order[~fitted[order]]]
    if min(map(len, halves)) == 0:
        return Sureness(None, None, 0, None, len(features), len(numbers))
    first, second = (search(rows, whole) for rows in halves)
    matches = float(first.matches.double().mean())
    similarity, same = _pairs(first)
    probability = fit_probability(similarity, same, matches, max(1.0, len(whole) - matches))
    error = None
    if probability is not None:
        others, are_same = _pairs(second)
        stated = probability(others, probability.matches, probability.others)
        error = calibration_error(stated, are_same)
    threshold = None
    if min(len(chosen) // 2, len(chosen) - len(chosen) // 2) >= LEAST_IDENTITIES:
        gallery = order[: min(gallery_size, len(order))].sort().values
        threshold = _threshold(
            search(halves[0], gallery),
            search(_one_each(halves[1], identities), gallery),
            len(gallery),
            max(1.0, gallery_size / len(gallery)),
            false_match_rate,
        )
    return Sureness(probability, threshold, len(similarity), error, len(features), len(numbers))


def _pairs(found: Searched) -> tuple[np.ndarray, np.ndarray]:
    """Similarity and sameness of all candidates."""
    real = found.similarity.isfinite()
    return found.similarity[real].double().numpy(), found.same[real].numpy()


def _one_each(rows: Tensor, identities: Tensor) -> Tensor:
    """The first row of every identity."""
    first: dict[int, int] = {}
    for row, identity in zip(rows.tolist(), identities[rows].tolist(), strict=True):
        first.setdefault(identity, row)
    return torch.tensor(list(first.values()))


def _threshold(
    fitted: Searched, measured: Searched, size: int, growth: float, rate: float
) -> UnknownThreshold:
    # A gallery of few images may hold one identity only. Its own queries tell nothing then; those
    # of the nine other identities or more do.
    impostors, others = (s.impostor[s.impostor.isfinite()] for s in (fitted, measured))
    similarity = choose_threshold(impostors.double().numpy(), rate, growth)
    known = measured.best[measured.matches > 0]
    return UnknownThreshold(
        similarity,
        rate,
        measure_rate(int((others >= similarity).sum()), len(others)),
        measure_rate(int((known < similarity).sum()), len(known)) if len(known) else None,
        size,
        growth,
    )
