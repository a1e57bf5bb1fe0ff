"""Correlation clustering: the partition that evidence for and against pairs supports most."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping

from ..arguments import as_integer, as_number, described

#: Gains below this are rounding.
_LEAST_GAIN = 1e-9
#: Passes over all groups in which nodes are exchanged and groups joined.
_PASSES = 50


def correlation_clusters(count: int, weights: Mapping[tuple[int, int], float]) -> list[int]:
    """Divide nodes so that the weights inside the groups have the greatest sum that is found.

    A weight above 0 is evidence that two nodes belong together, one below 0 that they do not; pairs
    without a weight have none. The optimum is NP-hard (Bansal, Blum and Chawla, Machine Learning
    2004). Here groups are joined greedily, the greatest sum of weights between two groups first
    (greedy additive edge contraction); then nodes are exchanged between groups, groups split, and
    groups joined, until none improves the sum (both: Keuper et al., ICCV 2015).
    The result depends on the weights alone, not on their order.

    Args:
        count: n, the number of nodes.
        weights: Weight by pair of nodes (i, j), i != j, each pair once in either order; finite.

    Returns:
        For each node the lowest node of its group. Time is O(m log m) for m pairs on graphs like
        those of answers, whose groups have few neighbours; memory about 500 bytes a pair.

    Raises:
        ValueError: A node outside [0, n), a pair of one node, a pair twice, or a weight that is not
            finite.
    """
    count = as_integer("count", count, 0)
    graph = _graph(count, weights)
    part = _contract(count, graph)
    for _ in range(_PASSES):
        moved = _exchange_nodes(graph, part)
        joined = _join_groups(graph, part)
        if not (moved or joined):
            break
    lowest: dict[int, int] = {}
    for node in range(count):
        lowest.setdefault(part[node], node)
    return [lowest[group] for group in part]


def _graph(count: int, weights: Mapping[tuple[int, int], float]) -> list[dict[int, float]]:
    """Neighbours and weights of each node, neighbours ascending."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"weights: got {described(weights)}, expected weights by pair of nodes")
    graph: list[dict[int, float]] = [{} for _ in range(count)]
    for (i, j), weight in sorted(weights.items(), key=lambda item: sorted(item[0])):
        i = as_integer("weights", i, 0, count - 1)
        j = as_integer("weights", j, 0, count - 1)
        if i == j or j in graph[i]:
            raise ValueError(
                f"weights: got the pair ({i}, {j}), expected two nodes, each pair once"
            )
        graph[i][j] = graph[j][i] = float(as_number("weights", weight))
    return graph


def _contract(count: int, graph: list[dict[int, float]]) -> list[int]:
    """Join the two groups with the greatest sum of weights between them while it is above 0.

    Returns:
        The group of each node, named by one of its nodes.
    """
    between = [dict(neighbours) for neighbours in graph]
    members = [[node] for node in range(count)]
    queue = [(-weight, i, j) for i, row in enumerate(between) for j, weight in row.items() if i < j]
    heapq.heapify(queue)
    while queue and -queue[0][0] > _LEAST_GAIN:
        negative, i, j = heapq.heappop(queue)
        if between[i].get(j) != -negative:
            continue  # One of the groups was joined since.
        # The group with fewer neighbours is joined to the other; the lower node names the union.
        small, large = sorted((i, j), key=lambda group: (len(between[group]), -group))
        members[large] += members[small]
        members[small] = []
        del between[large][small]
        for other, weight in between[small].items():
            if other == large:
                continue
            del between[other][small]
            total = between[large].get(other, 0.0) + weight
            between[large][other] = between[other][large] = total
            heapq.heappush(queue, (-total, min(large, other), max(large, other)))
        between[small] = {}
    part = list(range(count))
    for group, nodes in enumerate(members):
        for node in nodes:
            part[node] = group
    return part


def _exchange_nodes(graph: list[dict[int, float]], part: list[int]) -> bool:
    """Exchange nodes between each two groups that have a pair between them, and split groups."""
    members: dict[int, set[int]] = defaultdict(set)
    for node, group in enumerate(part):
        members[group].add(node)
    free = [name for name in range(len(graph)) if name not in members]
    changed = False
    for a, b in _adjacent(graph, part):
        changed |= _exchange(graph, part, members, a, b)
    for a in sorted(members):
        # With an empty group: what is moved there is a group of its own.
        if len(members[a]) > 1 and free and _exchange(graph, part, members, a, free[-1]):
            free.pop()
            changed = True
    return changed


def _adjacent(graph: list[dict[int, float]], part: list[int]) -> list[tuple[int, int]]:
    """The pairs of groups that have a pair of nodes between them, ascending."""
    pairs = set()
    for node, neighbours in enumerate(graph):
        for other in neighbours:
            if part[node] < part[other]:
                pairs.add((part[node], part[other]))
    return sorted(pairs)


def _exchange(
    graph: list[dict[int, float]],
    part: list[int],
    members: dict[int, set[int]],
    a: int,
    b: int,
) -> bool:
    """Move nodes between two groups as long as it pays in the end (Kernighan and Lin, 1970).

    Each node is moved once, the one with the greatest gain first, also where the gain is below 0.
    The moves up to the greatest sum of gains are kept.

    Args:
        graph: Neighbours and weights of each node.
        part: The group of each node; changed.
        members: The nodes of each group; changed.
        a: A group.
        b: Another group, which may be empty.

    Returns:
        Whether a move was kept.
    """
    nodes = sorted(members[a] | members[b])
    side = {node: part[node] == a for node in nodes}
    gain = {}
    for node in nodes:
        inside = [(side[o] == side[node], w) for o, w in graph[node].items() if o in side]
        gain[node] = sum(-weight if same else weight for same, weight in inside)
    moves: list[int] = []
    total = best = 0.0
    kept = 0
    while gain:
        node = max(gain, key=lambda n: (gain[n], -n))
        total += gain.pop(node)
        moves.append(node)
        side[node] = not side[node]
        for other, weight in graph[node].items():
            if other in gain:
                gain[other] += -2 * weight if side[other] == side[node] else 2 * weight
        if total > best + _LEAST_GAIN:
            best, kept = total, len(moves)
    for node in moves[:kept]:
        group = b if part[node] == a else a
        members[part[node]].discard(node)
        members[group].add(node)
        part[node] = group
    return kept > 0


def _join_groups(graph: list[dict[int, float]], part: list[int]) -> bool:
    """Join groups whose sum of weights between them is above 0, the greatest first."""
    names = sorted(set(part))
    index = {name: number for number, name in enumerate(names)}
    between: list[dict[int, float]] = [{} for _ in names]
    for i, neighbours in enumerate(graph):
        a = index[part[i]]
        for j, weight in neighbours.items():
            b = index[part[j]]
            if i < j and a != b:
                between[a][b] = between[b][a] = between[a].get(b, 0.0) + weight
    joined = _contract(len(names), between)
    if joined == list(range(len(names))):
        return False
    for node, group in enumerate(part):
        part[node] = names[joined[index[group]]]
    return True


def support_of(part: Iterable[int], weights: Mapping[tuple[int, int], float]) -> float:
    """Return the sum of the weights inside the groups of a partition.

    Args:
        part: The group of each node.
        weights: Weight by pair of nodes.
    """
    groups = list(part)
    return sum(weight for (i, j), weight in weights.items() if groups[i] == groups[j])
