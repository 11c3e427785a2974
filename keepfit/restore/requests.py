"""What a restore is asked for, and what it answers.

Owns these forms, which commands, workers and gateways read. Never restores anything; :mod:`keepfit.restore.restorer`
does.
"""

from dataclasses import dataclass, field

from keepfit.errors import NotFoundError
from keepfit.history import Document


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """Which snapshot: the newest not later than `at` (seconds since 1970), the newest of a `version`, or of all."""

    at: float | None = None
    version: int | None = None

    @property
    def is_named(self) -> bool:
        """Tell whether another one than the newest may be meant."""
        return self.at is not None or self.version is not None

    def missing(self, model_hash: str) -> NotFoundError:
        """Make the error for a model that has no such snapshot."""
        if self.version is not None:
            return NotFoundError(f"The model {model_hash} has no snapshot of version {self.version} by then.")
        return NotFoundError(f"The model {model_hash} has no snapshot that old.")


NEWEST = RestoreRequest()


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did: `document` is None where the model began anew from its recipe; `live` where it was there.

    `saved` is False where something else than the newest snapshot was restored, and could not be made that yet.
    `replayed` is how many logged rows were learned again, `sequence` the last request that the model has learned then;
    `relearned` the requests that a broken live bundle learned again, None where it was none.
    """

    hash: str
    document: Document | None
    live: bool
    corrupt: int
    saved: bool = field(default=True, compare=False)
    replayed: int = 0
    sequence: int = field(default=0, compare=False)
    relearned: int | None = None


@dataclass(frozen=True, slots=True)
class PreviousState:
    """What was put back: a snapshot's `document`, None where the model began anew.

    `restored` is False where just that was live already; the others are as of :class:`RestoreResult`.
    """

    document: Document | None
    restored: bool
    corrupt: int = 0
    rows_forgotten: int = 0
    replayed: int = 0
    sequence: int = 0
