"""Read documents by time, in windows.

Knows the two sources of documents: snapshots (:mod:`keepfit.history.registry`) and stored documents. Never writes.
Invariants: each query starts with exactly (type, timestamp), (hash, timestamp) or (timestamp), so that an index serves
it; values in filters are compared, never interpreted.

Documents are read in windows of time, which grow until they contain enough. MongoDB scans its index and stops by
itself; a server that collects all matches before it sorts and limits them (SecantusDB 0.7) collects little this way,
and no call takes long on either.
"""

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from keepfit.errors import InvalidError, MalformedError
from keepfit.history.grouping import Array
from keepfit.history.mongo import Collection, Document, gather_all, unavailable
from keepfit.history.states import COMMITTED, to_public
from keepfit.history.times import SECONDS_MIN

Scalar = str | float | bool
T = TypeVar("T")

WINDOW_S, COLUMNS_WINDOW_S = 60.0, 3600.0
GROWTH = 3.0
# A window that reaches further back than this is the last one, and has no lower bound.
HORIZON_S = 40 * 366 * 86_400.0
# Target for the documents that one call returns, whole ones and columns; more may exceed the time limit of a call.
CHUNK, COLUMNS_CHUNK = 2_000, 10_000
# Maximum number of documents that one query reads to aggregate them; each needs 16 bytes of memory.
GROUPED_MAX = 1_000_000
FIELD = re.compile(r"[^.$\0][^.\0]*(\.[^.$\0][^.\0]*){0,15}")
FIELD_MAX = 256


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on documents: `type`, `hash` of the model, and for each label the values that match."""

    type: str | None = None
    hash: str | None = None
    labels: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> "Filter":
        """Return the filter for plain values; raise InvalidError if one is not a string, number or boolean."""
        labels: dict[str, list[Scalar]] = {}
        named: dict[str, str] = {}
        for key, value in (values or {}).items():
            if not isinstance(value, str | int | float | bool):
                raise InvalidError(f"{key!r}: a filter value must be a string, a number, true or false.")
            if key in ("type", "hash"):
                named[key] = str(value)
            else:
                labels[key] = [float(value) if isinstance(value, int) and not isinstance(value, bool) else value]
        return cls(named.get("type"), named.get("hash"), labels)


def labels_condition(labels: Mapping[str, Sequence[Scalar]]) -> Document:
    """Return the condition that documents have all these labels; an empty one without labels."""
    if not labels:
        return {}
    pairs = [{"$elemMatch": {"k": key, "v": {"$in": list(values)}}} for key, values in labels.items()]
    return {"labels": {"$all": pairs}}


def _between(start: float | None, stop: float | None) -> Document:
    bounds: Document = {"$gte": SECONDS_MIN if start is None else start}
    return bounds if stop is None else {**bounds, "$lt": stop}


class SnapshotSource:
    """Source of committed history documents of snapshots."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def match_stages(self, where: Filter, start: float | None, stop: float | None) -> list[Document]:
        """Return the pipeline stages that select documents; an index serves the first one."""
        first: Document = {"timestamp": _between(start, stop)}
        others: Document = {"status": COMMITTED, **labels_condition(where.labels)}
        if where.hash is not None:
            first = {"hash": where.hash, **first}
            others |= {} if where.type is None else {"type": where.type}
        elif where.type is not None:
            first = {"type": where.type, **first}
        return [{"$match": first}, {"$match": others}]

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
        first: Document = {"timestamp": _between(start, stop)}
        if where.type is not None:
            first = {"type": where.type, **first}
        labels = dict(where.labels) if where.hash is None else {**where.labels, "hash": [where.hash]}
        return [{"$match": first}, *([{"$match": labels_condition(labels)}] if labels else [])]

    def field_path(self, name: str) -> str:
        """Return the stored path of a field."""
        return name if name == "timestamp" else f"document.{name}"

    def to_public(self, document: Document) -> Document:
        """Return a document in its public form."""
        return {"type": document["type"], "timestamp": document["timestamp"], **document["document"]}


Source = SnapshotSource | StoredSource


def check_field(name: str) -> str:
    """Return the dotted name of a field; raise MalformedError if it is malformed."""
    if len(name) > FIELD_MAX or not FIELD.fullmatch(name):
        raise MalformedError("field must be a name, or names joined by dots: metrics.mean_absolute_error.")
    return name


# Whole documents.


async def read_newest(
    sources: Sequence[Source], where: Filter, start: float | None, stop: float | None, now: float, limit: int
) -> list[Document]:
    """Return documents with `start` <= timestamp < `stop`, newest first; at most `limit`, 0 means all."""
    found: list[Document] = []

    async def fetch(low: float | None, high: float | None) -> int:
        some = await _read_sorted(sources, where, low, high, -1, limit and limit - len(found))
        found.extend(some)
        return len(some)

    async for _ in fetch_windows(fetch, start, stop, now, WINDOW_S, CHUNK):
        if limit and len(found) >= limit:
            break
    return found


async def read_oldest(sources: Sequence[Source], where: Filter, start: float, now: float) -> Document | None:
    """Return the oldest document at `start` or later; None if there is none."""
    low, width = start, WINDOW_S
    while low + width < now:
        found = await _read_sorted(sources, where, low, low + width, 1, 1)
        if found:
            return found[0]
        low, width = low + width, width * GROWTH
    return next(iter(await _read_sorted(sources, where, low, None, 1, 1)), None)


async def fetch_windows(
    fetch: Callable[[float | None, float | None], Awaitable[int]],
    start: float | None,
    stop: float | None,
    now: float,
    width: float,
    chunk: int,
) -> AsyncIterator[int]:
    """Call `fetch` with (start, stop) of each window from `stop` back to `start`; yield the counts that it returns.

    The first window has `width` seconds. Windows grow while they contain few documents, and shrink where `fetch`
    returned more than `chunk`.
    """
    high, low = stop, (now if stop is None else min(stop, now)) - width
    horizon = low - HORIZON_S
    while True:
        end = low <= (horizon if start is None else start)
        count = await fetch(start if end else low, high)
        yield count
        if end:
            return
        width *= min(GROWTH, chunk / count) if count else GROWTH
        high, low = low, low - width


async def _read_sorted(
    sources: Sequence[Source], where: Filter, start: float | None, stop: float | None, direction: int, limit: int
) -> list[Document]:
    """Return the documents of all sources in a window, sorted by time; `direction` is 1 or -1, `limit` 0 means all."""

    async def of(source: Source) -> list[Document]:
        pipeline = [*source.match_stages(where, start, stop), {"$sort": {"timestamp": direction}}]
        if limit:
            pipeline.append({"$limit": limit})
        with unavailable():
            return [source.to_public(document) async for document in source.collection.aggregate(pipeline)]

    found = [document for some in await gather_all(*map(of, sources)) for document in some]
    found.sort(key=lambda document: direction * document["timestamp"])
    return found[:limit] if limit else found


# Columns.

Columns = dict[Scalar | None, tuple[Array, Array]]


async def read_columns(
    sources: Sequence[Source],
    where: Filter,
    start: float | None,
    stop: float | None,
    now: float,
    name: str | None,
    group: str | None = None,
) -> Columns:
    """Return times and values of the number field `name`, by value of the metadata key `group`.

    Documents without that key are under None. If `name` is None every document counts, with the value 1.

    Raises
    ------
    InvalidError
        If there are more than :data:`GROUPED_MAX` documents.
    """
    columns: dict[Scalar | None, list[tuple[Array, Array]]] = {}
    total = 0

    async def fetch(low: float | None, high: float | None) -> int:
        nonlocal total
        count = 0
        for some in await gather_all(*(_read_window(source, where, low, high, name, group) for source in sources)):
            for value, times, values in some:
                columns.setdefault(value, []).append((times, values))
                count += len(times)
        total += count
        if total > GROUPED_MAX:
            raise InvalidError(
                f"More than {GROUPED_MAX:,} documents are in this time range: use a later start or a filter."
            )
        return count

    async for _ in fetch_windows(fetch, start, stop, now, COLUMNS_WINDOW_S, COLUMNS_CHUNK):
        pass
    # Windows are read latest first; documents with equal times keep their order.
    return {
        value: (np.concatenate([t for t, _ in some[::-1]]), np.concatenate([v for _, v in some[::-1]]))
        for value, some in columns.items()
    }


async def _read_window(
    source: Source, where: Filter, start: float | None, stop: float | None, name: str | None, group: str | None
) -> list[tuple[Scalar | None, Array, Array]]:
    """Return columns of one window of one source, by group.

    The server returns them as two arrays in one document, because one document per value costs more than all else.
    """
    pipeline = source.match_stages(where, start, stop)
    pushes: Document = {"t": {"$push": "$timestamp"}}
    if name is not None:
        pipeline.append({"$match": {source.field_path(name): {"$type": "number"}}})
        pushes["v"] = {"$push": f"${source.field_path(name)}"}
    pipeline.append({"$group": {"_id": _group_key(source, group), **pushes}})
    with unavailable():
        found = await source.collection.aggregate(pipeline).to_list(None)
    return [(_label_value(document["_id"]), *_to_arrays(document["t"], document.get("v"))) for document in found]


def _group_key(source: Source, key: str | None) -> Any:
    if key is None:
        return None
    if key == "hash" and isinstance(source, SnapshotSource):
        return "$hash"
    first = {"$first": {"$filter": {"input": "$labels", "cond": {"$eq": ["$$this.k", {"$literal": key}]}}}}
    return {"$let": {"vars": {"label": first}, "in": "$$label.v"}}


def _label_value(value: Any) -> Scalar | None:
    """Return the value of a label; labels store integers as floats, this returns them as integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _to_arrays(times: list[float], values: list[Any] | None) -> tuple[Array, Array]:
    """Return arrays of times and values, without values that are not finite numbers (an array of numbers, for example).

    MongoDB's type condition also matches arrays that contain a number.
    """
    stamps = np.array(times, dtype=np.float64)
    if values is None:
        return stamps, np.ones(len(stamps))
    if not all(map(_is_number, values)):
        values = [value if _is_number(value) else math.nan for value in values]
    numbers = np.array(values, dtype=np.float64)
    finite = np.isfinite(numbers)
    return stamps[finite], numbers[finite]


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
