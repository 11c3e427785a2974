"""CSV and Parquet bodies as tables: a whole file in memory, converted piece by piece.

Owns the conversion, and the limits of what a small file may become. Never keeps a piece. Invariant: the rows are those
that the same rows in JSON give, or an error; text that pyarrow has parsed is converted a piece at a time, so that a
body is in memory once as it came and once as columns, and then no more as it came.
"""

import io
from dataclasses import dataclass, field
from typing import Any

from keepfit.errors import Fault, InvalidError, TooLargeError
from keepfit.recipe.features import NUMERIC_KINDS
from keepfit.recipe.features import Column as ColumnSpec
from keepfit.recipe.recipe import Recipe
from keepfit.rows import arrow, parquet_pages
from keepfit.rows.arrow_files import DECODED_ROWS, CsvReader, ParquetReader, in_chunks, load_csv
from keepfit.rows.rows import Rows
from keepfit.rows.selection import Selection
from keepfit.rows.tables import TARGET, WEIGHTS, Array, Column, NamedColumns
from keepfit.rows.text_columns import LabelType
from keepfit.rows.values import describe_faults, shape_numbers

# Values of CSV that are converted at a time: in between they are objects of Python.
PIECE_VALUES = 1 << 19
VALUE_BYTES = 8
TOO_LARGE = "The body has more than {} bytes when it is inflated."


@dataclass(slots=True)
class FileTable:
    """The rows of a body: `kind` is "csv" or "parquet". `bytes_max` is the size that a body may have, inflated.

    `size_bytes` is what its values may take before they are shaped: of Parquet, by the headers of its pages.

    Raises
    ------
    MalformedError, InvalidError
        If the body is not Parquet, or has pages that may not be read.
    TooLargeError
        If its pages are more than `bytes_max` bytes when they are inflated.
    """

    body: bytearray
    kind: str
    selection: Selection
    label_type: LabelType | None
    bytes_max: int
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = len(self.body)
        if self.kind == "csv":
            load_csv()
            return
        reader = self._metadata()
        inflated = parquet_pages.check(self.body, reader.chunks())
        if max(inflated, VALUE_BYTES * reader.total) > self.bytes_max:
            raise TooLargeError(TOO_LARGE.format(self.bytes_max))
        values = reader.total * len(reader.names)
        self.size_bytes = max(self.size_bytes, inflated, min(VALUE_BYTES * values, self.bytes_max))

    def shape(self, recipe: Recipe, *, learning: bool, weighted: bool = True) -> Rows:
        """Check the rows against `recipe`, as :meth:`keepfit.rows.tables.Table.shape` does; releases the body.

        Raises
        ------
        MalformedError, InvalidError
            If the body is not such a file, or its rows do not fit.
        TooLargeError
            If it is more than `bytes_max` bytes when it is inflated.
        """
        if learning:
            self.selection.check(recipe, by_name=False)
        with _Memory(self.body) as file:
            table = (self._csv if self.kind == "csv" else self._parquet)(file, recipe, learning=learning)
        # The rows are made of its columns, and would be in memory beside both.
        self.body = bytearray()
        return table.shape(recipe, learning=learning, weighted=weighted)

    def _csv(self, file: "_Memory", recipe: Recipe, *, learning: bool) -> NamedColumns:
        reader = CsvReader(io.BufferedReader(file), recipe, self.label_type)
        columns = self.selection.bind(recipe, reader.names, learning=learning)
        specs = {spec.name: spec for spec in recipe.layout.columns} if recipe.features is not None else {}
        parts = {name: _Part(name, specs.get(name), recipe) for name in columns}
        n = 0
        for piece in in_chunks(reader.rows(columns), max(PIECE_VALUES // len(columns), 1)):
            table = piece.table()
            for column in table.columns:
                parts[column.name].add(column, n, table.n)
            n += table.n
        if reader.malformed.count:
            raise InvalidError(f"{reader.malformed.first[0]}, and {reader.malformed.count - 1} lines more.")
        if not n:
            raise InvalidError("X must have at least one row and one column.")
        return NamedColumns(n, [part.column() for part in parts.values()])

    def _parquet(self, file: "_Memory", recipe: Recipe, *, learning: bool) -> NamedColumns:
        plain = self._metadata()
        columns = self.selection.bind(recipe, plain.names, learning=learning)
        # Rows that share the text of a dictionary do not repeat it: a row group has each dictionary once.
        texts = set(plain.texts)
        reader, whole = ParquetReader(io.BufferedReader(file), plain.texts), max(plain.largest_group, 1)
        found: list[Column] = []
        n = size = 0
        for name, source in columns.items():
            batches: list[Any] = []
            for piece in reader.rows({name: source}, decoded_rows=whole if source in texts else DECODED_ROWS):
                batches += piece.batches
                size += piece.size_bytes
                if size > self.bytes_max:
                    raise TooLargeError(TOO_LARGE.format(self.bytes_max))
            if not batches:
                raise InvalidError("X must have at least one row and one column.")
            n = sum(batch.num_rows for batch in batches)
            found += arrow.named_columns([name], batches)
        return NamedColumns(n, found)

    def _metadata(self) -> ParquetReader:
        return ParquetReader(io.BufferedReader(_Memory(self.body)))


class _Part:
    """A column of CSV, piece by piece: numbers as arrays, the rest as a list whose equal texts are one object."""

    def __init__(self, name: str, spec: ColumnSpec | None, recipe: Recipe) -> None:
        self._name, self._spec = name, spec
        of_target = name == TARGET and recipe.entry.target == "numbers"
        of_matrix = recipe.features is None and not recipe.takes_dicts and name != TARGET
        self._is_number = of_target or of_matrix or name == WEIGHTS or (spec is not None and spec.kind in NUMERIC_KINDS)
        self._blocks: list[Array] = []
        self._values: list[Any] = []
        self._missing: list[int] = []
        self._known: dict[Any, Any] = {}

    def add(self, column: Column, first: int, n: int) -> None:
        """Add a piece of `n` rows, the first of which has the number `first`."""
        self._missing += [first + row for row in column.missing]
        if not self._is_number:
            values = column.to_list()
            # Labels are few; texts are mostly distinct.
            same = self._known.setdefault
            self._values += (
                values if self._spec is not None and self._spec.kind == "text" else map(same, values, values)
            )
            return
        if column.labels is None:
            self._blocks += column.blocks
            return
        values = column.to_list()
        for row in column.missing:
            values[row] = 0
        subject = {TARGET: "target", WEIGHTS: "weights"}.get(self._name, "column")
        try:
            self._blocks.append(shape_numbers(values, self._name, subject, self._spec))
        except InvalidError as error:
            faults = [Fault(fault.detail, first + (fault.row or 0), fault.column) for fault in error.faults]
            raise InvalidError(describe_faults(faults, subject) if faults else str(error), faults) from None

    def column(self) -> Column:
        """Return the whole column."""
        if self._is_number:
            return Column(self._name, self._blocks, missing=self._missing)
        return Column(self._name, labels=lambda: self._values, missing=self._missing)


class _Memory(io.RawIOBase):
    """A body as a file, which shares its memory until it is closed: threads of pyarrow may have the file for longer."""

    def __init__(self, body: bytearray) -> None:
        super().__init__()
        self._view, self._position = memoryview(body), 0

    def close(self) -> None:
        """Release the body."""
        self._view = memoryview(b"")
        super().close()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        self._position = max(begin + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read what is there."""
        view = memoryview(buffer).cast("B")
        part = self._view[self._position : self._position + view.nbytes]
        view[: part.nbytes] = part
        self._position += part.nbytes
        return part.nbytes
