"""Schemas of the public functions of `fastreid_al`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastreid_al import active, annotators, clustering, memory, methods, metrics, models
from fastreid_al.answers import Answer, Asker, Closure, Question, Verdict
from fastreid_al.config import (
    BatchConfig,
    ClusterConfig,
    ImageConfig,
    MemoryConfig,
    NNCTConfig,
    QuestionConfig,
)
from fastreid_al.data import augment, samplers
from fastreid_al.synthetic import planted_partition
from tests.support.references import (
    reference_clusters,
    reference_dbscan,
    reference_jaccard,
    reference_linkage,
    reference_neighbours,
    reference_pairs,
    reference_ranking,
    reference_standardised,
    reference_whitened,
)

from .schema import Arguments, Random, Schema, close, count, ids, lists, rows

WORLD = {"world": "object"}
#: A path of three nodes.
GRAPH = clustering.Graph(
    torch.tensor([0, 1, 3, 4]), torch.tensor([1, 0, 2, 1]), torch.tensor([0.1, 0.1, 0.3, 0.3]), 0.5
)


def chosen(random: Random, *values: Any) -> Any:
    return values[int(random.integers(len(values)))]


def some_rows(random: Random, most: int = 40) -> Tensor:
    dtype = chosen(random, torch.float32, torch.float64)
    return rows(random, count(random, 1, most), count(random, 2, 24), dtype)


def clustered(random: Random, most: int = 40) -> Arguments:
    features = some_rows(random, most).float()
    return {"features": features, "labels": ids(random, len(features), 6, -1)}


# Clustering


def neighbours_are_right(arguments: Arguments, result: Any) -> bool:
    """By similarity, since ties may break by rounding."""
    x = arguments["features"].double()
    expected = torch.from_numpy(reference_neighbours(x.numpy(), arguments["k"]))
    similarity = x @ x.T
    return result.shape == expected.shape and close(
        similarity.gather(1, result), similarity.gather(1, expected), 1e-5
    )


def jaccard_arguments(random: Random) -> Arguments:
    k1 = count(random, 1, 20)
    return {
        "features": some_rows(random),
        "k1": k1,
        "k2": count(random, 1, min(k1, 8)),
        "max_distance": float(random.uniform(0, 0.99)),
    }


def jaccard_is_right(arguments: Arguments, result: Any) -> bool:
    """For rows whose neighbour lists do not depend on the rounding of similarities."""
    x = arguments["features"]
    if x.dtype != torch.float64 or len(torch.unique(x, dim=0)) < len(x):
        return bool((result.distances <= max(arguments["max_distance"], 1e-6)).all())
    dense = np.ones((len(x), len(x)))
    at = np.repeat(np.arange(len(x)), result.indptr.diff().numpy())
    dense[at, result.indices.numpy()] = result.distances.numpy()
    np.fill_diagonal(dense, 0)
    expected = reference_jaccard(x.numpy(), arguments["k1"], arguments["k2"])
    near = expected < arguments["max_distance"] - 1e-9
    np.fill_diagonal(near, False)
    return bool(np.allclose(dense[near], expected[near], atol=1e-8))


def graph_arguments(random: Random) -> Arguments:
    graph = clustering.radius_graph(some_rows(random), 0.9)
    return {
        "graph": graph,
        "eps": float(random.uniform(0, 0.89)),
        "min_samples": count(random, 1, 6),
        "backend": "auto",
    }


def dense_distances(graph: clustering.Graph) -> np.ndarray:
    dense = np.full((graph.n, graph.n), 2.0)
    at = np.repeat(np.arange(graph.n), graph.indptr.diff().numpy())
    dense[at, graph.indices.numpy()] = graph.distances.numpy()
    np.fill_diagonal(dense, 0)
    return dense


def dbscan_is_right(arguments: Arguments, result: Any) -> bool:
    graph = arguments["graph"]
    # Distances are compared in their own dtype.
    eps = float(torch.tensor(arguments["eps"], dtype=graph.distances.dtype))
    expected = reference_dbscan(dense_distances(graph), eps, arguments["min_samples"])
    return result.tolist() == expected.tolist()


def linkage_arguments(random: Random) -> Arguments:
    graph = clustering.radius_graph(some_rows(random, 14), 0.9)
    groups = ids(random, graph.n, 4, -1)
    pairs = ids(random, 12, graph.n).view(6, 2)
    first, second = groups[pairs].T
    apart = (pairs[:, 0] != pairs[:, 1]) & ((first != second) | (first < 0))
    return {
        "graph": graph,
        "threshold": float(random.uniform(0.01, 1)),
        "groups": groups if random.random() < 0.5 else torch.full_like(groups, -1),
        "cannot_links": pairs[apart] if bool(apart.any()) else None,
    }


def linkage_is_right(arguments: Arguments, result: Any) -> bool:
    distance = dense_distances(arguments["graph"]).clip(max=1)
    labels, joins = reference_linkage(
        distance, arguments["threshold"], arguments["groups"], arguments["cannot_links"]
    )
    pairs = list(zip(result.merges.first.tolist(), result.merges.second.tolist(), strict=True))
    return result.labels.tolist() == labels.tolist() and pairs == [join[:2] for join in joins]


def labels_at(threshold: float) -> Tensor:
    return clustering.average_linkage(GRAPH, 0.1).labels_at(threshold)


def cosine_arguments(random: Random) -> Arguments:
    eps = chosen(random, 0.0, 1e-9, 1e-4, float(random.uniform(0, 0.99)))
    return {
        "features": some_rows(random),
        "eps": eps,
        "min_samples": count(random, 1, 6),
        "backend": chosen(random, "auto", "graph"),
    }


def cosine_is_right(arguments: Arguments, result: Any) -> bool:
    x, eps = arguments["features"].double(), arguments["eps"]
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
    if bool(((distance - eps).abs() < 1e-6).logical_and(distance > 0).any()):
        return True  # a pair at the radius, which rounding decides
    expected = reference_dbscan(distance.numpy(), eps + 1e-15, arguments["min_samples"])
    return result.tolist() == expected.tolist()


def self_paced_arguments(random: Random) -> Arguments:
    graph = clustering.jaccard_graph(some_rows(random), 10, 3, 0.7)
    return {
        "graph": graph,
        "eps": float(random.uniform(0.1, 0.6)),
        "eps_gap": float(random.uniform(0, 0.05)),
        "min_samples": count(random, 1, 5),
        "threshold": chosen(random, None, 0.5),
    }


def camera_arguments(random: Random) -> Arguments:
    features = some_rows(random)
    cameras = ids(random, len(features), 4, -1)
    return {"features": features, "cameras": cameras, "scale": random.random() < 0.7}


def camera_is_right(arguments: Arguments, result: Any) -> bool:
    rows_ = arguments["features"].double().numpy()
    expected = reference_standardised(rows_, arguments["cameras"].numpy(), arguments["scale"])
    return close(result, torch.from_numpy(expected), 1e-3)


def whitening_arguments(random: Random) -> Arguments:
    features = some_rows(random)
    labels = ids(random, len(features), 6, -1)
    shrinkage = float(random.uniform(0.05, 1))
    return {"features": features, "labels": labels, "shrinkage": shrinkage}


def whitening_is_right(arguments: Arguments, result: Any) -> bool:
    rows_ = arguments["features"].double().numpy()
    expected = reference_whitened(rows_, arguments["labels"].numpy(), arguments["shrinkage"])
    return close(result, torch.from_numpy(expected), 1e-3)


def matrix_arguments(random: Random) -> Arguments:
    x = some_rows(random, 20)
    return {"similarity": x @ x.T, "k": count(random, 1, len(x)), "start": None}


def medoids_are_right(arguments: Arguments, result: Any) -> bool:
    s, k = arguments["similarity"], arguments["k"]
    different = len(result.medoids.unique()) == k
    best = s.double()[result.medoids].max(0).values
    own = s.double()[result.medoids[result.labels], torch.arange(len(s))]
    return different and bool((own >= best - 1e-6).all())


def clusters_arguments(random: Random) -> Arguments:
    x = some_rows(random)
    sizes = random.integers(2, 7, size=count(random, 1, 4))
    members = ids(random, int(sizes.sum()), len(x))
    indptr = torch.from_numpy(np.cumsum([0, *sizes]))
    return {"features": x, "indptr": indptr, "members": members, "k_max": 2, "k_min": 2}


def ivf_arguments(random: Random) -> Arguments:
    return {
        "features": rows(random, count(random, 2, 60), 8),
        "k": count(random, 1, 6),
        "lists": chosen(random, None, 2),
        "probes": chosen(random, None, 2),
        "sample": count(random, 1, 20),
    }


def graph_fields(random: Random) -> Arguments:
    graph = clustering.radius_graph(some_rows(random), 0.8)
    return dict(zip(("indptr", "indices", "distances", "max_distance"), graph, strict=True))


def clustered_graph(**fields: Any) -> Tensor:
    return clustering.dbscan(clustering.Graph(**fields), 0.0)


# Metrics


def ranking_arguments(random: Random) -> Arguments:
    dim, q, g = count(random, 2, 12), count(random, 1, 8), count(random, 1, 30)
    return {
        "query_features": rows(random, q, dim, torch.float64),
        "query_ids": ids(random, q, 5, -1),
        "query_cameras": ids(random, q, 3, -1),
        "gallery_features": rows(random, g, dim, torch.float64),
        "gallery_ids": ids(random, g, 5, -1),
        "gallery_cameras": ids(random, g, 3, -1),
        "length": count(random, 1, 20),
    }


RANKING = {
    **{"query_features": "rows", "query_ids": "ids", "query_cameras": "ids"},
    **{"gallery_features": "rows", "gallery_ids": "ids", "gallery_cameras": "ids"},
    "length": "count",
}


def ranking_is_right(arguments: Arguments, result: Any) -> bool:
    a = arguments
    similarity = a["query_features"] @ a["gallery_features"].T
    values = similarity.flatten().sort().values
    close_by = values.diff()
    if bool(((close_by > 0) & (close_by < 1e-12)).any()):
        return True  # ties that rounding breaks
    facts = ("query_ids", "query_cameras", "gallery_ids", "gallery_cameras")
    expected = reference_ranking(similarity.numpy(), *(a[name].numpy() for name in facts))
    pairs = ((result.mAP, expected["mAP"]), (result.mINP, expected["mINP"]))
    return all(abs(x - y) < 1e-9 for x, y in pairs) and result.skipped == expected["skipped"]


def pairs_arguments(random: Random) -> Arguments:
    n = count(random, 0, 40)
    return {"labels": ids(random, n, 6, -1), "identities": ids(random, n, 5)}


def pairs_are_right(arguments: Arguments, result: Any) -> bool:
    expected = reference_pairs(arguments["labels"].numpy(), arguments["identities"].numpy())
    return bool(np.allclose(result, expected, atol=1e-12))


def cluster_scores_arguments(random: Random) -> Arguments:
    made = pairs_arguments(random)
    n = len(made["labels"])
    return made | {"cameras": chosen(random, None, ids(random, n, 3, -1))}


def cluster_scores_are_right(arguments: Arguments, result: Any) -> bool:
    arrays = [None if x is None else x.numpy() for x in arguments.values()]
    pairs = zip(result, reference_clusters(*arrays), strict=True)
    return all(a == b if a is None or b is None else abs(a - b) < 1e-12 for a, b in pairs)


def lists_arguments(random: Random) -> Arguments:
    n = count(random, 1, 20)
    indptr, indices = lists(random, n, n)
    return {"indptr": indptr, "indices": indices, "identities": ids(random, n, 5)}


def lists_are_right(arguments: Arguments, result: Any) -> bool:
    indptr, indices, who = (x.tolist() for x in arguments.values())
    pairs = {(i, j) for i in range(len(who)) for j in indices[indptr[i] : indptr[i + 1]]}
    pairs = {(i, j) for i, j in pairs if i != j}
    true = {(i, j) for i in range(len(who)) for j in range(len(who)) if i != j and who[i] == who[j]}
    both = len(pairs & true)
    expected = both / len(pairs) if pairs else 1.0, both / len(true) if true else 1.0
    return bool(np.allclose(result, expected, atol=1e-12))


# Questions and answers


def refine_arguments(random: Random) -> Arguments:
    made = clustered(random)
    n = len(made["features"])
    oracle = annotators.Oracle(ids(random, n, 5))
    return made | {
        "asker": Asker(oracle, budget=count(random, 0, 6)),
        "strategy": chosen(random, "ucal", "gain", "spal", "random"),
        "config": QuestionConfig(),
        "epoch": count(random, 0, 3),
    }


def refined_labels(**arguments: Any) -> Tensor:
    return active.refine(**arguments).labels


def rounds(**a: Any) -> Tensor:
    made = active.QuestionRounds(a["asker"], a["strategy"], a["config"])
    return made.refine(a["epoch"], a["features"], a["labels"])[0]


def pair_arguments(random: Random) -> Arguments:
    made = clustered(random)
    n = len(made["features"]) + 1
    features = torch.cat([made["features"], made["features"][:1]])
    return {
        "features": features,
        "labels": torch.cat([made["labels"], made["labels"][:1]]),
        "identities": ids(random, n, 4),
        "i": n - 1,
        "j": 0,
        "budget": 5,
        "confirm_merges": count(random, 0, 2),
        "seed": count(random, 0, 9),
        "closure": chosen(random, "transitive", "none"),
        "minutes": 1.5,
        "cameras": ids(random, n, 3),
        "tracks": ids(random, n, n),
    }


def asked_pair(**a: Any) -> Any:
    oracle = annotators.Oracle(a["identities"])
    names = "budget", "confirm_merges", "seed", "closure", "minutes", "cameras", "tracks"
    settings = {name: a[name] for name in names}
    asker = Asker(oracle, **settings)
    verdicts = []

    def ask(features: Any, labels: Any, asker: Any, config: Any) -> None:
        verdicts.append(asker.ask_pair(a["i"], a["j"]))

    labels = active.refine(a["features"], a["labels"], asker, ask).labels
    return verdicts, labels


def oracle_arguments(random: Random) -> Arguments:
    n = count(random, 2, 9)
    return {
        "identities": ids(random, n, 4),
        "names": [f"{i}.jpg" for i in range(n)],
        "error": 0.2,
        "unsure": 0.1,
        "not_comparable": 0.1,
        "seed": count(random, 0, 9),
        "seconds": 4.0,
        "i": 0,
        "j": n - 1,
    }


def oracle_answers(i: Any, j: Any, **settings: Any) -> Verdict:
    oracle = annotators.Oracle(**settings)
    return oracle.answer(Question.about_images(i, j, "merge", 0.5))


def question_arguments(random: Random) -> Arguments:
    return {
        "images": (0, 5),
        "groups": (torch.tensor([0, 1]), torch.tensor([5, 7])),
        "reason": "merge",
        "similarity": 0.5,
        "score": 1.0,
        "cluster": -1,
        "probability": 0.25,
    }


def answer_arguments(random: Random) -> Arguments:
    left, right = (int(x) for x in random.permutation(9)[:2])
    verdict = chosen(random, *Verdict)
    return {"event": 3, "left": left, "right": right, "verdict": verdict, "a": left, "b": right}


def closed(a: Any, b: Any, transitive: Any = True, **fields: Any) -> Any:
    closure = Closure.replay([Answer(**fields)], transitive)
    facts = (closure.verdict(a, b), closure.answered(a, b), closure.chain(a, b), closure.root(a))
    replayed = annotators.Replay(closure)
    if closure.answered(a, b):
        replayed.answer(Question.about_images(a, b, "merge", 0.5))
    return facts


# Memories and methods


def bank_arguments(random: Random) -> Arguments:
    n, batch = count(random, 1, 40), count(random, 1, 5)
    indptr, indices = lists(random, batch, n)
    return {
        "n": n,
        "layout": chosen(random, "auto", "bits", "sparse"),
        "capacity": count(random, 1, 50),
        "rows": ids(random, batch, n),
        "indptr": indptr,
        "indices": indices,
        "similarities": chosen(random, None, torch.rand(len(indices))),
        "device": "cpu",
    }


def bank_labels(**a: Any) -> Any:
    bank = memory.PseudoLabelMemoryBank(a["n"], a["layout"], a["capacity"], a["device"])
    bank.update(a["rows"], a["indptr"], a["indices"], a["similarities"])
    return bank.lookup(a["rows"]), bank.lookup_bits(a["rows"]), bank.dropped


def sharded_bank_labels(**a: Any) -> Any:
    bank = memory.ShardedLabelBank(a["n"], a["layout"], a["capacity"])
    bank.update(a["rows"], a["indptr"], a["indices"])
    return bank.lookup(a["rows"]), bank.lookup_bits(a["rows"]), bank.local_lists()


BANK = {
    **{"n": "count", "layout": "choice", "capacity": "count", "rows": "indices"},
    **{"indptr": "ids", "indices": "indices"},
}


def memory_arguments(random: Random) -> Arguments:
    n, dim = count(random, 2, 30), count(random, 1, 16)
    classes = torch.from_numpy(np.unique(random.integers(-1, 5, size=n), return_inverse=True)[1])
    batch = ids(random, 4, n)
    return {
        "momentum": float(random.uniform(0, 1)),
        "temperature": float(random.uniform(0.05, 1)),
        "features": rows(random, n, dim),
        "classes": classes,
        "batch": rows(random, 4, dim),
        "rows": batch,
    }


def trained_memory(kind: type, a: Arguments, **more: Any) -> Any:
    made = kind(a["momentum"], a["temperature"], **more)
    made.start(a["features"])
    made.begin_epoch(a["features"], a["classes"])
    loss = made.loss(a["batch"], a["rows"])
    made.update(a["batch"], a["rows"])
    return loss, made.bank


def cluster_memory(hardest: Any = False, **a: Any) -> Any:
    return trained_memory(memory.ClusterMemory, a, hardest=hardest)


def instance_memory(**a: Any) -> Any:
    return trained_memory(memory.InstanceMemory, a)


MEMORY = {
    **{"momentum": "number", "temperature": "number", "features": "rows", "classes": "indices"},
    **{"batch": "rows", "rows": "indices"},
}


def image_arguments(random: Random) -> Arguments:
    n, dim = count(random, 2, 30), count(random, 1, 16)
    return {
        "n": n,
        "features": rows(random, 4, dim),
        "rows": ids(random, 4, n),
        "momentum": float(random.uniform(0, 1)),
        "k": count(random, 0, 5),
        "weights": [1.0, 0.5],
        "threshold": 0.5,
        "at_least": 2,
    }


def image_memory(**a: Any) -> Any:
    made = memory.ImageMemory(a["n"])
    made.allocate(a["features"])
    features, batch = made.gather_batch(a["features"], a["rows"])
    made.update(features, batch, a["momentum"])
    labels = made.predict_labels(batch, a["threshold"], a["at_least"])
    loss = made.loss(features, [labels, labels], a["weights"], delta=5.0, hard_ratio=0.5)
    return labels, made.nearest(features, batch, a["k"]), loss, made.bank


def method_arguments(random: Random) -> Arguments:
    n = count(random, 8, 20)
    return {
        "cameras": ids(random, n, 3, -1),
        "batch": BatchConfig(size=4, per_identity=2, iterations=1),
        "memory": MemoryConfig(),
        "seed": count(random, 0, 9),
    }


def supervised_batches(**a: Any) -> Any:
    made = methods.Supervised(**a)
    made.label_images(0, lambda *which: torch.eye(len(a["cameras"])))
    return list(made.batches(0))


def ucal_batches(**a: Any) -> Any:
    return methods.UCAL(**a).iterations


def nnct_arguments(random: Random) -> Arguments:
    return {
        "n": count(random, 8, 20),
        "neighbours_k": count(random, 0, 3),
        "settings": NNCTConfig(),
        "batch": BatchConfig(size=4, per_identity=2, iterations=1),
        "epochs": count(random, 1, 4),
        "seed": count(random, 0, 9),
    }


def nnct_batches(**a: Any) -> Any:
    return list(methods.NNCT(**a).batches(0))


# Batches, augmentation, models


def sampler_arguments(random: Random) -> Arguments:
    n = count(random, 4, 30)
    return {
        "classes": ids(random, n, 4).clamp(max=n),
        "cameras": ids(random, n, 3, -1),
        "size": count(random, 1, 8),
        "per_class": count(random, 1, 4),
        "iterations": count(random, 0, 3),
        "seed": count(random, 0, 9),
        "epoch": count(random, 0, 9),
    }


def identity_batches(seed: Any, epoch: Any, **a: Any) -> Any:
    if isinstance(a["iterations"], int) and a["iterations"] == 5_000:  # takes time and nothing else
        a["iterations"] = 100
    return list(samplers.IdentitySampler(**a).batches(seed, epoch))


def pass_batches(seed: Any, epoch: Any, **a: Any) -> Any:
    if isinstance(a["iterations"], int) and a["iterations"] == 5_000:  # takes time and nothing else
        a["iterations"] = 100
    return list(samplers.PassSampler(**a).batches(seed, epoch))


def pass_arguments(random: Random) -> Arguments:
    n = count(random, 1, 30)
    size = count(random, 1, n)
    return {"n": n, "size": size, "iterations": 3, "seed": 0, "epoch": 1}


def images(random: Random) -> Tensor:
    return torch.from_numpy(random.integers(0, 256, (2, 3, 8, 4), dtype=np.uint8))


def image_draws(random: Random, **draws: Any) -> Any:
    return lambda random: {"images": images(random)} | {k: v(random) for k, v in draws.items()}


def boxes(random: Random) -> Tensor:
    return torch.tensor([[0, 0, 8, 4], [count(random, 0, 3), 1, count(random, 1, 5), 2]])


def factors(random: Random) -> Tensor:
    return torch.from_numpy(random.uniform(0.5, 1.5, size=2)).float()


def augmented(images: Any, config: Any, seed: Any) -> Tensor:
    return augment.Augment(config, seed)(images)


def planted_arguments(random: Random) -> Arguments:
    return {
        "n": count(random, 0, 50),
        "dim": count(random, 1, 8),
        "sizes": (2, 9),
        "cameras": count(random, 1, 4),
        "spread": 1.0,
        "camera_shift": 0.5,
        "outliers": 0.1,
        "exact": bool(random.integers(2)),
        "seed": count(random, 0, 9),
    }


def few_planted(**a: Any) -> Any:
    """Without sizes that only take memory."""
    for name in ("n", "dim", "cameras"):
        if isinstance(a[name], int) and a[name] == 5_000:
            a[name] = 500
    return planted_partition(**a)


def grouped(group: Any) -> Any:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    return models.group_batchnorm(model, group)[0].training


S = Schema
#: By the name under the package.
SCHEMAS: dict[str, Schema] = {
    "clustering.nearest_neighbours": S(
        clustering.nearest_neighbours,
        {"features": "rows", "k": "count", **WORLD},
        lambda random: {"features": some_rows(random), "k": count(random, 1, 12)},
        neighbours_are_right,
    ),
    "clustering.jaccard_graph": S(
        clustering.jaccard_graph,
        {
            **{"features": "rows", "k1": "count", "k2": "count", "max_distance": "number"},
            **{"neighbours": "object", **WORLD},
        },
        jaccard_arguments,
        jaccard_is_right,
    ),
    "clustering.dbscan": S(
        clustering.dbscan,
        {
            **{"graph": "object", "eps": "numbers", "min_samples": "count", "backend": "choice"},
            **WORLD,
        },
        graph_arguments,
        dbscan_is_right,
    ),
    "clustering.average_linkage": S(
        clustering.average_linkage,
        {
            **{"graph": "object", "threshold": "number", "groups": "?ids"},
            **{"cannot_links": "?ids", **WORLD},
        },
        linkage_arguments,
        linkage_is_right,
    ),
    "clustering.Linkage": S(
        labels_at,
        {"threshold": "number"},
        lambda random: {"threshold": float(random.uniform(0.1, 1))},
    ),
    "clustering.Graph": S(
        clustered_graph,
        {"indptr": "ids", "indices": "indices", "distances": "free rows", "max_distance": "number"},
        graph_fields,
        words=("graph", "eps"),
    ),
    "clustering.cosine_dbscan": S(
        clustering.cosine_dbscan,
        {"features": "rows", "eps": "numbers", "min_samples": "count", "backend": "choice"},
        cosine_arguments,
        cosine_is_right,
    ),
    "clustering.radius_graph": S(
        clustering.radius_graph,
        {"features": "rows", "max_distance": "number", "most_edges": "count"},
        lambda random: {
            "features": some_rows(random),
            "max_distance": float(random.uniform(0, 0.99)),
            "most_edges": 10**6,
        },
    ),
    "clustering.self_paced_labels": S(
        clustering.self_paced_labels,
        {
            **{"graph": "object", "eps": "number", "eps_gap": "number", "min_samples": "count"},
            **{"threshold": "?number", **WORLD},
        },
        self_paced_arguments,
    ),
    "clustering.standardise_by_camera": S(
        clustering.standardise_by_camera,
        {"features": "rows", "cameras": "ids", "scale": "flag", **WORLD},
        camera_arguments,
        camera_is_right,
    ),
    "clustering.whiten_within_clusters": S(
        clustering.whiten_within_clusters,
        {"features": "rows", "labels": "ids", "shrinkage": "number", **WORLD},
        whitening_arguments,
        whitening_is_right,
    ),
    "clustering.kmedoids": S(
        clustering.kmedoids,
        {"similarity": "rows", "k": "count", "start": "?indices"},
        matrix_arguments,
        medoids_are_right,
    ),
    "clustering.kmedoids_many": S(
        clustering.kmedoids_many,
        {
            **{"features": "free rows", "indptr": "ids", "members": "indices"},
            **{"k_max": "count", "k_min": "count"},
        },
        clusters_arguments,
    ),
    "clustering.ivf_neighbours": S(
        clustering.ivf_neighbours,
        {
            **{"features": "rows", "k": "count", "lists": "?count", "probes": "?count"},
            **{"sample": "count", **WORLD},
        },
        ivf_arguments,
        words=("cluster",),
    ),
    "clustering.check_backend": S(
        clustering.check_backend,
        {"backend": "choice", "nodes": "count"},
        lambda random: {"backend": "auto", "nodes": count(random, 0, 9)},
    ),
    "metrics.rank_gallery": S(
        metrics.rank_gallery, {**RANKING, **WORLD}, ranking_arguments, ranking_is_right
    ),
    "metrics.list_gallery": S(
        metrics.list_gallery,
        {**RANKING, "top": "count", **WORLD},
        lambda random: ranking_arguments(random) | {"top": count(random, 1, 9)},
        lambda arguments, result: ranking_is_right(arguments, result[0]),
    ),
    "metrics.rerank_gallery": S(
        metrics.rerank_gallery,
        {**RANKING, "k1": "count", "k2": "count", "original": "number", **WORLD},
        lambda random: ranking_arguments(random) | {"k1": 5, "k2": 2, "original": 0.3},
        words=("features",),
    ),
    "metrics.pair_scores": S(
        metrics.pair_scores,
        {"labels": "ids", "identities": "ids"},
        pairs_arguments,
        pairs_are_right,
    ),
    "metrics.changed_pairs": S(
        metrics.changed_pairs,
        {"before": "ids", "after": "ids"},
        lambda random: {
            "before": ids(random, 30, 6, -1),
            "after": ids(random, 30, 6, -1),
        },
    ),
    "metrics.cluster_scores": S(
        metrics.cluster_scores,
        {"labels": "ids", "identities": "ids", "cameras": "?ids"},
        cluster_scores_arguments,
        cluster_scores_are_right,
    ),
    "metrics.list_scores": S(
        metrics.list_scores,
        {"indptr": "ids", "indices": "indices", "identities": "ids", **WORLD},
        lists_arguments,
        lists_are_right,
    ),
    "active.propose_splits": S(
        active.propose_splits,
        {"features": "rows", "labels": "ids", "k_max_rule": "choice"},
        lambda random: clustered(random) | {"k_max_rule": chosen(random, "paper", "root")},
    ),
    "active.propose_merges": S(
        active.propose_merges,
        {"features": "rows", "labels": "ids", "l_max": "count", "delta": "number"},
        lambda random: clustered(random) | {"l_max": count(random, 1, 6), "delta": 0.3},
    ),
    "active.refine": S(
        refined_labels,
        {
            **{"features": "rows", "labels": "ids", "asker": "object", "strategy": "function"},
            **{"config": "?object", "epoch": "count"},
        },
        refine_arguments,
        words=("similarity",),
    ),
    "active.QuestionRounds": S(
        rounds,
        {
            **{"features": "rows", "labels": "ids", "asker": "object", "strategy": "function"},
            **{"config": "object", "epoch": "count"},
        },
        refine_arguments,
        words=("similarity",),
    ),
    "answers.Asker": S(
        asked_pair,
        {
            **{"features": "rows", "labels": "ids", "identities": "ids", "i": "count"},
            **{"j": "count", "budget": "?count", "confirm_merges": "count", "seed": "count"},
            **{"closure": "choice", "minutes": "?number", "cameras": "?ids"},
            "tracks": "?ids",
        },
        pair_arguments,
        words=("image", "images", "ask_pair", "oracle", "question", "similarity"),
    ),
    "answers.Question": S(
        Question,
        {
            **{"images": "pair", "groups": "object", "reason": "text"},
            **{"similarity": "number", "score": "number", "cluster": "count"},
            "probability": "?number",
        },
        question_arguments,
    ),
    "answers.Closure": S(
        closed,
        {
            **{"event": "count", "left": "count", "right": "count", "verdict": "choice"},
            **{"a": "row", "b": "row"},
        },
        answer_arguments,
        words=("answer", "images"),
    ),
    "annotators.Oracle": S(
        oracle_answers,
        {
            **{"identities": "ids", "names": "?object", "error": "number", "unsure": "number"},
            **{"not_comparable": "number", "seed": "count", "i": "count", "j": "count"},
            "seconds": "number",
        },
        oracle_arguments,
        words=("images", "question", "oracle"),
    ),
    "memory.PseudoLabelMemoryBank": S(
        bank_labels,
        {**BANK, "similarities": "?free rows", "device": "choice"},
        bank_arguments,
    ),
    "memory.ShardedLabelBank": S(sharded_bank_labels, BANK, bank_arguments),
    "memory.InstanceMemory": S(
        instance_memory, MEMORY, memory_arguments, words=("bank", "targets")
    ),
    "memory.ClusterMemory": S(
        cluster_memory,
        {**MEMORY, "hardest": "flag"},
        lambda random: memory_arguments(random) | {"hardest": bool(random.integers(2))},
        words=("bank", "targets"),
    ),
    "memory.ImageMemory": S(
        image_memory,
        {
            **{"n": "count", "features": "rows", "rows": "indices", "momentum": "number"},
            **{"k": "count", "weights": "pair", "threshold": "number", "at_least": "count"},
        },
        image_arguments,
        words=("bank", "query", "exclude", "targets"),
    ),
    "methods.Supervised": S(
        supervised_batches,
        {
            **{"identities": "ids", "cameras": "ids", "batch": "object", "memory": "object"},
            **{"seed": "count", **WORLD},
        },
        lambda random: (lambda made: made | {"identities": ids(random, len(made["cameras"]), 4)})(
            method_arguments(random)
        ),
        words=("features", "images", "image"),
    ),
    "methods.UCAL": S(
        ucal_batches,
        {
            **{"cameras": "ids", "cluster": "object", "batch": "object", "memory": "object"},
            **{"seed": "count", "questions": "?object", "tracks": "?ids", **WORLD},
        },
        lambda random: method_arguments(random) | {"cluster": ClusterConfig()},
    ),
    "methods.NNCT": S(
        nnct_batches,
        {
            **{"n": "count", "neighbours_k": "count", "settings": "object", "batch": "object"},
            **{"epochs": "count", "seed": "count", **WORLD},
        },
        nnct_arguments,
    ),
    "data.samplers.IdentitySampler": S(
        identity_batches,
        {
            **{"classes": "ids", "cameras": "ids", "size": "count", "per_class": "count"},
            **{"iterations": "count", "seed": "seed", "epoch": "count"},
        },
        sampler_arguments,
        words=("class",),
    ),
    "data.samplers.PassSampler": S(
        pass_batches,
        {
            **{"n": "count", "size": "count", "iterations": "count", "seed": "seed"},
            "epoch": "count",
        },
        pass_arguments,
    ),
    "data.augment.normalize": S(
        augment.normalize, {"images": "object"}, lambda random: {"images": images(random)}
    ),
    "data.augment.flip": S(
        augment.flip,
        {"images": "object", "flipped": "object"},
        image_draws(None, flipped=lambda random: torch.tensor([True, False])),
    ),
    "data.augment.resized_crop": S(
        augment.resized_crop,
        {"images": "object", "boxes": "object"},
        image_draws(None, boxes=boxes),
    ),
    "data.augment.rotate": S(
        augment.rotate,
        {"images": "object", "degrees": "rows"},
        image_draws(None, degrees=factors),
    ),
    "data.augment.pad_crop": S(
        augment.pad_crop,
        {"images": "object", "top": "indices", "left": "indices", "pad": "count"},
        image_draws(
            None,
            top=lambda random: ids(random, 2, 5),
            left=lambda random: ids(random, 2, 5),
            pad=lambda random: 2,
        ),
    ),
    "data.augment.jitter": S(
        augment.jitter,
        {
            **{"images": "object", "brightness": "free rows", "contrast": "free rows"},
            "saturation": "free rows",
        },
        image_draws(None, brightness=factors, contrast=factors, saturation=factors),
    ),
    "data.augment.erase": S(
        augment.erase,
        {"images": "object", "boxes": "object", "value": "number"},
        image_draws(None, boxes=boxes, value=lambda random: 0.5),
    ),
    "data.augment.Augment": S(
        augmented,
        {"images": "object", "config": "object", "seed": "count"},
        lambda random: {
            "images": images(random),
            "config": replace(ImageConfig(), crop_area=(0.5, 1.0), rotate=10.0),
            "seed": count(random, 0, 9),
        },
    ),
    "synthetic.planted_partition": S(
        few_planted,
        {
            **{"n": "count", "dim": "count", "sizes": "pair", "cameras": "count"},
            **{"spread": "number", "camera_shift": "number", "outliers": "number"},
            **{"exact": "flag", "seed": "count"},
        },
        planted_arguments,
    ),
    "models.group_batchnorm": S(
        grouped,
        {"group": "count"},
        lambda random: {"group": chosen(random, 0, 2, 16)},
        words=("bn_group",),
    ),
}

#: Public names without a schema, by the reason.
_WITHOUT = {
    "a result": "active.Refined clustering.Groupings clustering.KMedoids clustering.Merges "
    "metrics.ListScores metrics.ClusterScores metrics.PairScores metrics.Ranking "
    "metrics.QueryScores metrics.RankLists "
    "synthetic.PlantedPartition "
    "runs.Finished data.ImageSet data.Record distributed.Sharded",
    "a protocol": "answers.Annotator answers.SheetAnnotator data.DatasetReader "
    "models.BackboneBuilder engine.Method "
    "active.strategies.Strategy models.Stage models.Domain",
    "reads files: see `files`": "answers.Ledger answers.ImageKeys data.load data.describe "
    "models.build_model data.camera_style.match_copies data.camera_style.FileStyle "
    "data.ReadOptions",
    "an exception": "answers.NoAnswer answers.QuitAsking answers.UndoLast engine.Interrupted",
    "checked by Closure": "answers.Answer answers.Verdict annotators.Replay",
    "the base of the two memories": "memory.FeatureMemory",
    "a person answers": "annotators.Terminal",
    "a part of an export, which opens what it wrote and compares it": "exports.DeployedNet "
    "exports.Reference exports.Runtime exports.SUFFIXES exports.check_file "
    "exports.check_torchreid exports.check_tracker exports.describe exports.files_of "
    "exports.find_fault exports.layout exports.open_file exports.require_packages "
    "exports.write_form labels.Identities labels.LabelTable labels.identities_by_answers "
    "labels.read_numbers labels.write_table",
    "called by refine": "active.strategies.load_strategy",
    "a part of a run, which the settings check": "annotators.AnnotatorContext "
    "annotators.load_annotator distributed.World distributed.SINGLE_PROCESS engine.Evaluator "
    "engine.Network engine.Reporter engine.RunFolder engine.StopSignal engine.Training "
    "engine.TrainingLoop engine.extract_features models.BackboneOptions models.ReIdNet "
    "models.join_world models.split_batchnorm models.update_running models.without_source "
    "runs.dry_run runs.run_simulation runs.run_training runs.simulate "
    "data.camera_style.CameraStyle data.camera_style.ColourStyle data.camera_style.FourierStyle "
    "data.camera_style.Styles data.camera_style.camera_style data.camera_style.known_cameras "
    "data.camera_style.reason_without_styles",
}
OTHERS = {name: reason for reason, names in _WITHOUT.items() for name in names.split()}
