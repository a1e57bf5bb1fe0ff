"""Finds the gallery images that are most similar to a query, and says how sure a match is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import torch
from reid_kernels import BankIndex
from reid_kernels.topk import MAX_K
from torch import Tensor

from ..config import SearchConfig
from ..data.listing import Listing, list_images
from ..data.locate import existing_folder
from ..data.pixels import BadImage
from ..data.walk import passed_over_lines
from ..distributed.launch import require_single_process
from ..engine.console import Reporter
from ..engine.network import Network
from ..errors import DataError, SettingError, UserError, counted, printable
from ..files import open_output, refuse_existing
from ..retrieval.feature_file import FeatureTable
from ..retrieval.hits import Hits, write_csv, write_html, write_json
from ..retrieval.open_set import UnknownThreshold
from ..settings import validate
from .checks import pick_device, working_on
from .feature_stream import stream_features
from .gallery_index import default_index, update_index
from .sureness import SearchSureness, SurenessLearner
from .trained import Trained, engine_of_checkpoint, find_run, load_trained

_WRITERS: dict[str, Callable[[Hits, TextIO], None]] = {
    ".csv": write_csv,
    ".json": write_json,
    ".html": write_html,
}
#: Queries that are searched at a time.
_BATCH = 1024
#: Unknown queries that are named.
_NAMED = 10
#: Hits behind the last one that are looked at, in case they are as similar.
_TIES = 64
#: Decimals of a similarity.
_DECIMALS = 6


def search_gallery(options: SearchConfig, reporter: Reporter | None = None) -> Hits:
    """Find the gallery images that are most similar to each query, and write them into a file.

    The features of the gallery are kept in an index, and only images that are new or changed since
    the last search are extracted. The search is exact. A query that lies in the gallery finds
    itself.

    Args:
        options: The run, the queries, the gallery and the file.
        reporter: Prints lines and progress.

    Returns:
        The hits. The index is mapped: 267 MB at n = 32,621 gallery images and 8.2 GB at 1e6 for
        D = 2,048, and half as much in memory on a CPU with bfloat16 units.

    Raises:
        UserError: The run or the images cannot be read, the index is of another network, or the
            file cannot be written.
    """
    reporter = reporter or Reporter()
    require_single_process("a search")
    validate(options)
    out = Path(options.out)
    if out.suffix.lower() not in _WRITERS:
        raise SettingError("out", options.out, f"a name that ends in {' or '.join(_WRITERS)}")
    refuse_existing(out, options.force, stream=True)
    if os.path.isdir(out):
        raise UserError(f"{printable(out)} is a folder; name a file with `out`")
    run = find_run(Path(options.run), options.data_root)
    engine = engine_of_checkpoint(options.engine, Path(options.run), reporter)
    options = replace(options, engine=engine)
    gallery = list_images(existing_folder(Path(options.gallery), "gallery"), "gallery")
    queries = list_images(Path(options.query), "query")
    for line in passed_over_lines(gallery.passed_over, gallery.root):
        reporter.line(line)
    trained = load_trained(run.checkpoint, reporter)
    device = pick_device(options.device)
    with working_on(device):
        network = trained.on(device, options.engine, reporter)
        index = Path(options.index) if options.index else default_index(run.folder, gallery.root)
        table = update_index(index, gallery, trained, network, options.engine, reporter)
        paths, features = _query_features(options, queries, trained, network, reporter)
        similarity, rows = _search(features, table, options.top, index, network, reporter)
        learner = SurenessLearner(run, trained, network, options.engine, reporter)
        sureness = learner.learn(len(table), options.false_match_rate, options.matches)
    hits = _hits(options, paths, table, similarity, rows, sureness, trained)
    hits = replace(hits, about={**hits.about, "lines": _describe(hits, sureness, reporter)})
    _write(hits, out)
    found = counted(int((hits.rows >= 0).sum()), "hit", "hits")
    reporter.line(f"{found} of {counted(len(paths), 'query', 'queries')} in {out}")
    return hits


def _query_features(
    options: SearchConfig,
    queries: Listing,
    trained: Trained,
    network: Network,
    reporter: Reporter,
) -> tuple[list[str], Tensor]:
    """Paths and features (q, D) of the queries that can be read."""
    paths = [record.path for record in queries.records]
    bad: list[BadImage] = []
    found: list[str] = []
    features = []
    with reporter.progress("extracting query", len(paths)) as update:
        for part in stream_features(trained, network, paths, options.engine, bad, update):
            found += [str(paths[row]) for row in part.rows]
            features.append(part.features)
    reporter.bad_images("query", bad)
    if not found:
        raise DataError(f"{options.query} holds no readable image: there is no query")
    return found, torch.cat(features)


def _search(
    features: Tensor,
    table: FeatureTable,
    top: int,
    index: Path,
    network: Network,
    reporter: Reporter,
) -> tuple[Tensor, Tensor]:
    """Similarities (q, k) and gallery rows (q, k) of the hits, k the lesser of top and gallery.

    Similarities have six decimals, as they are written. Hits that are equally similar are in the
    order of their names: their rows are in the order in which they came into the index, and their
    similarities differ by rounding.
    """
    # Hits behind the last place may be as similar as the hit that has it.
    top, more = min(top, len(table)), min(top + _TIES, MAX_K, len(table))
    found = []
    try:
        bank = BankIndex(_bank(table, network.device, reporter), normalize=False)
        with reporter.progress("searching", len(features)) as update:
            for part in features.split(_BATCH):
                values, rows = bank.search(part.to(bank.bank.device), more)
                ordered = order_hits(values.cpu().numpy(), rows.cpu().numpy(), table.names)
                if more < len(table):
                    complete_ties(*ordered, top, part.to(bank.bank.device), bank.bank, table.names)
                found.append(tuple(torch.from_numpy(side[:, :top]) for side in ordered))
                update(sum(len(rows) for _, rows in found), len(features))
    except ValueError as error:
        raise DataError(f"{index} is damaged ({error}); remove it") from error
    return torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])


def order_hits(
    similarity: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], names: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Round similarities, and order the hits that are then equally similar by name.

    Args:
        similarity: (q, k), descending.
        rows: (q, k), the gallery images.
        names: Names of the gallery images.
    """
    values = similarity.round(_DECIMALS)
    rows = rows.copy()
    for query in np.flatnonzero((values[:, 1:] == values[:, :-1]).any(1)).tolist():
        key = [os.fsencode(names[row]) for row in rows[query].tolist()]
        order = sorted(range(len(key)), key=lambda i: (-values[query, i], key[i]))
        rows[query], values[query] = rows[query, order], values[query, order]
    return values, rows


def complete_ties(
    similarity: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    top: int,
    queries: Tensor,
    bank: Tensor,
    names: Sequence[str],
) -> None:
    """Choose the first hits by name where more are as similar than were looked at, in place.

    Such queries are compared with the whole gallery: 4 MB for each at 1e6 images.

    Args:
        similarity: (q, k), rounded and descending.
        rows: (q, k), the gallery images.
        top: Hits that are wanted, at most k.
        queries: (q, D), on the device of the bank.
        bank: (n, D), the features of the gallery.
        names: (n,), the names of the gallery images.
    """
    for query in np.flatnonzero(similarity[:, top - 1] == similarity[:, -1]).tolist():
        values = (bank @ queries[query]).cpu().numpy().round(_DECIMALS)  # (n,)
        lowest = np.partition(values, -top)[-top]
        chosen = np.flatnonzero(values >= lowest).tolist()
        chosen.sort(key=lambda row: (-values[row], os.fsencode(names[row])))
        rows[query, :top] = chosen[:top]
        similarity[query, :top] = values[chosen[:top]]


def _bank(table: FeatureTable, device: torch.device, reporter: Reporter) -> Tensor:
    """The features of the gallery on the device, or on the CPU where the device has no room."""
    try:
        return table.features.to(device)
    except torch.OutOfMemoryError:
        reporter.warn(f"{len(table):,} images do not fit on {device}: the search runs on the CPU")
        return table.features


def _hits(
    options: SearchConfig,
    paths: list[str],
    table: FeatureTable,
    similarity: Tensor,
    rows: Tensor,
    sureness: SearchSureness,
    trained: Trained,
) -> Hits:
    values = similarity.numpy()
    probability = None
    if sureness.probability is not None:
        probability = sureness.probability(values, sureness.matches, sureness.others)
    threshold = sureness.threshold
    about = {
        "run": options.run,
        "checkpoint": str(trained.origin),
        "model_digest": table.about["model_digest"],
        "gallery": options.gallery,
        "gallery_images": len(table),
        "probability": None
        if sureness.probability is None
        else {"source": sureness.source, "matches_per_query": sureness.matches},
        "unknown": None if threshold is None else _about_threshold(threshold, sureness.source),
    }
    return Hits(
        paths,
        Path(options.gallery),
        table.names,
        rows.numpy(),
        values,
        probability,
        None if threshold is None else np.asarray(values[:, 0] < threshold.similarity),
        about,
    )


def _about_threshold(threshold: UnknownThreshold, source: str) -> dict[str, Any]:
    """What the JSON file says of the threshold."""
    false_match, unknown = threshold.false_match, threshold.false_unknown
    rate, low, high = false_match.in_gallery(threshold.growth)
    return {
        "threshold": threshold.similarity,
        "false_match_rate_asked": threshold.asked,
        "false_match_rate": rate,
        "false_match_interval": [low, high],
        "false_match_queries": false_match.trials,
        "false_unknown_rate": None if unknown is None else unknown.rate,
        "false_unknown_interval": None if unknown is None else [unknown.low, unknown.high],
        "false_unknown_queries": 0 if unknown is None else unknown.trials,
        "measured_in_gallery_of": threshold.measured_in,
        "source": source,
    }


def _describe(hits: Hits, sureness: SearchSureness, reporter: Reporter) -> list[str]:
    """Print which queries are unknown and how sure that is; returns the lines about the search."""
    lines = []
    if sureness.probability is not None:
        lines.append(
            f"Probabilities are learnt from {sureness.source}, and hold if a query has "
            f"{sureness.matches:.2g} matches in the gallery on average."
        )
    threshold = sureness.threshold
    if threshold is None or hits.unknown is None:
        return lines
    unknown = int(hits.unknown.sum())
    queries = counted(len(hits.queries), "query is", "queries are")
    lines.append(
        f"{unknown:,} of {queries} unknown (best similarity below "
        f"{threshold.similarity:.3f}). {describe_rates(threshold)}"
    )
    reporter.line(lines[-1])
    for query in np.flatnonzero(hits.unknown)[:_NAMED].tolist():
        reporter.line(f"  unknown: {printable(hits.queries[query])}")
    if unknown > _NAMED:
        reporter.line(f"  ... and {unknown - _NAMED:,} more")
    return lines


def describe_rates(threshold: UnknownThreshold) -> str:
    """Say how often the decision is wrong, with 95 % intervals."""
    false_match, unknown = threshold.false_match, threshold.false_unknown
    growth = threshold.growth
    rate, low, high = (100 * x for x in false_match.in_gallery(growth))
    text = (
        f"Of queries whose identity is not in the gallery {'at most ' if growth > 1 else ''}"
        f"{rate:.1f} % are taken for known (95 % interval {low:.1f} to {high:.1f} %, "
        f"{100 * threshold.asked:g} % asked; {false_match.trials:,} queries searched "
        f"{threshold.measured_in:,} images of other identities"
    )
    text += f", and the gallery is {growth:.3g} times as large)" if growth > 1 else ")"
    if unknown is not None:
        text += (
            f"; of those whose identity is in it {100 * unknown.rate:.1f} % are taken for unknown "
            f"({100 * unknown.low:.1f} to {100 * unknown.high:.1f} %, {unknown.trials:,} queries)"
        )
    return text + "."


def _write(hits: Hits, out: Path) -> None:
    try:
        with open_output(out) as file:
            _WRITERS[out.suffix.lower()](hits, file)
    except OSError as error:
        raise UserError(
            f"could not write {out} ({error.strerror}); name another file with `out`"
        ) from error
