"""Write rows to a file, a device, a pipe or standard output, in the formats that :mod:`keepfit.client.row_files` reads.

Owns when a result appears: a regular file is replaced when all rows are written, and not after an error; anything else
is written to, never replaced. Invariant: a row loses no column. The columns of CSV are known when the last row is, so
CSV is written at the end; JSON and JSON lines are written as rows arrive.
"""

import csv
import gzip
import io
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from keepfit.backends.files import sync_folder, write_and_rename
from keepfit.client.row_files import STANDARD_STREAM, Format, format_of
from keepfit.errors import KeepfitError
from keepfit.observability.printable import printable, printable_json

# Rows of CSV that wait for the last one are in memory up to this size, then in a temporary file.
WAITING_BYTES_MAX = 16 * 2**20


class RowWriter:
    """Writes rows to `path`, "-" for standard output. Use it as a context manager.

    Raises
    ------
    KeepfitError
        If the file cannot be written.
    """

    def __init__(self, path: str, format_: Format, delimiter: str | None = None) -> None:
        self._path, self._format = path, format_
        self._name = "standard output" if path == STANDARD_STREAM else path
        self._delimiter = delimiter or ("\t" if format_ == "tsv" else ",")
        self._count = 0
        self._escapes = False
        # The columns of the file and those that are added, in the order in which they appear.
        self._columns: dict[str, None] = {}
        self._added: dict[str, None] = {}
        self._temporary: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._raw: BinaryIO | None = None
        self._compressed: gzip.GzipFile | None = None

    def __enter__(self) -> Self:
        with self._writable():
            self._open()
        self._waiting = tempfile.SpooledTemporaryFile(WAITING_BYTES_MAX, "w+", encoding="ascii")
        return self

    def _open(self) -> None:
        found = None
        with suppress(FileNotFoundError):
            found = None if self._path == STANDARD_STREAM else Path(self._path).stat()
        if self._path == STANDARD_STREAM or (found is not None and _is_standard_output(found)):
            self._text: Any = sys.stdout
            # A file gets exact values. A terminal would obey control characters in them.
            self._escapes = sys.stdout.isatty()
            return
        if found is not None and not stat.S_ISREG(found.st_mode):
            self._raw = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND), "wb")
        else:
            # A link stays a link: the file that it leads to is replaced.
            self._target = Path(os.path.realpath(self._path))
            folder = self._target.parent
            self._temporary = tempfile.NamedTemporaryFile(dir=folder, prefix=".keepfit-", delete=False)  # noqa: SIM115
            os.fchmod(self._temporary.fileno(), _usual_mode() if found is None else stat.S_IMODE(found.st_mode))
            self._raw = cast("BinaryIO", self._temporary.file)
        if format_of(self._path)[1]:
            # Without a time in its header, the same rows give the same bytes.
            self._compressed = gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0)
        self._text = io.TextIOWrapper(cast("BinaryIO", self._compressed or self._raw), encoding="utf-8", newline="")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_complete = False
        try:
            if kind is None:
                with self._writable():
                    self._finish()
                is_complete = True
        finally:
            self._waiting.close()
            if self._raw is not None and not is_complete:
                with suppress(OSError, ValueError):
                    self._text.close()
                with suppress(OSError):
                    self._raw.close()
                if self._temporary is not None:
                    Path(self._temporary.name).unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._format == "json":
            self._text.write("\n]\n" if self._count else "[]\n")
        elif self._format != "jsonl":
            self._write_csv()
        self._text.flush()
        if self._raw is None:
            return
        self._text.detach()
        if self._compressed is not None:
            self._compressed.close()
        if self._temporary is not None:
            write_and_rename(self._temporary, b"", self._target)
            sync_folder(self._target.parent)
        self._raw.close()

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


def _is_standard_output(found: os.stat_result) -> bool:
    """Return whether a file is this process' standard output, as /dev/stdout is: it must not be replaced."""
    try:
        return os.path.samestat(found, os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def _usual_mode() -> int:
    """Return the mode that the user's umask gives to a new file."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask
