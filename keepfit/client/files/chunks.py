"""A file of rows, divided into requests.

Owns where a file is divided, the values of a request, and the faults of its rows. Never sends anything itself.
Invariant: where a file is divided depends on its content and the rows of a request alone; a request with a bad row is
not sent, unless it may be sent without the row.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from keepfit.client.files.row_files import FileRow, RowFile
from keepfit.client.files.row_values import ModelColumns, ValueFaultError
from keepfit.errors import Fault, InvalidError

ROWS_MAX = 1000
# A request ends early after this many characters, so that rows of long texts stay below the limits of a gateway.
CHARACTERS_MAX = 4 * 2**20

# Called after each request with the bytes that are read (0 if unknown) and the rows that are done.
Report = Callable[[int, int], None]


@dataclass(slots=True)
class Chunk:
    """The rows of one request: `rows` as they are in the file from row `offset` on (from 0), and the faults of some.

    `X`, `y` and `weights` are the values of the rows without a fault, whose positions in `rows` are `sent`.
    """

    offset: int
    rows: list[FileRow]
    faults: dict[int, str] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    X: list[Any] = field(default_factory=list)
    y: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def drop(self, faults: dict[int, str]) -> None:
        """Remove the rows at these positions of `sent`, and keep why."""
        for position in sorted(faults, reverse=True):
            self.faults[self.sent.pop(position)] = faults[position]
            for values in (self.X, self.y, self.weights):
                if values:
                    values.pop(position)

    def divide(self, rows_max: int) -> "list[Chunk]":
        """Divide the chunk into some of at most `rows_max` rows, in their order."""
        parts = []
        for begin in range(0, len(self.rows), rows_max):
            end = begin + rows_max
            part = Chunk(self.offset + begin, self.rows[begin:end])
            part.faults = {at - begin: fault for at, fault in self.faults.items() if begin <= at < end}
            first, last = bisect_left(self.sent, begin), bisect_left(self.sent, end)
            part.sent = [position - begin for position in self.sent[first:last]]
            part.X, part.y, part.weights = self.X[first:last], self.y[first:last], self.weights[first:last]
            parts.append(part)
        return parts

    def body(self, **more: Any) -> bytes:
        """Return the JSON of the request."""
        fields: dict[str, Any] = {"X": self.X, **more}
        if self.y:
            fields["y"] = self.y
        if self.weights:
            fields["sample_weight"] = self.weights
        return msgspec.json.encode(fields)


def chunks(source: RowFile, columns: ModelColumns, rows_max: int = ROWS_MAX) -> Iterator[Chunk]:
    """Read a file and divide it; where it is divided depends on its content and `rows_max` only."""
    offset = 0
    if source.columns is not None:
        columns.bind(source.columns, source.name)
    for rows in _divide(source, rows_max):
        if not offset and source.columns is None:
            columns.bind(list(dict.fromkeys(name for row in rows for name in row.values)), source.name)
        yield _make_chunk(offset, rows, columns, typed=source.is_typed)
        offset += len(rows)


def _divide(source: RowFile, rows_max: int) -> Iterator[list[FileRow]]:
    rows: list[FileRow] = []
    size = 0
    for row in source:
        rows.append(row)
        size += row.size
        if len(rows) >= rows_max or size >= CHARACTERS_MAX:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _make_chunk(offset: int, rows: list[FileRow], columns: ModelColumns, *, typed: bool) -> Chunk:
    chunk = Chunk(offset, rows)
    for position, row in enumerate(rows):
        if row.fault:
            chunk.faults[position] = row.fault
            continue
        try:
            X = columns.values_of(row, typed=typed)
            y = [columns.target_of(row, typed=typed)] if columns.targets else []
            weights = [columns.weight_of(row, typed=typed)] if columns.weight and columns.targets else []
        except ValueFaultError as error:
            chunk.faults[position] = str(error)
            continue
        chunk.sent.append(position)
        chunk.X.append(X)
        chunk.y += y
        chunk.weights += weights
    return chunk


def send_good_rows(
    chunk: Chunk,
    source: RowFile,
    columns: ModelColumns,
    skip_bad: bool,
    send: Callable[[], dict[str, Any]],
) -> dict[str, Any] | None:
    """Send a chunk, without its bad rows if they may be skipped; return the answer, None if all rows are bad."""
    while True:
        if chunk.faults and not skip_bad:
            raise InvalidError(f"{place_of(source, chunk, min(chunk.faults))}.")
        if not chunk.sent:
            return None
        try:
            return send()
        except InvalidError as error:
            chunk.drop(faults_by_row(error, columns))


def faults_by_row(error: InvalidError, columns: ModelColumns) -> dict[int, str]:
    """Return the gateway's faults by row of the request; raise the error if it names no row."""
    found = {one.row: _detail(one, columns) for one in reversed(error.faults) if one.row is not None}
    if not found:
        raise error
    return found


def _detail(fault: Fault, columns: ModelColumns) -> str:
    column: Any = fault.column
    if isinstance(column, int) and column < len(columns.features):
        column = columns.features[column]
    elif column == "y" and columns.targets:
        column = columns.targets[0]
    elif column == "sample_weight":
        column = columns.weight
    return fault.detail if column is None else f"column {column!r}: {fault.detail}"


def place_of(source: RowFile, chunk: Chunk, position: int) -> str:
    """Return where a row with a fault is, and the fault."""
    return f"{source.name}, {chunk.rows[position].place}: {chunk.faults[position]}"
