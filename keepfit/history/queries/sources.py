"""The two sources of documents: snapshots, and documents that users store.

Knows where each of them stores a field and a label, and which stages of a pipeline select documents. Never reads.
Invariants: the first stage is exactly (type, timestamp), (hash, timestamp) or (timestamp), so that an index serves it;
a key of a filter is a label or a path, never an operator.
"""

import re
from typing import Any

from keepfit.errors import InvalidError, MalformedError
from keepfit.history.metadata_labels import label_condition, label_conditions
from keepfit.history.mongo import Collection, Document
from keepfit.history.queries.comparisons import Comparison
from keepfit.history.queries.filters import Filter
from keepfit.history.states import COMMITTED, to_public
from keepfit.times import SECONDS_MIN

FIELD = re.compile(r"[^.$\0][^.\0]*(\.[^.$\0][^.\0]*){0,15}")
FIELD_MAX = 256
METADATA = "metadata."
# Fields of a snapshot's document by which it can be filtered and grouped.
SNAPSHOT_FIELDS = frozenset({"generation", "origin", "rows_seen", "sequence", "sha256", "size_bytes", "uri", "version"})
# The operators of an order, and MongoDB's.
ORDER = {"<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}
SNAPSHOT_PARTS = ("metrics.", "runtime.")


class SnapshotSource:
    """Source of committed history documents of snapshots."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def match_stages(self, where: Filter, start: float | None, stop: float | None) -> list[Document]:
        """Return the pipeline stages that select documents; an index serves the first one."""
        first: Document = {"timestamp": _between(*where.narrow(start, stop))}
        others: Document = {"status": COMMITTED}
        if where.hash is not None:
            first = {"hash": where.hash, **first}
            others |= {} if where.type is None else {"type": where.type}
        elif where.type is not None:
            first = {"type": where.type, **first}
        return [{"$match": first}, {"$match": others | _all_of(self, where)}]

    def label_key(self, key: str) -> str:
        """Return the key of the label that a key of a filter means; raise InvalidError if there are no such labels."""
        if key.startswith(METADATA) and "." in key.removeprefix(METADATA):
            raise InvalidError(f"{key!r}: only values on the top level of a snapshot's metadata can be compared.")
        return key.removeprefix(METADATA)

    def value_path(self, key: str) -> str | None:
        """Return the stored path of a field that a key of a filter may mean."""
        is_part = key.startswith(SNAPSHOT_PARTS) and is_field(key)
        return key if key in SNAPSHOT_FIELDS or is_part else None

    def field_path(self, name: str) -> str:
        """Return the stored path of a field."""
        return name

    def to_public(self, document: Document) -> Document:
        """Return a document in its public form."""
        return to_public(document)


class StoredSource:
    """Source of documents that users store; their fields are under ``document``, where every key is allowed."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def match_stages(self, where: Filter, start: float | None, stop: float | None) -> list[Document]:
        """Return the pipeline stages that select documents; an index serves the first one."""
        first: Document = {"timestamp": _between(*where.narrow(start, stop))}
        if where.type is not None:
            first = {"type": where.type, **first}
        others = _all_of(self, where)
        if where.hash is not None:
            others = {"$and": [*others.get("$and", ()), label_condition("hash", [where.hash])]}
        return [{"$match": first}, *([{"$match": others}] if others else [])]

    def label_key(self, key: str) -> str:
        """Return the key of the label that a key of a filter means."""
        return key

    def value_path(self, key: str) -> str | None:
        """Return the stored path of a field that a key of a filter may mean."""
        return f"document.{key}" if is_field(key) else None

    def field_path(self, name: str) -> str:
        """Return the stored path of a field."""
        return name if name == "timestamp" else f"document.{name}"

    def to_public(self, document: Document) -> Document:
        """Return a document in its public form."""
        return {"type": document["type"], "timestamp": document["timestamp"], **document["document"]}


Source = SnapshotSource | StoredSource


def group_key(source: Source, key: str | None) -> Any:
    """Return the expression for the value of a key of metadata or a field, by which documents are grouped."""
    if key is None:
        return None
    if key == "hash" and isinstance(source, SnapshotSource):
        return "$hash"
    label = {"$eq": ["$$this.k", {"$literal": source.label_key(key)}]}
    first = {"$first": {"$filter": {"input": "$labels", "cond": label}}}
    value = {"$let": {"vars": {"label": first}, "in": "$$label.v"}}
    path = source.value_path(key)
    return value if path is None else {"$ifNull": [value, f"${path}"]}


def is_field(name: str) -> bool:
    """Return whether a text can be the dotted name of a field."""
    return len(name) <= FIELD_MAX and FIELD.fullmatch(name) is not None


def check_field(name: str) -> str:
    """Return the dotted name of a field; raise MalformedError if it is malformed."""
    if not is_field(name):
        raise MalformedError("field must be a name, or names joined by dots: metrics.mean_absolute_error.")
    return name


def is_snapshot_number(name: str) -> bool:
    """Return whether a number field is one that snapshots have."""
    return name in SNAPSHOT_FIELDS or name == "timestamp" or name.startswith("metrics.")


def _all_of(source: Source, where: Filter) -> Document:
    """Return the condition that each key has one of its values, as label or as field; an empty one without keys."""
    conditions = label_conditions(where.bound)
    for key, values in where.values.items():
        either = [label_condition(source.label_key(key), values)]
        if path := source.value_path(key):
            either.append({path: {"$in": list(values)}})
        conditions.append(either[0] if len(either) == 1 else {"$or": either})
    conditions += [_compared(source, comparison) for comparison in where.comparisons]
    return {"$and": conditions} if conditions else {}


def _compared(source: Source, comparison: Comparison) -> Document:
    """Return the condition that a comparison states; its key is a label or a path, its values are never more."""
    operator, values = comparison.operator, list(comparison.values)
    named, negated = operator.removeprefix("not "), operator.startswith(("not ", "!"))
    test: Document | None = {"$in": values} if named in ("=", "!=", "in") else None
    if named in ORDER:
        test = {ORDER[named]: values[0]}
    key, either = comparison.key, list[Document]()
    path: str | None = key if key == "type" or (key == "hash" and isinstance(source, SnapshotSource)) else None
    if path is None:
        label: Document = {"k": source.label_key(key)}
        either.append({"labels": {"$elemMatch": label if test is None else {**label, "v": test}}})
        path = source.value_path(key)
    if path is not None:
        either.append({path: {"$exists": True} if test is None else test})
    return {"$nor" if negated else "$or": either}


def _between(start: float | None, stop: float | None) -> Document:
    bounds: Document = {"$gte": SECONDS_MIN if start is None else start}
    return bounds if stop is None else {**bounds, "$lt": stop}
