"""Rows in files: CSV, JSON and JSON lines, plain or gzip, from a path or standard input.

Owns the formats and the position of each row in its file, for messages. Never knows a model:
:mod:`keepfit.client.row_values` gives values their types. Invariant: a file is read once, from its start to its end,
and a row at a time unless it is one JSON document.
"""

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, cast

from keepfit import identity
from keepfit.errors import KeepfitError, MalformedError, NotFoundError

Format = Literal["csv", "tsv", "json", "jsonl"]
SUFFIXES: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
STANDARD_STREAM = "-"
# A field of more characters is more likely a quote that is never closed.
FIELD_LENGTH_MAX = 10 * 2**20


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row: its place in the file ("line 5", "row 5"), and its values by column.

    `fault` says why the line is no row; then it has no values. `size` is the number of characters or values, roughly.
    """

    place: str
    values: dict[str, Any]
    fault: str = ""
    size: int = 0


def format_of(path: str) -> tuple[Format | None, bool]:
    """Return the format that the name of a file ends in, None if in none, and whether it is compressed.

    >>> format_of("shoes.CSV.gz"), format_of("shoes.jsonl"), format_of("-")
    (('csv', True), ('jsonl', False), (None, False))
    """
    name = path.lower()
    compressed = name.endswith(".gz")
    return SUFFIXES.get(Path(name.removesuffix(".gz")).suffix), compressed


class RowFile:
    """A file of rows, open for reading; `columns` are the names in the header of CSV, None where rows name their own.

    Use it as a context manager. Iterating yields each :class:`FileRow`.
    """

    def __init__(self, path: str, format_: Format | None = None, delimiter: str | None = None) -> None:
        by_name, self._compressed = format_of(path)
        self.name = "standard input" if path == STANDARD_STREAM else path
        found = format_ or by_name or ("csv" if path == STANDARD_STREAM else None)
        if found is None:
            raise MalformedError(
                f"The name {path!r} ends in no known format: .csv, .tsv, .json or .jsonl, each also with .gz; name the "
                "format with --format."
            )
        self.format: Format = found
        self._path, self._delimiter = path, delimiter or ("\t" if found == "tsv" else ",")
        if len(self._delimiter) != 1:
            raise MalformedError(f"The delimiter {self._delimiter!r} is not a single character.")
        self.columns: list[str] | None = None
        self._rows: Iterator[FileRow] = iter(())

    @property
    def is_typed(self) -> bool:
        """Whether values have types of their own: in JSON, not in CSV."""
        return self.format in ("json", "jsonl")

    def __enter__(self) -> Self:
        try:
            self._raw: BinaryIO = (
                sys.stdin.buffer if self._path == STANDARD_STREAM else cast("BinaryIO", Path(self._path).open("rb"))
            )
        except FileNotFoundError:
            raise NotFoundError(f"There is no file {self.name}.") from None
        except OSError as error:
            raise KeepfitError(f"{self.name} cannot be read: {error.strerror}.") from None
        self.size = 0 if self._path == STANDARD_STREAM or not self._raw.seekable() else self._raw.seek(0, io.SEEK_END)
        if self.size:
            self._raw.seek(0)
        data = cast("BinaryIO", gzip.GzipFile(fileobj=self._raw)) if self._compressed else self._raw
        self._text = io.TextIOWrapper(data, encoding="utf-8-sig", newline="")
        read = {"json": self._read_json, "jsonl": self._read_lines}.get(self.format, self._read_csv)
        self._rows = read()
        if not self.is_typed:
            # Up to the header, so that the columns are known.
            try:
                self._rows = _chain(next(self._rows, None), self._rows)
            except KeepfitError:
                self._close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._path == STANDARD_STREAM:
            self._text.detach()
        else:
            self._text.close()
            self._raw.close()

    def __iter__(self) -> Iterator[FileRow]:
        return self._rows

    @property
    def position(self) -> int:
        """Bytes of the file that are read; compressed ones count as they are in the file."""
        return 0 if not self.size else self._raw.tell()

    def _read_csv(self) -> Iterator[FileRow]:
        csv.field_size_limit(FIELD_LENGTH_MAX)
        reader = csv.reader(self._text, delimiter=self._delimiter, strict=True)
        line = 0
        with self._readable(lambda: f"after line {line}"):
            header = next((cells for cells in reader if cells), None)
            if header is None:
                raise MalformedError(f"{self.name} is empty: its first line must name the columns.")
            self.columns = [name.strip() for name in header]
            repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
            if repeated:
                raise MalformedError(f"{self.name}: the header names the column {repeated[0]!r} twice.")
            line = reader.line_num
            for cells in reader:
                # A row begins after the last line of the row before: quoted fields may have several lines.
                first, line = line + 1, reader.line_num
                if not cells:
                    continue
                if len(cells) != len(self.columns):
                    fault = f"the line has {len(cells)} values where the header names {len(self.columns)} columns"
                    yield FileRow(f"line {first}", {}, fault)
                else:
                    yield FileRow(
                        f"line {first}", dict(zip(self.columns, cells, strict=True)), size=sum(map(len, cells))
                    )

    def _read_lines(self) -> Iterator[FileRow]:
        line = 0
        with self._readable(lambda: f"after line {line}"):
            for text in self._text:
                line += 1
                if text.strip():
                    yield self._parse_row(f"line {line}", text)

    def _parse_row(self, place: str, text: str) -> FileRow:
        try:
            values = identity.parse_json(text.encode("utf-8", "surrogatepass"))
        except KeepfitError as error:
            return FileRow(place, {}, str(error).replace("The body", "The line").rstrip("."))
        return _row_of(place, values, len(text))

    def _read_json(self) -> Iterator[FileRow]:
        with self._readable(lambda: "as one JSON document"):
            try:
                document = identity.parse_json(self._text.read().encode())
            except KeepfitError as error:
                raise MalformedError(f"{self.name}: {str(error).replace('The body', 'The file')}") from None
        if not isinstance(document, list):
            raise MalformedError(f'{self.name}: the JSON must be a list of rows: [{{"make": "nike"}}, ...].')
        for number, values in enumerate(document, 1):
            yield _row_of(f"row {number}", values, 20 * len(values) if isinstance(values, dict) else 0)

    @contextmanager
    def _readable(self, where: Any) -> Iterator[None]:
        """Turn the errors of the readers into errors that name the file and the place."""
        try:
            yield
        except csv.Error as error:
            raise MalformedError(f"{self.name}: not CSV {where()}: {error}.") from None
        except UnicodeDecodeError:
            raise MalformedError(f"{self.name}: not UTF-8 text {where()}.") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise MalformedError(f"{self.name}: not a whole gzip file {where()}: {error}.") from None
        except OSError as error:
            raise KeepfitError(f"{self.name} cannot be read: {error.strerror or error}.") from None


def _row_of(place: str, values: Any, size: int) -> FileRow:
    if not isinstance(values, dict):
        return FileRow(place, {}, 'a row must be an object by column: {"make": "nike", "year": 2001}')
    return FileRow(place, values, size=size)


def _chain(first: FileRow | None, rest: Iterator[FileRow]) -> Iterator[FileRow]:
    if first is not None:
        yield first
        yield from rest
