"""Rows in files: CSV, JSON, JSON lines (plain, gzip or Zstandard) and Parquet, from a path or standard input.

Owns the formats and the position of each row in its file, for messages. Never knows a model: :mod:`.row_values` gives
values their types. Invariant: a file is read once, from its start to its end, and a row at a time unless it is one JSON
document.
"""

import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Self, cast

from keepfit import identity
from keepfit.client.files.file_codings import ERRORS, Coding, coding_of, reader
from keepfit.errors import InvalidError, KeepfitError, MalformedError, NotFoundError

Format = Literal["csv", "tsv", "json", "jsonl", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
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


def format_of(path: str) -> tuple[Format | None, Coding | None]:
    """Return the format that the name of a file ends in, None if in none, and how the file is compressed.

    >>> format_of("shoes.CSV.gz"), format_of("shoes.jsonl.zst"), format_of("-")
    (('csv', 'gzip'), ('jsonl', 'zstd'), (None, None))
    """
    name, coding = coding_of(path)
    return SUFFIXES.get(Path(name.lower()).suffix), coding


class RowFile:
    """A file of rows, open for reading; `columns` are the names in the header of CSV, None where rows name their own.

    Use it as a context manager. Iterating yields each :class:`FileRow`.
    """

    def __init__(self, path: str, format_: Format | None = None, delimiter: str | None = None) -> None:
        by_name, self._coding = format_of(path)
        self.name = "standard input" if path == STANDARD_STREAM else path
        found = format_ or by_name or ("csv" if path == STANDARD_STREAM else None)
        if found is None:
            raise MalformedError(
                f"The name {path!r} ends in no known format: .csv, .tsv, .json or .jsonl, each also with .gz or "
                ".zst, or .parquet; name the format with --format."
            )
        self.format: Format = found
        self._path, self._delimiter = path, delimiter or ("\t" if found == "tsv" else ",")
        if len(self._delimiter) != 1:
            raise MalformedError(f"The delimiter {self._delimiter!r} is not a single character.")
        self.columns: list[str] | None = None
        self._rows: Iterator[FileRow] = iter(())
        self._text: io.TextIOWrapper | None = None
        self._copied: IO[bytes] | None = None

    @property
    def is_typed(self) -> bool:
        """Whether values have types of their own: not in CSV."""
        return self.format not in ("csv", "tsv")

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
        self._data = reader(self._raw, self._coding)
        try:
            self._open()
        except KeepfitError:
            self._close()
            raise
        return self

    def _open(self) -> None:
        """Begin to read: of formats that name their columns first up to there, so that they are known."""
        if self.format == "parquet":
            self._open_parquet()
            return
        self._text = io.TextIOWrapper(self._data, encoding="utf-8-sig", newline="")
        read = {"json": self._read_json, "jsonl": self._read_lines}.get(self.format, self._read_csv)
        self._rows = read(self._text)
        if not self.is_typed:
            self._rows = _chain(next(self._rows, None), self._rows)

    def _open_parquet(self) -> None:
        from keepfit.client.files.parquet_rows import open_rows  # noqa: PLC0415 - other formats need no numpy

        data = self._data
        if not self.size or self._coding is not None:
            # Parquet is read from its end.
            self._copied = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the file
            with self._readable(lambda: "of Parquet"):
                shutil.copyfileobj(data, self._copied)
            self._copied.seek(0)
            data = cast("BinaryIO", self._copied)
        try:
            self.columns, rows = open_rows(data)
        except (MalformedError, InvalidError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        self._rows = self._parquet_rows(rows)

    def _parquet_rows(self, rows: Iterator[dict[str, Any]]) -> Iterator[FileRow]:
        try:
            with self._readable(lambda: "of Parquet"):
                for number, values in enumerate(rows, 1):
                    size = sum(len(value) if isinstance(value, str) else 8 for value in values.values())
                    yield FileRow(f"row {number}", values, size=size)
        except (MalformedError, InvalidError) as error:
            raise type(error)(f"{self.name}: {error}") from None

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._rows = iter(())
        if self._copied is not None:
            self._copied.close()
        if self._path == STANDARD_STREAM:
            if self._text is not None:
                self._text.detach()
            return
        for file in (self._text, self._data, self._raw):
            if file is not None:
                file.close()

    def __iter__(self) -> Iterator[FileRow]:
        return self._rows

    @property
    def position(self) -> int:
        """Bytes of the file that are read; compressed ones count as they are in the file."""
        return 0 if not self.size else self._raw.tell()

    def _read_csv(self, text: io.TextIOWrapper) -> Iterator[FileRow]:
        csv.field_size_limit(FIELD_LENGTH_MAX)
        lines = csv.reader(text, delimiter=self._delimiter, strict=True)
        line = 0
        with self._readable(lambda: f"after line {line}"):
            header = next((cells for cells in lines if cells), None)
            if header is None:
                raise MalformedError(f"{self.name} is empty: its first line must name the columns.")
            self.columns = [name.strip() for name in header]
            repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
            if repeated:
                raise MalformedError(f"{self.name}: the header names the column {repeated[0]!r} twice.")
            line = lines.line_num
            for cells in lines:
                # A row begins after the last line of the row before: quoted fields may have several lines.
                first, line = line + 1, lines.line_num
                if not cells:
                    continue
                if len(cells) != len(self.columns):
                    fault = f"the line has {len(cells)} values where the header names {len(self.columns)} columns"
                    yield FileRow(f"line {first}", {}, fault)
                else:
                    yield FileRow(
                        f"line {first}", dict(zip(self.columns, cells, strict=True)), size=sum(map(len, cells))
                    )

    def _read_lines(self, text: io.TextIOWrapper) -> Iterator[FileRow]:
        line = 0
        with self._readable(lambda: f"after line {line}"):
            for words in text:
                line += 1
                if words.strip():
                    yield self._parse_row(f"line {line}", words)

    def _parse_row(self, place: str, text: str) -> FileRow:
        try:
            values = identity.parse_json(text.encode("utf-8", "surrogatepass"))
        except KeepfitError as error:
            return FileRow(place, {}, str(error).replace("The body", "The line").rstrip("."))
        return _row_of(place, values, len(text))

    def _read_json(self, text: io.TextIOWrapper) -> Iterator[FileRow]:
        with self._readable(lambda: "as one JSON document"):
            try:
                document = identity.parse_json(text.read().encode())
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
        except ERRORS as error:
            raise MalformedError(f"{self.name}: not a whole {self._coding} file {where()}: {error}.") from None
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
