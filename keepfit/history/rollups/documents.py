"""Documents of roll-ups: what one is declared as, and the form in which its documents are stored.

Pure. Invariants: time, field and group identify a roll-up's document, so that rolling up the same interval twice,
concurrently or later, results in one document; what it shows to users is under ``document``, what merging needs besides
is not.

A document's `base` is the summary of documents of its interval that have expired, up to an expiry's number: what it
shows is the base merged with the documents that there are.
"""

from dataclasses import dataclass

from keepfit import times
from keepfit.conditions import Scalar
from keepfit.errors import InvalidError
from keepfit.history.documents import document_id, to_stored
from keepfit.history.mongo import Document
from keepfit.history.queries.sources import check_field
from keepfit.history.rollups.summaries import STATS, Summary


@dataclass(frozen=True, slots=True)
class Rollup:
    """Aggregate documents of `type` to one document of type ``TYPE/EVERY`` per interval `every` and value of `group`.

    Each has ``of`` (the aggregated `field`), the key and value of its group, and
    :data:`keepfit.history.rollups.summaries.STATS`.
    """

    type: str
    every: str
    field: str
    group: str | None = None

    def __post_init__(self) -> None:
        times.parse_duration(self.every)
        check_field(self.field)
        if self.group in (*STATS, "of", "timestamp"):
            raise InvalidError(f"{self.group!r} cannot be the group: roll-up documents have a field of this name.")

    @property
    def every_s(self) -> float:
        """Length of an interval in seconds."""
        return times.parse_duration(self.every)

    @property
    def target(self) -> str:
        """Type of the roll-up documents."""
        return f"{self.type}/{self.every}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Fields that identify a document of this roll-up."""
        return ("timestamp", "of") if self.group is None else ("timestamp", "of", self.group)

    @property
    def id(self) -> str:
        """Identifier of this roll-up in the collection ``rollups``."""
        return document_id(self.target, {"of": self.field, "group": self.group})


@dataclass(frozen=True, slots=True)
class Base:
    """The summary of documents that have expired, up to the expiry with this number."""

    summary: Summary
    expiry: int


def to_document(rollup: Rollup, begin: float, group: Scalar | None, summary: Summary, base: Base | None) -> Document:
    """Return the stored form of the document of an interval that begins at a time and of a value of the group."""
    fields = {"type": rollup.target, "timestamp": begin, "of": rollup.field}
    grouped = {} if rollup.group is None else {rollup.group: group}
    stored = {**to_stored({**fields, **grouped, **summary.shown()}, rollup.keys), "parts": summary.parts()}
    if base is not None:
        stored["base"] = {**base.summary.shown(), **base.summary.parts(), "expiry": base.expiry}
    return stored


def document_id_of(rollup: Rollup, begin: float, group: Scalar | None) -> str:
    """Return the identifier of the document of an interval and a value of the group."""
    values = {"timestamp": begin, "of": rollup.field}
    return document_id(rollup.target, values if rollup.group is None else {**values, rollup.group: group})


def is_of(rollup: Rollup, stored: Document) -> bool:
    """Return whether a stored document is one that this roll-up wrote, and not another roll-up, or a user."""
    fields = stored["document"]
    if fields.get("of") != rollup.field or (rollup.group is not None and rollup.group not in fields):
        return False
    return bool(stored["_id"] == document_id_of(rollup, stored["timestamp"], group_of(rollup, stored)))


def group_of(rollup: Rollup, stored: Document) -> Scalar | None:
    """Return the value of the group of a stored document."""
    return None if rollup.group is None else stored["document"].get(rollup.group)


def summary_of(stored: Document) -> Summary:
    """Return the summary that a stored document has."""
    return Summary.of_parts(stored["document"], stored.get("parts", {}), stored["timestamp"])


def base_of(stored: Document) -> Base | None:
    """Return the base of a stored document, if it has one."""
    base = stored.get("base")
    return None if base is None else Base(Summary.of_parts(base, base, stored["timestamp"]), base["expiry"])
