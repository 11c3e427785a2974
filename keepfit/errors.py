"""The one tree of errors, free of HTTP; the gateway maps each class to an answer, and a test proves it maps all.

::

    KeepfitError
    ├── SettingsError                an environment variable has no usable value
    ├── MalformedError               not the form asked for (not JSON, wrong shape of the document)
    ├── InvalidError                 right form, wrong content; says which row and column
    ├── UnauthorizedError            no API key, or one that is not known
    ├── ForbiddenError               an API key without the scope that is needed
    ├── NotFoundError                no such model
    ├── ConflictError                the model exists with another recipe
    │   └── NotConfirmedError        live models would go back behind what they have learned, and nobody said so
    ├── IdempotencyError             the same Idempotency-Key with another body
    ├── OverloadedError              too much waits or comes; says when to come again
    │   ├── InboxFullError           … to be learned by this model
    │   ├── QueueFullError           … to be answered
    │   └── RateLimitError           … with this API key
    ├── StaleModelError              the model was deleted, made again or restored meanwhile; look it up again
    ├── LearningError                an accepted row could not be learned and was put aside
    │   └── UnstorableError          … because what it makes of the model has no pickle
    ├── PoisonError                  a question that several workers died of
    ├── DeadlineError                not answered in time
    ├── UnavailableError             Redis, MongoDB, the storage or the workers are away
    │   └── CorruptLogError          part of the row log is not as it was written
    └── EnvelopeError                bytes that are not a bundle we signed
        ├── CorruptBundleError       a live bundle that is damaged or gone
        │   └── MissingRequestsError … and cannot be made again from a snapshot and what was learned since
        ├── UnknownKeyError          signed with a key that this process does not have
        └── RuntimeMismatchError a bundle of another Python, scikit-learn or numpy
"""

from collections.abc import Sequence
from dataclasses import dataclass

# What is kept of the words of somebody else's error.
DESCRIPTION_LENGTH_MAX = 1 << 9


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong value: `row` counts from 0, `column` is a feature's name or position."""

    detail: str
    row: int | None = None
    column: str | int | None = None


class KeepfitError(Exception):
    """Base of everything keepfit raises on purpose; the message is one clear sentence for a user."""


class SettingsError(KeepfitError):
    """A setting is missing or unusable."""


class MalformedError(KeepfitError):
    """The input does not have the form that was asked for."""


class InvalidError(KeepfitError):
    """The input has the right form and wrong content; `faults` says where."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class UnauthorizedError(KeepfitError):
    """The request has no API key, or one that is not known."""


class ForbiddenError(KeepfitError):
    """The request's API key has not the scope that is needed."""


class NotFoundError(KeepfitError):
    """There is no such model."""


class ConflictError(KeepfitError):
    """The model exists with another recipe."""


class NotConfirmedError(ConflictError):
    """Live models would go back behind what they have learned, and nobody has agreed to that."""


class IdempotencyError(KeepfitError):
    """An idempotency key came again with another body."""


class OverloadedError(KeepfitError):
    """As much waits as may; `retry_after_s` (whole seconds) is a sensible wait."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InboxFullError(OverloadedError):
    """The model's inbox holds as much as it may."""


class QueueFullError(OverloadedError):
    """The predict room holds as much as it may."""


class RateLimitError(OverloadedError):
    """More requests came with an API key than it may make."""


class StaleModelError(KeepfitError):
    """The caller's knowledge of the model is out of date."""


class LearningError(KeepfitError):
    """An accepted request could not be learned and was put aside."""


class UnstorableError(LearningError):
    """An object holds what cannot be pickled."""


class PoisonError(KeepfitError):
    """Several workers died while they answered this question, so it was put aside."""


class DeadlineError(KeepfitError):
    """No answer came in time."""


class UnavailableError(KeepfitError):
    """A part that is needed is away; trying again later is right."""


class CorruptLogError(UnavailableError):
    """An object in the row log is not as it was written; somebody has to decide what is to be done about it."""


class EnvelopeError(KeepfitError):
    """The bytes are not a bundle that one of our keys signed, or not the one expected."""


class CorruptBundleError(EnvelopeError):
    """The live bundle is not what was committed: damaged, or gone from Redis."""


class MissingRequestsError(CorruptBundleError):
    """The live bundle is broken, and what would make it again is not all there."""


class UnknownKeyError(EnvelopeError):
    """The bundle is signed with a key that KEEPFIT_SIGNING_KEYS does not hold here."""


class RuntimeMismatchError(EnvelopeError):
    """The bundle was pickled by versions that this process cannot load safely."""


def describe_error(error: BaseException) -> str:
    """Class and words of an error of somebody else's code."""
    try:
        words = str(error)
    except Exception:  # noqa: BLE001 - an error whose words fail is still an error
        words = ""
    return f"{type(error).__name__}: {words[:DESCRIPTION_LENGTH_MAX]}"


def from_name(name: str, message: str) -> KeepfitError:
    """Return the error of class `name` that another process reported; a plain KeepfitError if there is no such class.

    >>> from_name("NotFoundError", "There is no such model.")
    NotFoundError('There is no such model.')
    >>> from_name("ValueError", "no class of keepfit")
    KeepfitError('no class of keepfit')
    """
    cls = globals().get(name)
    return cls(message) if isinstance(cls, type) and issubclass(cls, KeepfitError) else KeepfitError(message)
