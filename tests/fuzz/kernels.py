"""Schemas of the operators of `reid_kernels`; the references in float64 say what is right."""

from __future__ import annotations

from typing import Any

import reid_kernels as rk
import torch
from reid_kernels import compat

from .schema import (
    TOLERANCE,
    Arguments,
    Random,
    Schema,
    close,
    count,
    doubles,
    floating,
    ids,
    lists,
    rows,
)

PRECISION = ("auto", "ieee", "tf32", "bf16")
REDUCTION = ("mean", "sum", "none")


def pick(random: Random, values: tuple[Any, ...]) -> Any:
    return values[int(random.integers(len(values)))]


def topk_arguments(random: Random) -> Arguments:
    dtype, n, dim, batch = floating(random), count(random, 1, 40), count(random, 1, 24), 5
    exclude = ids(random, batch, n, -1) if random.random() < 0.5 else None
    return {
        "query": rows(random, batch, dim, dtype),
        "bank": rows(random, n, dim, dtype),
        "k": count(random, 1, 12),
        "normalize": bool(random.integers(2)),
        "exclude": exclude,
    }


def search_index(
    query: Any, bank: Any, k: int, normalize: bool = True, exclude: Any = None
) -> tuple[Any, Any]:
    """A search of a bank through its index."""
    return rk.BankIndex(bank, normalize=normalize).search(query, k, exclude=exclude)


def topk_is_right(arguments: Arguments, result: Any) -> bool:
    values, indices = result
    plain = {k: v for k, v in arguments.items() if k != "precision"}
    expected, _ = rk.similarity_topk_reference(**doubles(plain))
    tolerance = TOLERANCE[arguments["query"].dtype]
    bank = arguments["bank"]
    in_range = bool(((indices >= -1) & (indices < len(bank))).all())
    return in_range and close(values, expected, tolerance)


def contrast_arguments(random: Random) -> Arguments:
    dtype, n, dim, batch = floating(random), count(random, 2, 30), count(random, 1, 24), 6
    classes = None
    targets = ids(random, batch, n, -1)
    if random.random() < 0.5:
        classes = ids(random, n, n // 2, -1)
        members = classes[classes >= 0]
        if not len(members):
            classes[0] = 0
            members = classes[:1]
        targets = members[ids(random, batch, len(members))]
    return {
        "features": rows(random, batch, dim, dtype),
        "bank": rows(random, n, dim, dtype),
        "targets": targets,
        "temperature": float(random.uniform(0.05, 2)),
        "classes": classes,
        "ignore_index": -1,
    }


def loss_arguments(random: Random) -> Arguments:
    return contrast_arguments(random) | {"reduction": pick(random, REDUCTION)}


def loss_is_right(arguments: Arguments, result: Any) -> bool:
    plain = {k: v for k, v in arguments.items() if k != "precision"}
    expected = rk.bank_contrast_loss_reference(**doubles(plain))
    return close(result, expected, 10 * TOLERANCE[arguments["features"].dtype])


def feature_is_left_out(arguments: Arguments) -> bool:
    """Whether some features are not finite, all of them in rows that do not count."""
    if not isinstance(arguments["features"], torch.Tensor):
        return False
    broken = ~torch.isfinite(arguments["features"]).all(1)
    counts = arguments["targets"] != arguments["ignore_index"]
    return bool(broken.any()) and not bool((broken & counts).any())


def partial_is_right(arguments: Arguments, result: Any) -> bool:
    plain = {k: v for k, v in arguments.items() if k not in ("precision", "gradient")}
    expected = rk.partial_contrast_reference(**doubles(plain))
    tolerance = 10 * TOLERANCE[arguments["features"].dtype]
    fields = ("losses", "log_sum_exp")
    return all(close(getattr(result, x), getattr(expected, x), tolerance) for x in fields)


def multilabel_arguments(random: Random) -> Arguments:
    dtype, n, dim, batch = floating(random), count(random, 1, 40), count(random, 1, 24), 4
    positives: Any = lists(random, batch, n)
    if random.random() < 0.5:
        words = (n + 31) // 32
        bits = random.integers(-(2**31), 2**31, size=(batch, words))
        positives = torch.from_numpy(bits).int()
    return {
        "features": rows(random, batch, dim, dtype),
        "bank": rows(random, n, dim, dtype),
        "positives": positives,
        "delta": float(random.uniform(0, 6)),
        "hard_ratio": float(random.uniform(0, 1)),
        "reduction": pick(random, REDUCTION),
    }


def multilabel_is_right(arguments: Arguments, result: Any) -> bool:
    plain = {k: v for k, v in arguments.items() if k != "precision"}
    expected = rk.multilabel_bank_loss_reference(**doubles(plain))
    return close(result, expected, 10 * TOLERANCE[arguments["features"].dtype])


def labels_arguments(random: Random) -> Arguments:
    n = count(random, 1, 40)
    return {
        "bank": rows(random, n, count(random, 2, 16)),
        "rows": ids(random, count(random, 0, 6), n),
        "threshold": float(random.uniform(-0.5, 0.9)),
        "at_least": count(random, 1, 12),
    }


def labels_are_right(arguments: Arguments, result: Any) -> bool:
    indptr, indices = result
    n = len(arguments["bank"])
    ends = int(indptr[0]), int(indptr[-1]), len(indptr)
    sound = ends == (0, len(indices), len(arguments["rows"]) + 1)
    return sound and bool(((indices >= 0) & (indices < n)).all())


def update_arguments(random: Random) -> Arguments:
    dtype, n, dim, batch = floating(random), count(random, 1, 20), count(random, 1, 24), 6
    return {
        "bank": rows(random, n, dim, dtype),
        "features": rows(random, batch, dim, dtype),
        "targets": ids(random, batch, n, -1),
        "momentum": float(random.uniform(0, 1)),
        "ignore_index": -1,
    }


def updated(bank: Any, features: Any, targets: Any, momentum: Any, ignore_index: Any) -> Any:
    """The bank after an update, which leaves the given one as it is."""
    own = bank.detach().clone() if isinstance(bank, torch.Tensor) and bank.is_leaf else bank
    return rk.update_bank_(own, features, targets, momentum, ignore_index=ignore_index)


def update_is_right(arguments: Arguments, result: Any) -> bool:
    expected = rk.update_bank_reference(**doubles(arguments))
    return close(result, expected, 20 * TOLERANCE[arguments["bank"].dtype])


def norm_arguments(random: Random) -> Arguments:
    group, channels = count(random, 2, 4), count(random, 1, 5)
    images = group * count(random, 1, 3)
    return {
        "x": torch.from_numpy(random.normal(size=(images, channels, 3, 2))).float(),
        "weight": torch.from_numpy(random.normal(size=channels)).float(),
        "bias": torch.from_numpy(random.normal(size=channels)).float(),
        "group": group,
        "eps": 1e-5,
    }


def norm_is_right(arguments: Arguments, result: Any) -> bool:
    expected = rk.grouped_batch_norm_reference(**doubles(arguments))
    return all(close(a, b, 1e-3) for a, b in zip(result, expected, strict=True))


def classes_arguments(random: Random) -> Arguments:
    n = count(random, 0, 30)
    return {"classes": ids(random, n, n, -1) if n else torch.zeros(0, dtype=torch.int64)}


def index_is_right(arguments: Arguments, result: Any) -> bool:
    classes = arguments["classes"]
    ordered = classes[result.order]
    sorted_ = bool((ordered[1:] >= ordered[:-1]).all())
    return sorted_ and torch.equal(result.order.sort().values, torch.arange(len(classes)))


def means_arguments(random: Random) -> Arguments:
    n = count(random, 1, 30)
    return {
        "bank": rows(random, n, count(random, 1, 9), floating(random)),
        "classes": ids(random, n, n, -1),
        "count": n,
    }


def means_are_right(arguments: Arguments, result: Any) -> bool:
    bank, classes = arguments["bank"].double(), arguments["classes"]
    expected = torch.zeros(arguments["count"], bank.shape[1], dtype=torch.float64)
    for c in classes[classes >= 0].unique().tolist():
        expected[c] = bank[classes == c].mean(0)
    return close(result, expected, TOLERANCE[arguments["bank"].dtype])


def hardest_arguments(random: Random) -> Arguments:
    made = update_arguments(random)
    return {name: made[name] for name in ("features", "bank", "targets", "ignore_index")}


def memory_arguments(random: Random) -> Arguments:
    n, dim = count(random, 2, 20), count(random, 1, 16)
    return {
        "num_features": dim,
        "num_samples": n,
        "temp": float(random.uniform(0.05, 1)),
        "momentum": float(random.uniform(0, 1)),
        "inputs": rows(random, 4, dim),
        "indexes": ids(random, 4, n),
    }


def cluster_memory(**a: Any) -> Any:
    return compat.ClusterMemory(a["num_features"], a["num_samples"], a["temp"], a["momentum"])(
        a["inputs"], a["indexes"]
    )


def hybrid_memory(**a: Any) -> Any:
    return compat.HybridMemory(a["num_features"], a["num_samples"], a["temp"], a["momentum"])(
        a["inputs"], a["indexes"]
    )


def mmcl_memory(**a: Any) -> Any:
    memory = compat.MMCLMemory(a["num_features"], a["num_samples"], epochs=a["epochs"])
    return memory(a["inputs"], a["indexes"], a["epoch"]), memory.predict(a["indexes"])


def mmcl_arguments(random: Random) -> Arguments:
    made = memory_arguments(random)
    del made["temp"], made["momentum"]
    return made | {"epochs": 10, "epoch": count(random, 0, 10)}


MEMORY = {
    **{"num_features": "count", "num_samples": "count", "temp": "number", "momentum": "number"},
    **{"inputs": "rows", "indexes": "kernel indices"},
}
WORDS = ("memory", "targets", "labels", "query", "bank", "features", "rows")
CONTRAST = {
    # A row of the bank without a class may be anything.
    **{"features": "rows", "bank": "free rows", "targets": "kernel indices"},
    "temperature": "number",
    **{"classes": "?kernel indices", "ignore_index": "count"},
}
UPDATE = {
    # A feature that is left out may be anything.
    **{"features": "free rows", "targets": "kernel indices", "momentum": "number"},
    "ignore_index": "count",
}
TOPK = {
    # A similarity of -inf is the last one.
    **{"query": "free rows", "bank": "free rows", "k": "count", "normalize": "flag"},
    "exclude": "?kernel indices",
}
LABELS = {"bank": "rows", "rows": "kernel indices", "threshold": "number", "at_least": "count"}
MULTILABEL = {
    **{"features": "rows", "bank": "rows", "positives": "object", "delta": "number"},
    **{"hard_ratio": "number", "reduction": "choice"},
}
NORM = {
    **{"x": "free rows", "weight": "free rows", "bias": "free rows", "group": "count"},
    "eps": "number",
}


def free(roles: dict[str, str]) -> dict[str, str]:
    """Roles of a function that lets values through that are not finite."""
    return {name: "free rows" if role == "rows" else role for name, role in roles.items()}


def with_precision(make: Any) -> Any:
    return lambda random: make(random) | {"precision": pick(random, PRECISION)}


def with_gradient(random: Random) -> Arguments:
    return contrast_arguments(random) | {"gradient": bool(random.integers(2))}


SCHEMAS: dict[str, Schema] = {
    "similarity_topk": Schema(
        rk.similarity_topk,
        {**TOPK, "precision": "choice"},
        with_precision(topk_arguments),
        topk_is_right,
    ),
    "BankIndex": Schema(search_index, TOPK, topk_arguments, topk_is_right),
    "similarity_topk_reference": Schema(rk.similarity_topk_reference, free(TOPK), topk_arguments),
    "bank_contrast_loss": Schema(
        rk.bank_contrast_loss,
        {**CONTRAST, "reduction": "choice", "precision": "choice"},
        with_precision(loss_arguments),
        loss_is_right,
        leaves_out=feature_is_left_out,
    ),
    "bank_contrast_loss_reference": Schema(
        rk.bank_contrast_loss_reference, {**free(CONTRAST), "reduction": "choice"}, loss_arguments
    ),
    "partial_contrast": Schema(
        rk.partial_contrast,
        {**free(CONTRAST), "gradient": "flag"},
        with_gradient,
        partial_is_right,
    ),
    "partial_contrast_reference": Schema(
        rk.partial_contrast_reference, free(CONTRAST), contrast_arguments
    ),
    "multilabel_bank_loss": Schema(
        rk.multilabel_bank_loss, MULTILABEL, multilabel_arguments, multilabel_is_right
    ),
    "multilabel_bank_loss_reference": Schema(
        rk.multilabel_bank_loss_reference, free(MULTILABEL), multilabel_arguments
    ),
    "label_prediction": Schema(rk.label_prediction, LABELS, labels_arguments, labels_are_right),
    "label_prediction_reference": Schema(
        rk.label_prediction_reference, free(LABELS), labels_arguments, labels_are_right
    ),
    "update_bank_": Schema(
        updated, {**UPDATE, "bank": "buffer"}, update_arguments, update_is_right
    ),
    "update_bank_reference": Schema(
        rk.update_bank_reference, {**free(UPDATE), "bank": "free rows"}, update_arguments
    ),
    "hardest_rows": Schema(
        rk.hardest_rows,
        {
            **{"features": "free rows", "bank": "free rows", "targets": "kernel indices"},
            "ignore_index": "count",
        },
        hardest_arguments,
    ),
    "grouped_batch_norm": Schema(rk.grouped_batch_norm, NORM, norm_arguments, norm_is_right),
    "grouped_batch_norm_reference": Schema(rk.grouped_batch_norm_reference, NORM, norm_arguments),
    "class_index": Schema(
        rk.class_index, {"classes": "kernel indices"}, classes_arguments, index_is_right
    ),
    "class_means": Schema(
        rk.class_means,
        {"bank": "free rows", "classes": "kernel indices", "count": "count"},
        means_arguments,
        means_are_right,
    ),
    "compat.ClusterMemory": Schema(cluster_memory, MEMORY, memory_arguments, words=WORDS),
    "compat.HybridMemory": Schema(hybrid_memory, MEMORY, memory_arguments, words=WORDS),
    "compat.MMCLMemory": Schema(
        mmcl_memory,
        {k: v for k, v in MEMORY.items() if k not in ("temp", "momentum")}
        | {"epochs": "count", "epoch": "count"},
        mmcl_arguments,
        words=WORDS,
    ),
}

#: Public names without a schema, and why.
OTHERS = {
    "ClassIndex": "a result, checked where it is passed on",
    "PartialContrast": "a result",
    "NotFiniteError": "an error",
    "compat": "a module, whose classes have schemas",
}
