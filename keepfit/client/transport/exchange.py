"""What the calls of the client ask its connections to do, as data: requests, pauses, and how an exchange can fail.

Pure. A call is a generator (:data:`Flow`) that yields steps and is sent their results, so it is written once, and the
blocking client and the asyncio client perform its steps each in their way. Invariant: a request can be sent again: its
body yields the same bytes each time it is iterated over.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
# A body is sent in pieces of about this size.
PIECE_BYTES = 1 << 20
# A connection that was idle for longer is not used again: load balancers and firewalls forget it without a word.
IDLE_S_MAX = 30.0


class StreamedBody(Protocol):
    """A body that is encoded while it is sent; `size` is its length in bytes, None if only its end will show it."""

    size: int | None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield the pieces of the body, from its beginning."""
        ...


@dataclass(slots=True)
class Request:
    """A request: `target` is the path with its query, `fields` are lines of the head besides those of every request.

    `is_repeatable` says whether the gateway may get it twice, because it changes nothing, or because an Idempotency-Key
    names it.
    """

    method: str
    target: str
    body: "bytes | StreamedBody | None" = None
    fields: bytes = b""
    is_repeatable: bool = True


@dataclass(slots=True)
class Send:
    """Step: send a request, and read its answer until `deadline` (of :func:`time.monotonic`). Result: the response."""

    request: Request
    deadline: float


@dataclass(slots=True)
class Pause:
    """Step: wait for so many seconds."""

    seconds: float


@dataclass(slots=True)
class Ask:
    """Step: predict a few rows, if possible in one request with others. Result: the answer.

    `rows` is a JSON list of `count` rows. Questions with the same `target` and `options` (further fields of the
    body, each with a comma before it) may be joined.
    """

    target: str
    options: bytes
    rows: bytes
    count: int
    timeout_s: float


Step: TypeAlias = Send | Pause | Ask
Flow: TypeAlias = Generator[Step, Any, T]
# Called with the part that is done and the whole; 0 if it is not known.
Report: TypeAlias = Callable[[int, int], None]


class ExchangeError(Exception):
    """There is no answer to a request. `is_unsent` says that the gateway cannot have processed it."""

    is_unsent = False


class NotConnectedError(ExchangeError):
    """There is no connection to the gateway."""

    is_unsent = True


class LostError(ExchangeError):
    """The connection ended before the answer, or the answer is not HTTP."""


class LateError(ExchangeError):
    """The deadline passed."""


def left_s(deadline: float) -> float:
    """Return the seconds until a deadline; raises :class:`LateError` if there is none left."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise LateError("the time is over")
    return left
