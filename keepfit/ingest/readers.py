"""Readers of the formats that can be pulled: CSV, Parquet, npy and JSON lines.

Owns the choice of the reader and the form in which each has its rows; pyarrow, numpy and msgspec parse them. Never
checks a value: :mod:`keepfit.rows.shaping` and :mod:`keepfit.rows.tables` do, as for a request over HTTP. Invariant: a
row is the same wherever reading began.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from keepfit import identity
from keepfit.backends.source_urls import format_of, name_of
from keepfit.errors import Fault, InvalidError, KeepfitError, MalformedError
from keepfit.ingest.chunks import Batch, Indices, Reader
from keepfit.recipe.recipe import Recipe
from keepfit.rows import arrow_files, npy, shaping
from keepfit.rows.arrow_files import ArrowRows, CsvReader, ParquetReader
from keepfit.rows.rows import Rows
from keepfit.rows.selection import Selection
from keepfit.rows.tables import TARGET, WEIGHTS
from keepfit.rows.values import FAULTS_MAX, describe_faults
from keepfit.store.pull_jobs import PullRequest

SEEKABLE = ("parquet", "npy")
LINE_BYTES_MAX = 4 << 20
# Memory of a chunk while it is shaped is a multiple of this.
CHUNK_BYTES_MAX = 32 << 20


def open_reader(file: BinaryIO, request: PullRequest, recipe: Recipe) -> Reader:
    """Return the reader of an open source.

    Raises
    ------
    InvalidError, MalformedError
        If it does not have its format, lacks a column, or the recipe cannot learn from it.
    """
    found = format_of(request.url, request.format)
    selection = Selection(request.columns, request.target, request.sample_weight)
    selection.check(recipe, by_name=found == "jsonl")
    match found:
        case "csv":
            delimiter = "\t" if name_of(request.url).suffix == ".tsv" else ","
            return _Tables(CsvReader(file, recipe, request.label_type, delimiter), selection, recipe)
        case "parquet":
            return _Tables(ParquetReader(file), selection, recipe)
        case "npy":
            return _Arrays(file, request)
        case _:
            return _Lines(file, selection, recipe)


class _Tables:
    """CSV or Parquet."""

    def __init__(self, source: CsvReader | ParquetReader, selection: Selection, recipe: Recipe) -> None:
        self._source = source
        self.names, self.total = source.names, source.total
        self._columns = selection.bind(recipe, source.names)

    @property
    def malformed(self) -> tuple[int, list[str]]:
        """Lines of CSV with another number of values."""
        return self._source.malformed.count, self._source.malformed.first

    def batches(self, count: int, skip: int) -> Iterator[Batch]:
        """Yield the rows as record batches."""
        for rows in arrow_files.in_chunks(self._source.rows(self._columns, skip), count):
            yield _TableBatch(rows)


@dataclass(frozen=True, slots=True)
class _TableBatch:
    rows: ArrowRows

    @property
    def n(self) -> int:
        return self.rows.n

    def shape(self, recipe: Recipe, rows: Indices | None) -> Rows:
        _check_bytes(self.rows.size_bytes)
        return (self.rows if rows is None else self.rows.take(rows)).table().shape(recipe, learning=True)


class _Arrays:
    """npy: the last column is the target, or named fields."""

    malformed = (0, [])  # type: tuple[int, list[str]]

    def __init__(self, file: BinaryIO, request: PullRequest) -> None:
        if request.columns is not None or request.target is not None or request.sample_weight is not None:
            raise InvalidError("An npy file has no names: leave out columns, target and sample_weight.")
        self._file, self._head = file, npy.read_head(file)
        self.names: list[str] = []
        self.total: int | None = self._head.shape[0]

    def batches(self, count: int, skip: int) -> Iterator[Batch]:
        """Yield the rows as arrays."""
        size = self._head.row_bytes
        _check_bytes(size * min(count, self._head.shape[0]))
        self._file.seek(self._head.offset + skip * size)
        for begin in range(skip, self._head.shape[0], count):
            n = min(count, self._head.shape[0] - begin)
            data = self._file.read(n * size)
            if len(data) < n * size:
                raise MalformedError("The npy file is shorter than its header says.")
            yield _ArrayBatch(np.frombuffer(data, self._head.dtype).reshape(n, *self._head.shape[1:]))


@dataclass(frozen=True, slots=True)
class _ArrayBatch:
    values: "np.typing.NDArray[Any]"

    @property
    def n(self) -> int:
        return len(self.values)

    def shape(self, recipe: Recipe, rows: Indices | None) -> Rows:
        # Shaping overwrites the array.
        values = self.values.copy() if rows is None else self.values[rows]
        return npy.table_of(values).shape(recipe, learning=True)


class _Lines:
    """JSON lines: an object by column in each line."""

    total: int | None = None

    def __init__(self, file: BinaryIO, selection: Selection, recipe: Recipe) -> None:
        self._file, self._selection, self._recipe = file, selection, recipe
        self.names: list[str] = []
        # Which columns there are, only each row says. The columns that are named must be those of the model.
        named = selection.columns
        sources = list(named.values()) if isinstance(named, Mapping) else list(named or recipe.features or ("",))
        target = [selection.target or TARGET] if recipe.entry.takes_y else []
        weights = [selection.weight] if selection.weight else []
        self._columns = selection.bind(recipe, [*sources, *target, *weights])
        self._takes_all = named is None and recipe.features is None
        if self._takes_all and not recipe.takes_dicts:
            raise InvalidError("The recipe names no features: name the columns, in order.")

    malformed = (0, [])  # type: tuple[int, list[str]]

    def batches(self, count: int, skip: int) -> Iterator[Batch]:
        """Yield the lines, blank ones left out."""
        lines = islice(self._lines(), skip, None)
        while some := list(islice(lines, count)):
            yield _LineBatch(some, self)

    def _lines(self) -> Iterator[bytes]:
        while line := self._file.readline(LINE_BYTES_MAX + 1):
            if len(line) > LINE_BYTES_MAX:
                raise MalformedError(f"A line has more than {LINE_BYTES_MAX} bytes.")
            if line.strip():
                yield line

    def values_of(self, line: bytes) -> tuple[Any, Any, Any] | Fault:
        """Return the row of a line, its target and its weight; or why it is none."""
        try:
            document = identity.parse_json(line)
        except KeepfitError as error:
            return Fault(str(error).replace("The body", "The line").rstrip("."))
        if not isinstance(document, dict):
            return Fault("the line is not an object by column")
        special = {name: self._columns[name] for name in (TARGET, WEIGHTS) if name in self._columns}
        lacking = next((name for name in special.values() if document.get(name) is None), None)
        if lacking is not None:
            return Fault("the value is missing", None, lacking)
        y, weight = (document[special[name]] if name in special else None for name in (TARGET, WEIGHTS))
        if self._takes_all:
            return {name: value for name, value in document.items() if name not in special.values()}, y, weight
        columns = {name: source for name, source in self._columns.items() if name not in special}
        if self._recipe.features is None and not self._recipe.takes_dicts:
            return [document.get(source) for source in columns.values()], y, weight
        return {name: document[source] for name, source in columns.items() if source in document}, y, weight


@dataclass(frozen=True, slots=True)
class _LineBatch:
    lines: Sequence[bytes]
    reader: _Lines

    @property
    def n(self) -> int:
        return len(self.lines)

    def shape(self, recipe: Recipe, rows: Indices | None) -> Rows:
        lines = self.lines if rows is None else [self.lines[row] for row in rows]
        _check_bytes(sum(map(len, lines)))
        found = [self.reader.values_of(line) for line in lines]
        faults = [Fault(one.detail, number, one.column) for number, one in enumerate(found) if isinstance(one, Fault)][
            :FAULTS_MAX
        ]
        if faults:
            raise InvalidError(describe_faults(faults), faults)
        X, y, weights = (list(values) for values in zip(*found, strict=True))
        return shaping.shape(
            recipe, X, y if recipe.entry.takes_y else None, None if weights[0] is None else weights, learning=True
        )


def _check_bytes(size: int) -> None:
    if size > CHUNK_BYTES_MAX:
        raise InvalidError(
            f"{size} bytes of rows for one request, more than {CHUNK_BYTES_MAX}: pull with fewer rows_per_call."
        )
