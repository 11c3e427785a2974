"""Files of rows through a gateway: learn them, or predict them.

Owns the division of a file into requests, and the Idempotency-Key of each: a digest of the model, the position in the
file and the rows. Invariants: requests are sent in the order of the file, each after the one before is learned or at
least accepted; the same file sent again, after an interruption or by mistake, is learned once; a request with a bad row
is not sent, so that the caller knows how many rows of the file are learned.
"""

import hashlib
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from keepfit.client.gateway import Gateway
from keepfit.client.row_files import FileRow, RowFile
from keepfit.client.row_values import ModelColumns, ValueFaultError
from keepfit.client.row_writer import RowWriter
from keepfit.errors import Fault, InvalidError, KeepfitError, TooLargeError, UnavailableError, from_name

ROWS_MAX = 1000
# A request ends early after this many characters, so that rows of long texts stay below the limits of a gateway.
CHARACTERS_MAX = 4 * 2**20
KEY_DIGITS = 48

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


@dataclass(slots=True)
class Learned:
    """The result of learning a file: rows of the file that are learned, those of them that an earlier run had sent.

    `skipped` are the places and faults of rows that were left out. `version` and `rows_seen` are the model's; None if
    nothing was sent, or without waiting.
    """

    rows: int = 0
    repeated: int = 0
    skipped: list[str] = field(default_factory=list)
    version: int | None = None
    rows_seen: int | None = None


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


async def learn_file(
    gateway: Gateway,
    model_hash: str,
    source: RowFile,
    columns: ModelColumns,
    *,
    rows_seen: int,
    run: str = "",
    rows_max: int = ROWS_MAX,
    wait: bool = True,
    skip_bad: bool = False,
    report: Report = lambda position, rows: None,
    learned: Learned | None = None,
) -> Learned:
    """Learn the rows of a file in order.

    Parameters
    ----------
    rows_seen : rows that the model has learned before
    run : name of this run; the same file is learned once in each run
    wait : whether to wait for each request until it is learned, instead of until it is accepted
    skip_bad : whether to leave out bad rows instead of stopping
    learned : the result, brought up to date after each request, for a caller that may be interrupted

    Raises
    ------
    InvalidError
        For a bad row, with its place, column and fault; nothing of its request is learned.
    KeepfitError
        As :meth:`~keepfit.client.gateway.Gateway.partial_fit`. All messages say how many rows were learned before.
    """
    learned = Learned() if learned is None else learned
    try:
        for chunk in chunks(source, columns, rows_max):

            async def send(chunk: Chunk = chunk) -> dict[str, Any]:
                body = chunk.body()
                name = hashlib.sha256(msgspec.json.encode([model_hash, run, chunk.offset]) + body).hexdigest()
                return await gateway.partial_fit(model_hash, body, f"file-{name[:KEY_DIGITS]}", wait=wait)

            answer = await _send_good_rows(chunk, source, columns, skip_bad, send)
            if answer is not None and wait:
                learned.version, learned.rows_seen = answer["version"], answer["rows_seen"]
            learned.rows += len(chunk.sent)
            learned.skipped += [_place(source, chunk, position) for position in sorted(chunk.faults)]
            report(source.position, learned.rows)
    except InvalidError as error:
        raise InvalidError(_with_progress(error, learned.rows, wait), error.faults) from None
    except KeepfitError as error:
        raise from_name(type(error).__name__, _with_progress(error, learned.rows, wait)) from None
    if learned.rows_seen is not None:
        learned.repeated = max(0, learned.rows - (learned.rows_seen - rows_seen))
    return learned


async def _send_good_rows(
    chunk: Chunk,
    source: RowFile,
    columns: ModelColumns,
    skip_bad: bool,
    send: Callable[[], Awaitable[dict[str, Any]]],
) -> dict[str, Any] | None:
    """Send a chunk, without its bad rows if they may be skipped; return the answer, None if all rows are bad."""
    while True:
        if chunk.faults and not skip_bad:
            raise InvalidError(f"{_place(source, chunk, min(chunk.faults))}.")
        if not chunk.sent:
            return None
        try:
            return await send()
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


def _place(source: RowFile, chunk: Chunk, position: int) -> str:
    return f"{source.name}, {chunk.rows[position].place}: {chunk.faults[position]}"


def _with_progress(error: KeepfitError, rows: int, wait: bool) -> str:
    """Return the message of an error with how much of the file this run had learned."""
    done = "learned" if wait else "accepted"
    before = f"{rows} rows before that are {done}" if rows else f"This run has {done} nothing before that"
    after = ", and nothing after them" if rows else ""
    if isinstance(error, UnavailableError):
        # An answer may be lost on its way, or not come in time.
        after = "; rows of the request may be accepted"
    again = "; send the file again to continue" if rows or isinstance(error, UnavailableError) else ""
    return f"{str(error).rstrip('.')}. {before}{after}{again}."


async def predict_file(
    gateway: Gateway,
    model_hash: str,
    source: RowFile,
    columns: ModelColumns,
    writer: RowWriter,
    *,
    name: str = "prediction",
    proba: bool = False,
    only: bool = False,
    rows_max: int = ROWS_MAX,
    skip_bad: bool = False,
    report: Report = lambda position, rows: None,
) -> list[str]:
    """Predict the rows of a file and write each with its prediction; return the places and faults of bad rows.

    Parameters
    ----------
    name : column of the predictions; the others are ``<name>_<class>`` and, for outlier detectors, ``<name>_score``
    proba : whether to write probabilities, or anomaly scores, as well
    only : whether to leave out the columns of the file
    skip_bad : whether to write bad rows without a prediction instead of stopping

    Requests whose answers are too large are divided.

    Raises
    ------
    InvalidError
        For a bad row, or if the file has a column of the predictions' name.
    KeepfitError
        As :meth:`~keepfit.client.gateway.Gateway.predict`.
    """
    skipped: list[str] = []
    done = 0
    empty: dict[str, Any] = {name: None}
    if not only:
        writer.expect(source.columns or ())

    async def answer_to(chunk: Chunk) -> dict[str, Any] | None:
        async def send() -> dict[str, Any]:
            return await gateway.predict(model_hash, chunk.body(proba=proba))

        return await _send_good_rows(chunk, source, columns, skip_bad, send)

    async for chunk, answer in _answers(chunks(source, columns, rows_max), answer_to):
        numbers = {position: number for number, position in enumerate(chunk.sent)}
        for position, row in enumerate(chunk.rows):
            has_answer = answer is not None and position in numbers
            result = _prediction(answer, numbers[position], name) if answer and has_answer else empty
            empty = dict.fromkeys(result)
            written = {} if only else _whole(row, source)
            # The class of one row may have the name of a column that only another row has.
            taken = writer.expect(written, result)
            if taken is not None:
                raise InvalidError(f"{source.name} has a column {taken!r} already; name another one with --column.")
            writer.write(written, result)
        skipped += [_place(source, chunk, position) for position in sorted(chunk.faults)]
        done += len(chunk.sent)
        report(source.position, done)
    if not done and not skipped:
        writer.expect((), (name,))
    return skipped


async def _answers(
    found: Iterable[Chunk], answer_to: Callable[[Chunk], Awaitable[dict[str, Any] | None]]
) -> AsyncIterator[tuple[Chunk, dict[str, Any] | None]]:
    """Yield each chunk with its answer; chunks are divided into halves until their answers are not too large."""
    fits = None
    for whole in found:
        waiting = [whole]
        while waiting:
            chunk = waiting.pop(0)
            if fits is not None and len(chunk.rows) > fits:
                waiting[:0] = chunk.divide(fits)
                continue
            try:
                answer = await answer_to(chunk)
            except TooLargeError:
                if len(chunk.rows) == 1:
                    raise
                fits = (len(chunk.rows) + 1) // 2
                waiting.insert(0, chunk)
            else:
                yield chunk, answer


def _whole(row: FileRow, source: RowFile) -> dict[str, Any]:
    """Return the values of a row, empty ones for a line that is not a row."""
    return row.values or dict.fromkeys(source.columns or ())


def _prediction(answer: dict[str, Any], number: int, name: str) -> dict[str, Any]:
    """Return the columns of one prediction.

    >>> _prediction({"predictions": ["a"], "probabilities": [[0.9, 0.1]], "classes": ["a", "b"]}, 0, "p")
    {'p': 'a', 'p_a': 0.9, 'p_b': 0.1}
    """
    found: dict[str, Any] = {}
    value = answer["predictions"][number]
    if isinstance(value, list):
        found = {f"{name}_{output}": one for output, one in enumerate(value, 1)}
    else:
        found[name] = value
    if answer.get("scores") is not None:
        found[f"{name}_score"] = answer["scores"][number]
    if answer.get("probabilities") is not None:
        classes: Sequence[Any] = answer.get("classes") or ()
        probabilities = answer["probabilities"][number]
        if any(isinstance(one, list) for one in classes):
            pairs = [(f"{o}_{c}", p) for o, (cs, ps) in enumerate(zip(classes, probabilities, strict=True), 1)
                     for c, p in zip(cs, ps, strict=True)]  # fmt: skip
        else:
            pairs = [(str(c), p) for c, p in zip(classes, probabilities, strict=True)]
        found |= {f"{name}_{label}": probability for label, probability in pairs}
    return found
