"""The file of an evaluation's rankings: the first gallery images of each query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..answers.report import write_rows
from ..errors import UserError, printable
from ..files import open_output, refuse_existing, replacing
from ..metrics import RankLists

#: Ranks that are listed of each query.
RANKS = 50
COLUMNS = ("query", "rank", "gallery", "similarity", "right", "junk")
#: Digits of a similarity after the point: float32 has about seven.
_DIGITS = 7
#: Queries whose rows are in memory at a time.
_QUERIES = 1000
_SUFFIXES = (".csv", ".parquet")


def check_rankings_file(path: Path, force: bool) -> None:
    """Refuse a file that cannot be written, before the work of ranking starts.

    Args:
        path: The file.
        force: Whether it may be replaced.

    Raises:
        UserError: It has another suffix than .csv or .parquet, exists, or needs a package that is
            not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"`save_rankings`: got {printable(path.name)}, expected a name that ends in .csv or "
            ".parquet"
        )
    refuse_existing(path, force, stream=path.suffix == ".csv")
    if path.suffix == ".parquet":
        _pyarrow()


def write_rankings(
    path: Path, lists: RankLists, queries: Sequence[str], gallery: Sequence[str]
) -> None:
    """Write one row for each image of a list, in the order of the queries and of their lists.

    The rows of 1,000 queries, 100,000 at most, are in memory at a time.

    Args:
        path: A file that ends in .csv or .parquet; an existing one is replaced.
        lists: The lists.
        queries: (q,) path of each query, relative to the folder of the set.
        gallery: (g,) path of each gallery image.

    Raises:
        UserError: It cannot be written; an existing file is intact.
    """
    try:
        if path.suffix == ".parquet":
            _write_parquet(path, lists, queries, gallery)
        else:
            rows = _rows(lists, queries, gallery)
            with open_output(path) as file:
                write_rows(map(_csv_row, rows), COLUMNS, "csv", file)
    except OSError as error:
        raise UserError(
            f"could not write {path} ({error.strerror}); name another file with `save_rankings`"
        ) from error


def _rows(
    lists: RankLists, queries: Sequence[str], gallery: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table; the rank of an ignored image is None."""
    for start in range(0, len(queries), _QUERIES):
        part = [column[start : start + _QUERIES].tolist() for column in lists]
        for query, *row in zip(queries[start : start + _QUERIES], *part, strict=True):
            for index, rank, similarity, right, junk in zip(*row, strict=True):
                if index >= 0:
                    values = (query, rank or None, gallery[index], similarity, right, junk)
                    yield dict(zip(COLUMNS, values, strict=True))


def _csv_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the words true and false, and a similarity of the digits that it has."""
    words = {name: str(row[name]).lower() for name in ("right", "junk")}
    return {**row, **words, "similarity": round(row["similarity"], _DIGITS)}


def _pyarrow() -> Any:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "a .parquet file needs pyarrow: pip install 'fastreid_al[parquet]', or name a .csv file"
        ) from error
    return pyarrow


def _write_parquet(
    path: Path, lists: RankLists, queries: Sequence[str], gallery: Sequence[str]
) -> None:
    """Write the rows as Parquet; names are written as `printable` gives them, as text is UTF-8."""
    arrow = _pyarrow()
    text, flag = arrow.string(), arrow.bool_()
    kinds = (text, arrow.int32(), text, arrow.float32(), flag, flag)
    schema = arrow.schema(list(zip(COLUMNS, kinds, strict=True)))
    names = [printable(name) for name in queries], [printable(name) for name in gallery]
    with replacing(path) as file, arrow.parquet.ParquetWriter(file, schema) as table:
        for start in range(0, len(queries), _QUERIES):
            part = RankLists(*(column[start : start + _QUERIES] for column in lists))
            rows = list(_rows(part, names[0][start : start + _QUERIES], names[1]))
            table.write_table(arrow.Table.from_pylist(rows, schema=schema))
