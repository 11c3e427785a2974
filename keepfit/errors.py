"""The error tree of keepfit, free of HTTP. The gateway maps each class to a status; a test proves that all are mapped.

::

    KeepfitError
    ├── SettingsError                a setting is missing or its value is not usable
    ├── MalformedError               wrong form: not JSON, or a document of the wrong shape
    ├── InvalidError                 right form, wrong content; names row and column
    ├── TooLargeError                an answer, rows of a request, or another value that is larger than may be sent
    ├── UnauthorizedError            the API key is missing or unknown
    ├── ForbiddenError               the API key lacks the required scope
    │   └── ForeignOriginError       a web page of another site would change something
    ├── NotFoundError                the model does not exist
    ├── ConflictError                the model exists with another recipe
    │   └── NotConfirmedError        live models would lose what they have learned, and the caller has not confirmed it
    ├── IdempotencyError             the same Idempotency-Key with another body
    ├── OverloadedError              a limit is reached; says when to retry
    │   ├── InboxFullError           … of pending requests in this model's inbox
    │   ├── OpenRowsFullError        … of rows that wait for their labels
    │   ├── QueueFullError           … of worker requests in the predict queue
    │   ├── QuotaError               … of what this API key may write to the history in a day
    │   └── RateLimitError           … of requests with this API key
    ├── StaleModelError              the model was deleted, created again or restored; look it up again
    ├── LearningError                an accepted request could not be learned and is a dead letter
    │   └── UnstorableError          … because the resulting model cannot be stored
    ├── PoisonError                  a worker request during which several workers died
    ├── DeadlineError                no answer before the deadline
    ├── UnavailableError             Redis, MongoDB, the storage or the workers are unavailable
    │   └── CorruptLogError          an object of the row log is damaged
    ├── ScorerError                  the bytes are not a scorer of the model, or the model cannot have one
    └── EnvelopeError                the bytes are not an envelope that one of our keys signed
        ├── CorruptBundleError       a live bundle is damaged or missing
        │   └── MissingRequestsError … and requests that its repair needs are missing
        ├── UnloadableError          workers died while they loaded the bundle
        ├── UnknownKeyError          signed with a key that this process does not have
        └── RuntimeMismatchError     pickled with another version of Python, scikit-learn or numpy
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

# Messages of other libraries' errors are cut to this length.
DESCRIPTION_LENGTH_MAX = 1 << 9


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong value: `row` counts from 0, `column` is a feature's name or position."""

    detail: str
    row: int | None = None
    column: str | int | None = None


class KeepfitError(Exception):
    """Base of all errors that keepfit raises on purpose. The message is one clear sentence for a user."""


class SettingsError(KeepfitError):
    """A setting is missing or its value is not usable."""


class MalformedError(KeepfitError):
    """The input does not have the required form."""


class InvalidError(KeepfitError):
    """The input has the right form and wrong content. `faults` says where."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class TooLargeError(KeepfitError):
    """Rows of a request, an answer, or another value, would be too large. The message says how many rows fit."""


class UnauthorizedError(KeepfitError):
    """The API key is missing or unknown."""


class ForbiddenError(KeepfitError):
    """The API key lacks the required scope."""


class ForeignOriginError(ForbiddenError):
    """A web page of another site may not change anything here."""


class NotFoundError(KeepfitError):
    """The model does not exist."""


class ConflictError(KeepfitError):
    """The model exists with another recipe."""


class NotConfirmedError(ConflictError):
    """Live models would lose what they have learned, and the caller has not confirmed it."""


class IdempotencyError(KeepfitError):
    """An idempotency key was used again with another body."""


class OverloadedError(KeepfitError):
    """A limit is reached. Retry after `retry_after_s` (whole seconds)."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InboxFullError(OverloadedError):
    """The model's inbox is full."""


class OpenRowsFullError(OverloadedError):
    """No more rows can be kept until their labels come."""


class QueueFullError(OverloadedError):
    """The predict queue is full."""


class QuotaError(OverloadedError):
    """The API key has written all to the history that it may write in a day."""


class RateLimitError(OverloadedError):
    """The API key has exceeded its rate limit."""


class StaleModelError(KeepfitError):
    """The caller refers to a generation of the model that is no longer the live one."""


class LearningError(KeepfitError):
    """An accepted request could not be learned and is a dead letter."""


class UnstorableError(LearningError):
    """The resulting model cannot be stored: it holds a value that cannot be pickled, or is too large."""


class PoisonError(KeepfitError):
    """Several workers died while they processed this worker request, so it was put aside."""


class DeadlineError(KeepfitError):
    """No answer arrived before the deadline."""


class UnavailableError(KeepfitError):
    """A required dependency is unavailable. Retry later.

    The message is for logs, commands and administrators. A message that names an address, a path, a hash or an account
    has a `public_message` without them, which any client may read.
    """

    def __init__(self, message: str, public_message: str = "") -> None:
        super().__init__(message)
        self.public_message = public_message or message


class CorruptLogError(UnavailableError):
    """An object of the row log is damaged. An operator must decide how to proceed."""


class ScorerError(KeepfitError):
    """The bytes are not a scorer of the model, or the model cannot have one: a worker computes its predictions."""


class EnvelopeError(KeepfitError):
    """The bytes are not an envelope that one of our keys signed, or not the expected one."""


class CorruptBundleError(EnvelopeError):
    """The live bundle is not the one that was committed: it is damaged, or missing in Redis."""


class MissingRequestsError(CorruptBundleError):
    """The live bundle is damaged, and requests that its repair needs are missing."""


class UnloadableError(EnvelopeError):
    """Several workers, or the process that replays requests, died or hung while they loaded the bundle."""


class UnknownKeyError(EnvelopeError):
    """The envelope is signed with a key that this process does not have."""


class RuntimeMismatchError(EnvelopeError):
    """The payload was pickled with library versions that this process cannot load safely."""


E = TypeVar("E", bound=BaseException)


def without_frames(error: E) -> E:
    """Return the error without its tracebacks, and those of its causes, for an error that is stored or was logged.

    A traceback holds the frames that the error passed, with all their variables: rows of many megabytes, and often the
    error itself, which makes a cycle that only a garbage collection ends.
    """
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        found.__traceback__ = None
        found = found.__cause__ or found.__context__
    return error


def describe_error(error: BaseException) -> str:
    """Return class and message of another library's error, the message cut to :data:`DESCRIPTION_LENGTH_MAX`."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an error whose str() fails is still an error
        message = ""
    return f"{type(error).__name__}: {message[:DESCRIPTION_LENGTH_MAX]}"


def public_message_of(error: KeepfitError) -> str:
    """Return what any client may read about an error: its message, of an UnavailableError the public one."""
    return error.public_message if isinstance(error, UnavailableError) else str(error)


def from_name(name: str, message: str, public_message: str = "") -> KeepfitError:
    """Return the error of class `name` that another process reported; a plain KeepfitError if there is no such class.

    `public_message` is that of an UnavailableError; without it, its message is not for every client.

    >>> from_name("NotFoundError", "There is no such model.")
    NotFoundError('There is no such model.')
    >>> from_name("ValueError", "no class of keepfit")
    KeepfitError('no class of keepfit')
    """
    cls = globals().get(name)
    error = cls(message) if isinstance(cls, type) and issubclass(cls, KeepfitError) else KeepfitError(message)
    if isinstance(error, UnavailableError):
        error.public_message = public_message or "A dependency of the service is unavailable."
    return error
