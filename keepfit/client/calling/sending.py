"""Calls with rows: learning, predicting and scoring, in as many requests as their size needs.

Owns where rows are divided and the keys of the requests. Never sends two requests of a call at a time: rows are learned
in their order. Invariant: where rows are divided, and the keys of the parts, depend on the rows and the key of the call
alone, so that a call that is repeated with its key learns nothing twice.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from keepfit.client.calling import calls
from keepfit.client.calling.calls import Calls
from keepfit.client.rows import bodies
from keepfit.client.rows.bodies import Encoded
from keepfit.client.rows.targets import Data
from keepfit.client.transport.address import target as target_of
from keepfit.client.transport.exchange import Flow, Pause, Report, Request, StreamedBody
from keepfit.errors import InvalidError, KeepfitError, MalformedError, TooLargeError, UnavailableError

# Rows of a request, as float64 numbers and text: the gateway takes 500 MiB.
CALL_BYTES_MAX = 500_000_000
# Rows of a prediction: its answer has at most 1,048,576 numbers and labels.
PREDICTED_ROWS_MAX = 1 << 18
# The longest that a gateway waits for rows to be learned before it answers 202.
WAIT_S_MAX = 60
# A longer body is not sent again just to ask whether its rows are learned.
RESENT_BYTES_MAX = 1 << 20
LOOK_EVERY_S = 1.0
# Rows that were accepted are waited for so long, if the call waits until they are learned.
LEARNED_S_MAX = 600.0
OK = 200


@dataclass(slots=True)
class Learning:
    """How rows are learned: until when the call waits, under which key, and how it reports its progress."""

    target: str
    wait: float | bool = False
    key: str = field(default_factory=calls.new_key)
    timeout_s: float | None = None
    report: Report | None = None


def learn(shared: Calls, data: Data, how: Learning) -> Flow[dict[str, Any]]:
    """Send rows to learn; return the answer to the last request, with the number of all rows in ``accepted``."""
    if not data.rows:
        raise InvalidError("There are no rows.")
    total = 0
    last: dict[str, Any] = {}

    def send(first: int, end: int) -> Flow[dict[str, Any]]:
        key = how.key if end - first == data.rows else f"{how.key}-{first}"
        encoded = bodies.encode(data, first, end, shared.forms, {}, how.report)
        size = (end - first) * data.table.row_bytes
        return learn_encoded(shared, how, encoded, key, size)

    parts = _parts(shared, data, _rows_max(data), send)
    try:
        while (answer := (yield from _next(parts))) is not None:
            last, total = answer, total + answer["accepted"]
    except KeepfitError as error:
        if total:
            message = f"{str(error).rstrip('.')}. {total} rows of the call before that are accepted."
            error.args = (message,)
            if isinstance(error, UnavailableError):
                error.public_message = message
        raise
    return {**last, "accepted": total}


def learn_encoded(
    shared: Calls, how: Learning, encoded: Encoded, key: str, size_bytes: float = 0
) -> Flow[dict[str, Any]]:
    """Send one request that is learned under a key, and wait as the call says."""
    fields = {"Idempotency-Key": key}
    wait_s = WAIT_S_MAX if how.wait is True else float(how.wait)
    if wait_s > 0:
        fields["Prefer"] = prefer_of(wait_s)
    request = Request("POST", how.target, encoded.body, calls.fields_of(encoded, fields))
    end, patience_s = time.monotonic() + LEARNED_S_MAX, float(WAIT_S_MAX)
    while True:
        deadline = shared.deadline(how.timeout_s, size_bytes) + wait_s
        response = yield from shared.send(request, deadline)
        answer: dict[str, Any] = shared.decode(response)
        # The same key again waits for the same rows.
        if response.status == OK or how.wait is not True:
            return answer
        if size_of(encoded.body) > RESENT_BYTES_MAX:
            yield from _until_learned(shared, how.target, patience_s)
            patience_s *= 2
        if time.monotonic() > end:
            raise UnavailableError(
                f"Rows that were accepted are not learned after {LEARNED_S_MAX:g} s; they will be learned once "
                "workers can: see `keepfit status`."
            )


def size_of(body: "bytes | StreamedBody") -> float:
    """Return the bytes of a body; infinite if only its end will show them."""
    if isinstance(body, bytes):
        return len(body)
    return math.inf if body.size is None else body.size


def _until_learned(shared: Calls, target: str, seconds: float) -> Flow[None]:
    """Ask, for so long at most, until the model has no pending rows: cheaper than to send a long body again."""
    path = target.partition("?")[0].rpartition("/")[0]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            _, model = yield from shared.json("GET", path)
        except KeepfitError:
            # The key may not read, or the gateway is away: the request itself will say.
            return
        if not model["inbox"]:
            return
        yield Pause(LOOK_EVERY_S)


def prefer_of(wait_s: float) -> str:
    """Return the field `Prefer` of a call that may wait; it has whole seconds (RFC 7240).

    >>> prefer_of(0.5), prefer_of(1e6)
    ('wait=1', 'wait=60')
    """
    return f"wait={math.ceil(min(wait_s, WAIT_S_MAX))}"


@dataclass(slots=True)
class Question:
    """What is asked about rows: the path with its query, fields that only JSON has, and limits."""

    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    report: Report | None = None


def ask(shared: Calls, data: Data, question: Question, rows_max: int | None = None) -> Flow[list[dict[str, Any]]]:
    """Send rows that are not learned; return the answers to the parts. Without `rows_max` they are one part."""
    if not data.rows:
        raise InvalidError("There are no rows.")

    def send(first: int, end: int) -> Flow[dict[str, Any]]:
        encoded = bodies.encode(data, first, end, shared.forms, question.more, question.report)
        request = Request("POST", target_of(question.path, **question.query), encoded.body, calls.fields_of(encoded))
        size = (end - first) * data.table.row_bytes
        return shared.predict(request, shared.deadline(question.timeout_s, size))

    if rows_max is None:
        answer = yield from _in_json_if_refused(shared, send, 0, data.rows)
        return [answer]
    parts = _parts(shared, data, min(rows_max, _rows_max(data)), send)
    answers = []
    while (found := (yield from _next(parts))) is not None:
        answers.append(found)
    return answers


Sender = Callable[[int, int], Flow[dict[str, Any]]]


class _Parts:
    """The parts of rows that are not sent yet, first and last row of each."""

    def __init__(self, shared: Calls, waiting: list[tuple[int, int]], send: Sender) -> None:
        self.shared, self.waiting, self.send = shared, waiting, send


def _parts(shared: Calls, data: Data, rows_max: int, send: Sender) -> _Parts:
    count = -(-data.rows // rows_max)
    # Parts of equal size.
    step = -(-data.rows // count)
    return _Parts(shared, [(first, min(first + step, data.rows)) for first in range(0, data.rows, step)], send)


def _next(parts: _Parts) -> Flow[dict[str, Any] | None]:
    """Send the next part and return its answer, None after the last. A part that is too large is halved."""
    while parts.waiting:
        first, end = parts.waiting[0]
        try:
            answer = yield from _in_json_if_refused(parts.shared, parts.send, first, end)
        except TooLargeError:
            if end - first == 1:
                raise
            middle = (first + end + 1) // 2
            parts.waiting[:1] = [(first, middle), (middle, end)]
        except InvalidError as error:
            if first:
                _count_from(error, first)
            raise
        else:
            del parts.waiting[0]
            return answer
    return None


def _count_from(error: InvalidError, first: int) -> None:
    """Name the rows of an error of a part as the caller counts them."""
    error.faults = tuple(
        fault if fault.row is None else replace(fault, row=fault.row + first) for fault in error.faults
    )
    error.args = (f"{str(error).rstrip('.')}. Rows of this message count from row {first} of the call.",)


def _in_json_if_refused(shared: Calls, send: Sender, first: int, end: int) -> Flow[dict[str, Any]]:
    """Send rows; again as JSON if the gateway has no pyarrow to read Arrow."""
    try:
        return (yield from send(first, end))
    except MalformedError as error:
        if not shared.forms.arrow or "pyarrow" not in str(error):
            raise
        shared.forms.arrow = False
        return (yield from send(first, end))


def _rows_max(data: Data) -> int:
    """Return how many rows a request may have."""
    row_bytes = data.table.row_bytes + 8 * ((data.y is not None) + (data.weights is not None))
    return max(1, int(CALL_BYTES_MAX / max(1.0, row_bytes)))
