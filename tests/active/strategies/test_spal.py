"""The spal strategy asks about the farthest inside and the nearest outside."""

from __future__ import annotations

import numpy as np

from fastreid_al.active.strategies.spal import farthest_and_nearest_pairs
from tests.support.asking import crowded


def test_spal_pairs_are_the_farthest_inside_and_the_nearest_outside() -> None:
    features, _, labels = crowded(120)
    got = {(q.reason, q.images) for q in farthest_and_nearest_pairs(features, labels)}
    similarity = (features.double() @ features.double().T).numpy()
    np.fill_diagonal(similarity, np.nan)
    expected = set()
    for i in range(120):
        inside = (labels == labels[i]).numpy() & (int(labels[i]) >= 0)
        inside[i] = False
        outside = ~inside
        outside[i] = False
        if inside.any():
            j = int(np.where(inside, similarity[i], np.inf).argmin())
            expected.add(("split", (min(i, j), max(i, j))))
        j = int(np.where(outside, similarity[i], -np.inf).argmax())
        expected.add(("merge", (min(i, j), max(i, j))))
    assert got == expected
