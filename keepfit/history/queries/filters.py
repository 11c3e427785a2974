"""Filters: which documents a query means.

Pure. Owns the names with a meaning of their own (``type``, ``hash``, ``timestamp``), and the two kinds of documents.
Invariant: a filter that can never match is refused; a value is compared, never interpreted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from keepfit.conditions import Conditions, Scalar
from keepfit.errors import InvalidError, MalformedError
from keepfit.history.queries import comparisons as comparing
from keepfit.history.queries.comparisons import Comparison
from keepfit.times import parse_time

# Documents of snapshots, documents that users store, or both.
Kind = Literal["snapshot", "document", "all"]
SNAPSHOT, DOCUMENT, ALL = KINDS = get_args(Kind)
HASH = re.compile(r"[0-9a-f]{64}")
# Parameters of queries, which some calls of funtime take among the values, and where they belong.
NOT_VALUES = {
    "since": "query_latest takes it so; elsewhere pass the times as start and stop",
    "limit": "pass it as a parameter of the query",
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on documents: `type`, `hash` of the model, time `at` (seconds), for each key the values that match.

    A key of `values`, and of `comparisons`, is a key of metadata, a field, or names joined by dots; all must hold.
    `kind` None stands for the kind that :meth:`keepfit.history.timeline_queries.TimelineQueries.sources` chooses.
    `bound` are the conditions of the caller's API key: the metadata must fulfil them, whatever the fields are.
    """

    type: str | None = None
    hash: str | None = None
    values: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)
    at: float | None = None
    kind: Kind | None = None
    bound: Conditions = ()
    comparisons: tuple[Comparison, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, kind: Kind | None = None) -> "Filter":
        """Return the filter for plain values, and for comparisons: ``{"rows_seen": {">=": 1000}}``.

        Raises
        ------
        InvalidError
            If a key or value can never match a document, or has another meaning.
        MalformedError
            If `kind` is unknown, a hash is not the hash of a model, or a timestamp is not a time.
        """
        if not isinstance(values, Mapping | None):
            raise InvalidError(f"where must be a dictionary of values by key, not {values!r}.")
        others: dict[str, list[Scalar]] = {}
        compared: list[Comparison] = []
        named: dict[str, str] = {}
        at = None
        for key, value in (values or {}).items():
            if not isinstance(key, str) or not key:
                raise InvalidError(f"{key!r}: the key of a filter must be a string that is not empty.")
            if key in NOT_VALUES:
                raise InvalidError(f"{key!r} is not a value to filter by: {NOT_VALUES[key]}.")
            if isinstance(value, Mapping):
                compared += comparing.of_mapping(key, value)
            elif key == "timestamp":
                at = parse_time(value)
            elif key in ("type", "hash"):
                if not isinstance(value, str):
                    raise InvalidError(f"{key!r}: a filter value must be a string, not {value!r}.")
                named[key] = value
            else:
                others[key] = [_plain(key, value)]
        check_comparisons(compared)
        check_kind(kind)
        if kind != DOCUMENT and "hash" in named:
            check_hash(named["hash"])
        return cls(named.get("type"), named.get("hash"), others, at, kind, comparisons=tuple(compared))

    def narrow(self, start: float | None, stop: float | None) -> tuple[float | None, float | None]:
        """Return the part of a range of time (start inclusive, stop exclusive) that can have matching documents."""
        if self.at is None:
            return start, stop
        after = float(np.nextafter(self.at, np.inf))
        return self.at if start is None else max(start, self.at), after if stop is None else min(stop, after)


def check_comparisons(compared: Sequence[Comparison]) -> None:
    """Raise InvalidError if there are too many comparisons, or one is of the time."""
    if any(each.key == "timestamp" for each in compared):
        raise InvalidError("'timestamp' is not compared: use start and stop, over HTTP after and before.")
    if len(compared) > comparing.COMPARISONS_MAX:
        raise InvalidError(f"A filter has at most {comparing.COMPARISONS_MAX} comparisons, not {len(compared)}.")


def _plain(key: str, value: object) -> Scalar:
    if isinstance(value, list | tuple | set | frozenset):
        raise InvalidError(
            f"{key!r}: a filter value must be a string, a number, true or false; one of several is {{'in': [...]}}."
        )
    if value is None:
        raise InvalidError(
            f"{key!r}: a filter value must be a string, a number, true or false; without one is {{'exists': False}}."
        )
    return comparing.to_value(key, value)


def check_kind(kind: object) -> None:
    """Raise MalformedError unless `kind` is one of :data:`KINDS`, or None."""
    if kind not in (*KINDS, None):
        raise MalformedError(
            f"kind must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {kind!r}; the key of metadata of this name is "
            "metadata.kind."
        )


def check_hash(text: str) -> None:
    """Raise MalformedError unless a text is the hash of a model."""
    if not HASH.fullmatch(text):
        raise MalformedError("A model's hash is 64 hexadecimal digits in lower case.")
