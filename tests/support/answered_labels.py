"""Labels changed to agree with answers: a slow form in float64 that shares no code with the
package's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

#: Which clusters follow their answered images.
Follow = Literal["all", "compact", "none"]
#: Says of two images whether they are known to be the same (True) or different (False).
Known = Callable[[int, int], bool | None]


def labels_by_answers(
    features: np.ndarray, labels: np.ndarray, known: Known, follow: Follow = "all"
) -> list[set[int]]:
    """Return the clusters of two or more images after the answers.

    Args:
        features: (n, D) unit-norm.
        labels: (n,) cluster of each image, -1 outside every cluster.
        known: What follows from the answers.
        follow: Which clusters follow their answered images as a whole: all of them, those that the
            images represent (compact), or none.
    """
    n = len(labels)
    x = features.astype(np.float64)
    named = [{i for i in range(n) if labels[i] == c} for c in sorted(set(labels.tolist()) - {-1})]
    clusters: list[set[int]] = []
    for cluster in named:
        clusters += _conflict_free(x, cluster, known)
    alone = set(range(n)) - set().union(*clusters)
    clusters += [{i} for i in sorted(alone)]
    components = _components(n, known)
    parts = {i: next(c for c in clusters if i in c) for c in components for i in c}
    spread = [c for c in components if len({id(parts[i]) for i in c}) > 1]
    margins = _margins(x, clusters) if follow == "compact" else {}
    if follow == "all":
        margins = {i: 0.0 for cluster in clusters for i in cluster}
    for component in sorted(spread, key=lambda c: (-len(c), sorted(c))):
        _gather(x, clusters, component, margins, known)
    return sorted((c for c in clusters if len(c) > 1), key=min)


def _components(n: int, known: Known) -> list[set[int]]:
    rest, found = set(range(n)), []
    while rest:
        first = min(rest)
        component = {first} | {i for i in rest if i != first and known(first, i) is True}
        rest -= component
        found.append(component)
    return found


def _different(a: set[int], b: set[int], known: Known) -> bool:
    return any(known(i, j) is False for i in a for j in b if i != j)


def _conflict_free(x: np.ndarray, cluster: set[int], known: Known) -> list[set[int]]:
    """The parts of a cluster; each image joins the group of its most similar answered image."""
    anchors = {i for i in cluster if any(known(i, j) is False for j in cluster if j != i)}
    if not anchors:
        return [cluster]
    components: list[set[int]] = []
    for i in sorted(anchors):
        home = next((c for c in components if known(i, min(c)) is True), None)
        if home is None:
            components.append({i})
        else:
            home.add(i)
    groups: list[set[int]] = []
    # Equally large components are taken in an order that the tests do not depend on.
    for component in sorted(components, key=lambda c: (-len(c), min(c))):
        home = next((g for g in groups if not _different(component, g, known)), None)
        if home is None:
            groups.append(set(component))
        else:
            home |= component
    parts = [set(group) for group in groups]
    ordered = sorted(anchors)
    for i in sorted(cluster - anchors):
        nearest = ordered[int(np.argmax([x[i] @ x[a] for a in ordered]))]
        parts[next(k for k, g in enumerate(groups) if nearest in g)].add(i)
    return parts


def _mean(x: np.ndarray, images: set[int]) -> np.ndarray:
    mean = x[sorted(images)].mean(0)
    return mean / np.linalg.norm(mean)


def _margins(x: np.ndarray, clusters: list[set[int]]) -> dict[int, float]:
    """How central each image of a compact cluster is, over the quarter of least central ones."""
    several = [c for c in clusters if len(c) > 1]
    means = [_mean(x, c) for c in several]
    margins = {}
    for at, cluster in enumerate(several):
        order = np.argsort([-(means[at] @ m) for m in means], kind="stable")
        near = [k for k in order if k != at][:10]
        own = {i: float(x[i] @ means[at]) for i in cluster}
        nearer = [i for i in cluster if all(x[i] @ means[k] <= own[i] for k in near)]
        if len(nearer) >= 0.8 * len(cluster):
            least = float(np.quantile(list(own.values()), 0.25))
            margins |= {i: s - least for i, s in own.items()}
    return margins


def _gather(
    x: np.ndarray,
    clusters: list[set[int]],
    component: set[int],
    margins: dict[int, float],
    known: Known,
) -> None:
    """Bring a component together in one of the clusters that hold its images."""
    held = [c for c in clusters if c & component]

    def represented(cluster: set[int]) -> bool:
        own = [margins.get(i, -np.inf) for i in cluster & component]
        return bool(np.mean(own) >= -1e-6)

    def claim(cluster: set[int]) -> tuple[object, ...]:
        others = cluster - component
        near = _mean(x, others) @ _mean(x, component) if others else -np.inf
        return not represented(cluster), -len(cluster & component), -near, min(cluster & component)

    target, *rest = sorted(held, key=claim)
    follow = represented(target)
    represents = [represented(c) for c in rest]
    for cluster, whole in zip(rest, represents, strict=True):
        moved = cluster & component
        if whole and follow and not _different(cluster, target, known):
            moved = set(cluster)
        target |= moved
        cluster -= moved
