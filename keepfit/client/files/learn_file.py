"""Learn the rows of a file through a gateway.

Owns the Idempotency-Key of each request: a digest of the model, the position in the file and the rows. Invariants:
requests are sent in the order of the file, each after the one before is learned or at least accepted; the same file
sent again, after an interruption or by mistake, is learned once; the caller knows how many of its rows are learned.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from keepfit.client.clients import Model
from keepfit.client.files.chunks import ROWS_MAX, Chunk, Report, chunks, place_of, send_good_rows
from keepfit.client.files.row_files import RowFile
from keepfit.client.files.row_values import ModelColumns
from keepfit.errors import InvalidError, KeepfitError, UnavailableError, from_name

KEY_DIGITS = 48


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


def learn_file(
    model: Model,
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
        As the calls of a client. All messages say how many rows were learned before.
    """
    learned = Learned() if learned is None else learned
    try:
        for chunk in chunks(source, columns, rows_max):

            def send(chunk: Chunk = chunk) -> dict[str, Any]:
                body = chunk.body()
                name = hashlib.sha256(msgspec.json.encode([model.hash, run, chunk.offset]) + body).hexdigest()
                return model.partial_fit_json(body, wait=wait, idempotency_key=f"file-{name[:KEY_DIGITS]}")

            answer = send_good_rows(chunk, source, columns, skip_bad, send)
            if answer is not None and wait:
                learned.version, learned.rows_seen = answer["version"], answer["rows_seen"]
            learned.rows += len(chunk.sent)
            learned.skipped += [place_of(source, chunk, position) for position in sorted(chunk.faults)]
            report(source.position, learned.rows)
    except InvalidError as error:
        raise InvalidError(_with_progress(error, learned.rows, wait), error.faults) from None
    except KeepfitError as error:
        raise from_name(type(error).__name__, _with_progress(error, learned.rows, wait)) from None
    if learned.rows_seen is not None:
        learned.repeated = max(0, learned.rows - (learned.rows_seen - rows_seen))
    return learned


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
