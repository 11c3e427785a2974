"""Write rows to a file, a device, a pipe or standard output, in the formats that :mod:`.row_files` reads.

Owns their form; :mod:`keepfit.client.files.output_file` owns when a file appears. Invariant: a row loses no column. The
columns of CSV are known when the last row is, so CSV is written at the end; JSON and JSON lines are written as rows
arrive.
"""

import csv
import io
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Self

from keepfit.client.files.file_codings import writer as compressed_writer
from keepfit.client.files.output_file import STANDARD_STREAM, OutputFile
from keepfit.client.files.row_files import Format, format_of
from keepfit.errors import KeepfitError, MalformedError
from keepfit.observability.printable import printable, printable_json

# Rows of CSV that wait for the last one are in memory up to this size, then in a temporary file.
WAITING_BYTES_MAX = 16 * 2**20


class RowWriter:
    """Writes rows to `path`, "-" for standard output. Use it as a context manager.

    Raises
    ------
    MalformedError
        For Parquet, whose columns need types that rows do not have.
    KeepfitError
        If the file cannot be written.
    """

    def __init__(self, path: str, format_: Format, delimiter: str | None = None) -> None:
        if format_ == "parquet":
            raise MalformedError(f"{path}: Parquet is read and not written: name the output .csv or .jsonl.")
        self._path, self._format = path, format_
        self._name = "standard output" if path == STANDARD_STREAM else path
        self._delimiter = delimiter or ("\t" if format_ == "tsv" else ",")
        self._count = 0
        self._escapes = False
        # The columns of the file and those that are added, in the order in which they appear.
        self._columns: dict[str, None] = {}
        self._added: dict[str, None] = {}
        self._file = OutputFile(path)
        self._is_standard = True
        self._compressed: BinaryIO | None = None

    def __enter__(self) -> Self:
        with self._writable():
            self._open()
        self._waiting = tempfile.SpooledTemporaryFile(WAITING_BYTES_MAX, "w+", encoding="ascii")
        return self

    def _open(self) -> None:
        raw = self._file.open()
        if raw is None:
            self._text: Any = sys.stdout
            # A file gets exact values. A terminal would obey control characters in them.
            self._escapes = sys.stdout.isatty()
            return
        self._compressed = compressed_writer(raw, format_of(self._path)[1])
        self._text = io.TextIOWrapper(self._compressed or raw, encoding="utf-8", newline="")
        self._is_standard = False

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_complete = False
        try:
            if kind is None:
                with self._writable():
                    self._finish()
                is_complete = True
        finally:
            self._waiting.close()
            if not is_complete:
                if not self._is_standard:
                    with suppress(OSError, ValueError):
                        self._text.close()
                self._file.discard()

    def _finish(self) -> None:
        if self._format == "json":
            self._text.write("\n]\n" if self._count else "[]\n")
        elif self._format != "jsonl":
            self._write_csv()
        self._text.flush()
        if not self._is_standard:
            self._text.detach()
        if self._compressed is not None:
            self._compressed.close()
        self._file.finish()

    def expect(self, columns: Iterable[str], added: Iterable[str] = ()) -> str | None:
        """Name columns that the header of CSV has in any case, with those that are added at its end.

        Returns
        -------
        name
            A column of the rows so far that is also added to one of them; None if there is none.
        """
        self._columns |= dict.fromkeys(columns)
        self._added |= dict.fromkeys(added)
        if self._columns.keys().isdisjoint(self._added):
            return None
        return next(name for name in self._added if name in self._columns)

    def write(self, row: dict[str, Any], added: dict[str, Any] | None = None) -> None:
        """Write a row and the columns that are added to it, which stand last."""
        whole = {**row, **(added or {})}
        with self._writable():
            if self._format == "json":
                self._text.write(("[\n" if not self._count else ",\n") + self._to_json(whole))
            elif self._format == "jsonl":
                self._text.write(self._to_json(whole) + "\n")
            else:
                self.expect(row, added or ())
                self._waiting.write(json.dumps(whole) + "\n")
        self._count += 1

    def _write_csv(self) -> None:
        columns = [*(self._columns | self._added)]
        writer = csv.writer(self._text, delimiter=self._delimiter, lineterminator="\n")
        if columns:
            writer.writerow(map(self._shown, columns))
        self._waiting.seek(0)
        for line in self._waiting:
            row = json.loads(line)
            writer.writerow([self._shown(row.get(name)) for name in columns])

    def _shown(self, cell: Any) -> Any:
        if isinstance(cell, list | dict | bool):
            return self._to_json(cell)
        return printable(cell) if self._escapes and isinstance(cell, str) else cell

    def _to_json(self, value: Any) -> str:
        return printable_json(value) if self._escapes else json.dumps(value, ensure_ascii=False)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KeepfitError(f"{self._name} cannot be written: {error.strerror or error}.") from None
