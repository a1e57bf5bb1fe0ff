"""The hits of a search, as a table (.csv), for programs (.json) and for people (.html)."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data.pixels import to_rgb
from ..errors import printable

#: Columns of the table.
COLUMNS = ("query", "rank", "gallery", "similarity", "probability")
#: Queries that a page shows.
MOST_SHOWN = 200
#: Width and height into which the images of a page fit.
_THUMBNAIL = (96, 160)
#: Signs that begin a formula in a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Hit(NamedTuple):
    """A gallery image that a query found.

    Args:
        rank: 1 for the most similar one.
        gallery: Path of the image.
        similarity: Cosine similarity.
        probability: That it shows the query's identity; None where unknown.
    """

    rank: int
    gallery: str
    similarity: float
    probability: float | None


@dataclass(frozen=True)
class Hits:
    """What queries found in a gallery.

    Args:
        queries: Paths of the q queries.
        folder: Folder of the gallery.
        names: Paths of the gallery images relative to it.
        rows: (q, k) int64 gallery images, the most similar first; -1 where there are fewer.
        similarity: (q, k) float32.
        probability: (q, k) float64; None where nothing is known.
        unknown: (q,) bool, whether no gallery image shows the query's identity; None where no
            threshold could be chosen.
        about: What is said of the search as a whole.
    """

    queries: Sequence[str]
    folder: Path
    names: Sequence[str]
    rows: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32]
    probability: npt.NDArray[np.float64] | None
    unknown: npt.NDArray[np.bool_] | None
    about: Mapping[str, Any] = field(default_factory=dict)

    def of(self, query: int) -> list[Hit]:
        """The hits of a query."""
        found = []
        for place, row in enumerate(self.rows[query].tolist()):
            if row >= 0:
                p = None if self.probability is None else float(self.probability[query, place])
                path = str(self.folder / self.names[row])
                found.append(Hit(place + 1, path, float(self.similarity[query, place]), p))
        return found

    def is_unknown(self, query: int) -> bool | None:
        """Whether a query is unknown; None where that is not decided."""
        return None if self.unknown is None else bool(self.unknown[query])


def write_csv(hits: Hits, file: TextIO) -> None:
    r"""Write a table with one line for each hit.

    Paths are written as `errors.printable` does, so that commas, quotes, line breaks and bytes that
    are not UTF-8 survive: a line break is `\n`, such a byte is `\xNN`, a backslash is doubled. A
    relative path that a spreadsheet would take for a formula begins with `./`.

    Args:
        hits: The hits.
        file: Gets the table.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for query, path in enumerate(hits.queries):
        for hit in hits.of(query):
            probability = "" if hit.probability is None else f"{hit.probability:.6f}"
            row = [_cell(path), hit.rank, _cell(hit.gallery), f"{hit.similarity:.6f}", probability]
            writer.writerow(row)


def _cell(path: str) -> str:
    return printable(f"./{path}" if path.startswith(_FORMULA) else path)


def write_json(hits: Hits, file: TextIO) -> None:
    """Write an object: what is said of the search, and a list `queries` with the hits of each.

    Paths are exact; bytes that are not UTF-8 are lone surrogates, as in Python (PEP 383).

    Args:
        hits: The hits.
        file: Gets the object, in ASCII.
    """
    head = json.dumps({**hits.about, "queries": []}, indent=1)
    file.write(head[: head.rindex("[") + 1])
    for query, path in enumerate(hits.queries):
        of_query = {
            "query": path,
            "unknown": hits.is_unknown(query),
            "hits": [hit._asdict() for hit in hits.of(query)],
        }
        file.write(f"{',' if query else ''}\n{json.dumps(of_query)}")
    file.write("\n]\n}\n")


def write_html(hits: Hits, file: TextIO) -> None:
    """Write a page that needs no other file: the first 200 queries, and the hits of each.

    Args:
        hits: The hits.
        file: Gets the page, some 3 kB for each image.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("fastreid_al.retrieval", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("hits.html")
    shown = min(MOST_SHOWN, len(hits.queries))
    for part in template.generate(
        about=hits.about,
        total=len(hits.queries),
        shown=shown,
        queries=_shown_queries(hits, shown),
        printable=printable,
        thumbnail=thumbnail,
    ):
        file.write(part)


def _shown_queries(hits: Hits, count: int) -> Iterator[dict[str, Any]]:
    for query in range(count):
        yield {
            "path": hits.queries[query],
            "unknown": hits.is_unknown(query),
            "hits": hits.of(query),
        }


def thumbnail(path: str) -> str | None:
    """Return a small copy of an image as the address of a page's image; None if unreadable.

    The copy is encoded anew, so that it holds pixels only.
    """
    try:
        image = to_rgb(Path(path).read_bytes())
        image.thumbnail(_THUMBNAIL, Image.Resampling.BICUBIC)
        content = io.BytesIO()
        image.save(content, "WEBP", quality=80)
    except Exception:  # Pillow raises a wide range of types on damaged files.
        return None
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()
