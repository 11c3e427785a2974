"""The error tree of keepfit, free of HTTP. The gateway maps each class to a status; a test proves that all are mapped.

::

    KeepfitError
    ├── SettingsError                a setting is missing or its value is not usable
    ├── MalformedError               wrong form: not JSON, or a document of the wrong shape
    ├── InvalidError                 right form, wrong content; names row and column
    ├── UnauthorizedError            the API key is missing or unknown
    ├── ForbiddenError               the API key lacks the required scope
    ├── NotFoundError                the model does not exist
    ├── ConflictError                the model exists with another recipe
    │   └── NotConfirmedError        live models would lose what they have learned, and the caller has not confirmed it
    ├── IdempotencyError             the same Idempotency-Key with another body
    ├── OverloadedError              a limit is reached; says when to retry
    │   ├── InboxFullError           … of pending requests in this model's inbox
    │   ├── QueueFullError           … of worker requests in the predict queue
    │   └── RateLimitError           … of requests with this API key
    ├── StaleModelError              the model was deleted, created again or restored; look it up again
    ├── LearningError                an accepted request could not be learned and is a dead letter
    │   └── UnstorableError          … because the resulting model cannot be pickled
    ├── PoisonError                  a worker request during which several workers died
    ├── DeadlineError                no answer before the deadline
    ├── UnavailableError             Redis, MongoDB, the storage or the workers are unavailable
    │   └── CorruptLogError          an object of the row log is damaged
    └── EnvelopeError                the bytes are not an envelope that one of our keys signed
        ├── CorruptBundleError       a live bundle is damaged or missing
        │   └── MissingRequestsError … and requests that its repair needs are missing
        ├── UnknownKeyError          signed with a key that this process does not have
        └── RuntimeMismatchError     pickled with another version of Python, scikit-learn or numpy
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


class UnauthorizedError(KeepfitError):
    """The API key is missing or unknown."""


class ForbiddenError(KeepfitError):
    """The API key lacks the required scope."""


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


class QueueFullError(OverloadedError):
    """The predict queue is full."""


class RateLimitError(OverloadedError):
    """The API key has exceeded its rate limit."""


class StaleModelError(KeepfitError):
    """The caller refers to a generation of the model that is no longer the live one."""


class LearningError(KeepfitError):
    """An accepted request could not be learned and is a dead letter."""


class UnstorableError(LearningError):
    """An object holds a value that cannot be pickled."""


class PoisonError(KeepfitError):
    """Several workers died while they processed this worker request, so it was put aside."""


class DeadlineError(KeepfitError):
    """No answer arrived before the deadline."""


class UnavailableError(KeepfitError):
    """A required dependency is unavailable. Retry later."""


class CorruptLogError(UnavailableError):
    """An object of the row log is damaged. An operator must decide how to proceed."""


class EnvelopeError(KeepfitError):
    """The bytes are not an envelope that one of our keys signed, or not the expected one."""


class CorruptBundleError(EnvelopeError):
    """The live bundle is not the one that was committed: it is damaged, or missing in Redis."""


class MissingRequestsError(CorruptBundleError):
    """The live bundle is damaged, and requests that its repair needs are missing."""


class UnknownKeyError(EnvelopeError):
    """The envelope is signed with a key that this process does not have."""


class RuntimeMismatchError(EnvelopeError):
    """The payload was pickled with library versions that this process cannot load safely."""


def describe_error(error: BaseException) -> str:
    """Return class and message of another library's error, the message cut to :data:`DESCRIPTION_LENGTH_MAX`."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - an error whose str() fails is still an error
        message = ""
    return f"{type(error).__name__}: {message[:DESCRIPTION_LENGTH_MAX]}"


def from_name(name: str, message: str) -> KeepfitError:
    """Return the error of class `name` that another process reported; a plain KeepfitError if there is no such class.

    >>> from_name("NotFoundError", "There is no such model.")
    NotFoundError('There is no such model.')
    >>> from_name("ValueError", "no class of keepfit")
    KeepfitError('no class of keepfit')
    """
    cls = globals().get(name)
    return cls(message) if isinstance(cls, type) and issubclass(cls, KeepfitError) else KeepfitError(message)
