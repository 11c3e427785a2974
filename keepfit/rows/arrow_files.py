"""CSV and Parquet files, with pyarrow's readers: record batches in order, with bounded memory.

Owns how pyarrow reads them, and what a file may hold so that it can be read. Never gives a text another type
(:mod:`keepfit.rows.text_columns`), never reads more than the columns that are asked for. Invariant: what is in memory
does not depend on the length of the file: a piece of CSV, a page of each column of Parquet, and the batch. pyarrow is
optional (the extra ``frames``).
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np

from keepfit import extras
from keepfit.errors import InvalidError, MalformedError
from keepfit.recipe.features import COLUMNS_MAX
from keepfit.recipe.recipe import Recipe
from keepfit.rows import arrow, text_columns
from keepfit.rows.tables import NamedColumns
from keepfit.rows.text_columns import LabelType
from keepfit.rows.values import Floats

# A row of CSV is not longer: a piece of it that ends inside of a quote or a row is refused.
ROW_BYTES_MAX = 4 << 20
# Rows of Parquet that are decoded at a time, and bytes that are read of each column at a time.
DECODED_ROWS, COLUMN_BYTES = 4096, 64 * 1024
# Inflated bytes of one row group in one column chunk: the largest page that a file may have.
COLUMN_CHUNK_BYTES_MAX = 256 << 20
MESSAGE_LENGTH_MAX = 200
# Rows of CSV with another number of values whose places are kept.
MALFORMED_KEPT_MAX = 20


def require(what: str) -> None:
    """Raise InvalidError if pyarrow is not installed, which `what` needs."""
    if not arrow.AVAILABLE:
        raise InvalidError(f"{what} needs pyarrow: {extras.install('frames')}.")


def load_csv() -> None:
    """Import what reads CSV, which takes long: call it in a thread, before rows are shaped in an event loop."""
    require("CSV")
    import pyarrow.csv  # noqa: F401, PLC0415 - see above


@dataclass(slots=True)
class Malformed:
    """Lines of CSV that have another number of values than the header: their number, and the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, row: Any) -> str:
        """Count a line that pyarrow reports; return what pyarrow does with it."""
        self.count += 1
        if len(self.first) < MALFORMED_KEPT_MAX:
            place = "" if row.number is None else f"line {row.number}: "
            self.first.append(f"{place}{row.actual_columns} values where the header has {row.expected_columns}")
        return "skip"


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """Some rows as record batches; `columns` are the names of the model. CSV has `types` for its texts."""

    batches: Sequence[Any]
    columns: Sequence[str]
    types: Mapping[str, str] | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return sum(batch.num_rows for batch in self.batches)

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        return sum(batch.nbytes for batch in self.batches)

    def take(self, rows: "np.typing.NDArray[np.intp]") -> "ArrowRows":
        """Return only the rows with these numbers."""
        import pyarrow as pa  # noqa: PLC0415 - optional, and slow to import

        table = pa.Table.from_batches(self.batches).take(pa.array(rows))
        return replace(self, batches=table.combine_chunks().to_batches())

    def table(self) -> NamedColumns:
        """Return the rows as a table for :meth:`~keepfit.rows.tables.NamedColumns.shape`."""
        if self.types is None:
            return NamedColumns(self.n, arrow.named_columns(self.columns, self.batches))
        import pyarrow as pa  # noqa: PLC0415 - see above

        table = pa.Table.from_batches(self.batches)
        arrays = [table.column(i).combine_chunks() for i in range(len(self.columns))]
        return NamedColumns(
            self.n,
            [
                text_columns.typed(name, kind, texts, numbers)
                for name, array in zip(self.columns, arrays, strict=True)
                for kind in (self.types[name],)
                for numbers in (_numbers(pa, array) if kind == "number" else None,)
                for texts in (array.to_pylist(),)
            ],
        )


def _numbers(pa: Any, texts: Any) -> Floats | None:
    """Return texts as float64 if each is a finite number or missing, else None."""
    import pyarrow.compute as pc  # noqa: PLC0415 - see above

    try:
        numbers = pc.cast(pc.if_else(pc.equal(texts, ""), None, texts), pa.float64())
    except pa.ArrowInvalid:
        return None
    values: Floats = numbers.to_numpy(zero_copy_only=False)
    return values if int(np.isfinite(values).sum()) == len(values) - numbers.null_count else None


@contextmanager
def _readable(kind: str) -> Iterator[None]:
    import pyarrow as pa  # noqa: PLC0415 - see above

    try:
        yield
    except MemoryError:
        # pyarrow's own is an ArrowException too.
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            # An error of the file, not of its content.
            raise
        message = str(error)
        if "straddling object" in message:
            message = f"a row has more than {ROW_BYTES_MAX} bytes, or a quote is never closed"
        raise MalformedError(f"The source is not {kind}: {message[:MESSAGE_LENGTH_MAX]}.") from None


class CsvReader:
    """A CSV file, comma between the values, with a header; its rows as text."""

    total: int | None = None

    def __init__(self, file: BinaryIO, recipe: Recipe, label_type: LabelType | None, delimiter: str = ",") -> None:
        require("CSV")
        self.malformed = Malformed()
        self._recipe, self._label_type = recipe, text_columns.label_type_of(recipe, label_type)
        self._file, self._delimiter = _Header(file), delimiter
        with _readable("CSV"):
            self.names = self._file.names(delimiter)

    def rows(self, columns: Mapping[str, str], skip: int = 0) -> Iterator[ArrowRows]:
        """Yield the rows from number `skip` on; `columns` are names of the file by those of the model."""
        import pyarrow as pa  # noqa: PLC0415 - see above
        from pyarrow import csv as arrow_csv  # noqa: PLC0415

        sources = list(dict.fromkeys(columns.values()))
        types = {name: text_columns.type_of(self._recipe, name, self._label_type) for name in columns}
        with _readable("CSV"):
            reader = arrow_csv.open_csv(
                self._file,
                arrow_csv.ReadOptions(use_threads=False, block_size=ROW_BYTES_MAX),
                arrow_csv.ParseOptions(
                    delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=self.malformed.add
                ),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(sources, pa.string()), include_columns=sources, null_values=[""],
                    strings_can_be_null=True, quoted_strings_can_be_null=False,
                ),
            )  # fmt: skip
            for batch in reader:
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                named = pa.RecordBatch.from_arrays([batch.column(s) for s in columns.values()], list(columns))
                yield ArrowRows([named.slice(skip)], list(columns), types)
                skip = 0


class _Header:
    """A file whose first line is read ahead: pyarrow's own header would be read before the columns can be named."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ahead = file.read(ROW_BYTES_MAX)
        self._quotes = 0

    def names(self, delimiter: str) -> list[str]:
        """Return the names in the header."""
        if not self._ahead.strip():
            raise MalformedError("The source is empty: its first line must name the columns.")
        if self._ahead.split(b"\n", 1)[0].count(delimiter.encode()) >= COLUMNS_MAX + 2:
            raise InvalidError(f"The header names more than {COLUMNS_MAX} columns.")
        # A character that is cut at the end of what was read ahead is not part of the header.
        text = io.StringIO(self._ahead.decode("utf-8-sig", "replace"), newline="")
        try:
            names = next((row for row in csv.reader(text, delimiter=delimiter) if row), [])
        except csv.Error as error:
            raise MalformedError(f"The source is not CSV: its header cannot be read: {error}.") from None
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidError(f"The header names the column {twice[:100]!r} twice.")
        return names

    def read(self, size: int = -1) -> bytes:
        """Read what was read ahead first.

        Raises
        ------
        MalformedError
            At the end, if a quote is open: pyarrow would take all that follows it as one value.
        """
        if self._ahead:
            data, self._ahead = (self._ahead, b"") if size < 0 else (self._ahead[:size], self._ahead[size:])
        else:
            data = self._file.read(size)
        self._quotes += data.count(b'"')
        if not data and size and self._quotes % 2:
            raise MalformedError("The source is not CSV: a quote is never closed.")
        return data

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return False."""
        return False

    def seekable(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Do nothing: who opened the file closes it."""


class ParquetReader:
    """A Parquet file; `encoded` names columns of text whose rows have the numbers of values in a dictionary."""

    malformed = Malformed()

    def __init__(self, file: BinaryIO, encoded: Sequence[str] = ()) -> None:
        require("Parquet")
        from pyarrow import parquet  # noqa: PLC0415 - see above

        with _readable("Parquet"):
            self._file = parquet.ParquetFile(
                file, pre_buffer=False, buffer_size=COLUMN_BYTES, memory_map=False, read_dictionary=list(encoded)
            )
        metadata = self._file.metadata
        schema = self._file.schema_arrow
        self.names: list[str] = schema.names
        if len(set(self.names)) < len(self.names):
            raise InvalidError("Two columns of the Parquet file have the same name.")
        if metadata.num_columns > COLUMNS_MAX + 2:
            raise InvalidError(f"The Parquet file has {metadata.num_columns} columns; the limit is {COLUMNS_MAX}.")
        self._rows_of_groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        if min(self._rows_of_groups, default=0) < 0:
            raise MalformedError("The source is not Parquet: a row group has a negative number of rows.")
        self.total = sum(self._rows_of_groups)
        # Columns that may be read have no parts: the path of one is its name, which may have points.
        self._positions: dict[str, list[int]] = {}
        for position in range(metadata.num_columns):
            self._positions.setdefault(metadata.schema.column(position).path, []).append(position)

    @property
    def largest_group(self) -> int:
        """Number of rows of the largest row group."""
        return max(self._rows_of_groups, default=0)

    @property
    def texts(self) -> list[str]:
        """Names of the columns that hold text."""
        return [field.name for field in self._file.schema_arrow if arrow.is_text(field.type)]

    def rows(self, columns: Mapping[str, str], skip: int = 0, decoded_rows: int = DECODED_ROWS) -> Iterator[ArrowRows]:
        """Yield the rows from number `skip` on, `decoded_rows` at a time; `columns` are names of the file by those of
        the model.
        """
        import pyarrow as pa  # noqa: PLC0415 - see above

        sources = list(dict.fromkeys(columns.values()))
        arrow.check_schema([self._file.schema_arrow.field(name) for name in sources])
        group, skip = self._find_group(skip)
        self._check_chunks(sources, group)
        groups = list(range(group, len(self._rows_of_groups)))
        if not groups:
            return
        with _readable("Parquet"):
            batches = self._file.iter_batches(decoded_rows, row_groups=groups, columns=sources, use_threads=False)
            for batch in batches:
                batch.validate(full=True)
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                named = pa.RecordBatch.from_arrays([batch.column(s) for s in columns.values()], list(columns))
                yield ArrowRows([named.slice(skip)], list(columns))
                skip = 0

    def _find_group(self, row: int) -> tuple[int, int]:
        """Return the row group of a row, and the number of the row in it."""
        for group, count in enumerate(self._rows_of_groups):
            if row < count:
                return group, row
            row -= count
        return len(self._rows_of_groups), 0

    def chunks(self) -> list[tuple[int, int, str]]:
        """Return the column chunks: first byte, number of bytes, name of the column."""
        found = []
        for _, chunk in self._chunks(self._positions, 0):
            # As pyarrow finds it.
            first, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
            first = dictionary if dictionary and 0 < dictionary < first else first
            found.append((first, chunk.total_compressed_size, chunk.path_in_schema))
        return found

    def _chunks(self, names: Iterable[str], begin: int) -> Iterator[tuple[int, Any]]:
        positions = [i for name in names for i in self._positions.get(name, ())]
        for group in range(begin, len(self._rows_of_groups)):
            of_group = self._file.metadata.row_group(group)
            yield from ((group, of_group.column(position)) for position in positions)

    def _check_chunks(self, names: Iterable[str], begin: int) -> None:
        """Reject a column chunk that could hold a page of many megabytes, which is decoded as a whole."""
        for group, chunk in self._chunks(names, begin):
            if chunk.total_uncompressed_size > COLUMN_CHUNK_BYTES_MAX:
                raise InvalidError(
                    f"Row group {group} has {chunk.total_uncompressed_size} bytes in the column "
                    f"{chunk.path_in_schema[:100]!r}, more than {COLUMN_CHUNK_BYTES_MAX}: write smaller row groups."
                )


def in_chunks(parts: Iterator[ArrowRows], count: int) -> Iterator[ArrowRows]:
    """Yield the same rows, `count` at a time; the last ones are fewer."""
    waiting: list[Any] = []
    held = 0
    for part in parts:
        for batch in part.batches:
            start = 0
            while held + batch.num_rows - start >= count:
                taken = count - held
                yield replace(part, batches=[*waiting, batch.slice(start, taken)])
                waiting, held, start = [], 0, start + taken
            if start < batch.num_rows:
                waiting.append(batch.slice(start))
                held += batch.num_rows - start
        last = part
    if waiting:
        yield replace(last, batches=waiting)
