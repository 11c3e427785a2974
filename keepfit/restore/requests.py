"""What a restore is asked for, and what it returns.

Owns these dataclasses, which commands and workers use. Never restores anything; :mod:`keepfit.restore.restorer` does.
"""

from dataclasses import dataclass, field

from keepfit.errors import NotFoundError
from keepfit.history import Document
from keepfit.times import format_time


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """Which snapshot: the newest not later than `at` (seconds since 1970), the newest of a `version`, or of all."""

    at: float | None = None
    version: int | None = None

    @property
    def is_named(self) -> bool:
        """Whether a time or version is named, so that another snapshot than the newest may be requested."""
        return self.at is not None or self.version is not None

    def missing(self, model_hash: str) -> NotFoundError:
        """Return the error for a model that has no such snapshot."""
        return NotFoundError(f"The model {model_hash} has {self.describe_missing()}.")

    def describe_missing(self) -> str:
        """Return which snapshot does not exist: no snapshot of version 3 at or before 2026-11-20T12:00:00Z."""
        version = "" if self.version is None else f" of version {self.version}"
        return f"no snapshot{version}" + ("" if self.at is None else f" at or before {format_time(self.at)}")


NEWEST = RestoreRequest()


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """Result of a restore.

    `document` is None if the model was recreated from its recipe; `live` is True if the model was live and nothing was
    done. `corrupt` counts damaged snapshots that were skipped. `saved` is False if another state than the newest
    snapshot was restored and could not be saved yet. `replayed` counts the logged rows that were learned, `sequence` is
    the last request that the model has learned; `relearned` counts the retained requests from which a damaged live
    bundle was repaired, None if there was no repair.
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
    """Earlier state that a restore brought back: its snapshot's `document`, None if recreated from the recipe.

    `restored` is False if that state was live already; the other fields are as in :class:`RestoreResult`.
    """

    document: Document | None
    restored: bool
    corrupt: int = 0
    rows_forgotten: int = 0
    replayed: int = 0
    sequence: int = 0
