"""How documents are read by time: from which collections, by which filters, in which steps.

Knows the two sources of documents: snapshots (:mod:`keepfit.history.registry`) and what users store. Never writes.
Invariants: each query begins with exactly (type, timestamp), (hash, timestamp) or (timestamp), so that an index has it;
values in filters are compared, never interpreted.

Documents are read in windows of time that grow until they hold enough. MongoDB would walk its index and stop by itself;
a server that collects all that match before it sorts and cuts (SecantusDB 0.7) is asked for little this way, and no
call takes long on either.
"""

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from keepfit.errors import InvalidError, MalformedError
from keepfit.history.grouping import Array
from keepfit.history.mongo import Collection, Document, together, unavailable
from keepfit.history.states import COMMITTED, public
from keepfit.history.times import SECONDS_MIN

Scalar = str | float | bool
T = TypeVar("T")

WINDOW_S, COLUMNS_WINDOW_S = 60.0, 3600.0
GROWTH = 3.0
# A window that reaches further back than this is the last one, and has no beginning.
HORIZON_S = 40 * 366 * 86_400.0
# Documents that one call is meant to return, whole ones and columns of them; more may take longer than a call may.
CHUNK, COLUMNS_CHUNK = 2_000, 10_000
# What one question may read to group it; 16 bytes each are held.
GROUPED_MAX = 1_000_000
FIELD = re.compile(r"[^.$\0][^.\0]*(\.[^.$\0][^.\0]*){0,15}")
FIELD_MAX = 256


@dataclass(frozen=True, slots=True)
class Filter:
    """What documents must be like: `type`, `hash` of the model, and labels, each with the values that will do."""

    type: str | None = None
    hash: str | None = None
    labels: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> "Filter":
        """Read a filter of plain values; raises InvalidError where one is no text, number or boolean."""
        labels: dict[str, list[Scalar]] = {}
        named: dict[str, str] = {}
        for key, value in (values or {}).items():
            if not isinstance(value, str | int | float | bool):
                raise InvalidError(f"{key!r} is compared with a text, a number, true or false, and with nothing else.")
            if key in ("type", "hash"):
                named[key] = str(value)
            else:
                labels[key] = [float(value) if isinstance(value, int) and not isinstance(value, bool) else value]
        return cls(named.get("type"), named.get("hash"), labels)


def labelled(labels: Mapping[str, Sequence[Scalar]]) -> Document:
    """Condition that documents have all these labels; an empty one where there are none."""
    if not labels:
        return {}
    pairs = [{"$elemMatch": {"k": key, "v": {"$in": list(values)}}} for key, values in labels.items()]
    return {"labels": {"$all": pairs}}


def _between(start: float | None, stop: float | None) -> Document:
    bounds: Document = {"$gte": SECONDS_MIN if start is None else start}
    return bounds if stop is None else {**bounds, "$lt": stop}


class Snapshots:
    """Committed history documents of snapshots."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def matches(self, wanted: Filter, start: float | None, stop: float | None) -> list[Document]:
        """Stages that select documents, the first served by an index."""
        first: Document = {"timestamp": _between(start, stop)}
        others: Document = {"status": COMMITTED, **labelled(wanted.labels)}
        if wanted.hash is not None:
            first = {"hash": wanted.hash, **first}
            others |= {} if wanted.type is None else {"type": wanted.type}
        elif wanted.type is not None:
            first = {"type": wanted.type, **first}
        return [{"$match": first}, {"$match": others}]

    def path(self, name: str) -> str:
        """Where a field of users is."""
        return name

    def show(self, document: Document) -> Document:
        """Return a document as users see it."""
        return public(document)


class Stored:
    """Documents that users store, each under ``document``, where its keys can be what they like."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def matches(self, wanted: Filter, start: float | None, stop: float | None) -> list[Document]:
        """Stages that select documents, the first served by an index."""
        first: Document = {"timestamp": _between(start, stop)}
        if wanted.type is not None:
            first = {"type": wanted.type, **first}
        labels = dict(wanted.labels) if wanted.hash is None else {**wanted.labels, "hash": [wanted.hash]}
        return [{"$match": first}, *([{"$match": labelled(labels)}] if labels else [])]

    def path(self, name: str) -> str:
        """Where a field of users is."""
        return name if name == "timestamp" else f"document.{name}"

    def show(self, document: Document) -> Document:
        """Return a document as users see it."""
        return {"type": document["type"], "timestamp": document["timestamp"], **document["document"]}


Source = Snapshots | Stored


def check_field(name: str) -> str:
    """Return the dotted name of a field; raises MalformedError where it is none."""
    if len(name) > FIELD_MAX or not FIELD.fullmatch(name):
        raise MalformedError("field is a name, or names with dots between: metrics.mean_absolute_error.")
    return name


# Whole documents.


async def newest(
    sources: Sequence[Source], wanted: Filter, start: float | None, stop: float | None, now: float, limit: int
) -> list[Document]:
    """Read documents with `start` <= timestamp < `stop`, newest first; at most `limit`, 0 means all."""
    found: list[Document] = []

    async def fetch(low: float | None, high: float | None) -> int:
        some = await _sorted(sources, wanted, low, high, -1, limit and limit - len(found))
        found.extend(some)
        return len(some)

    async for _ in backward(fetch, start, stop, now, WINDOW_S, CHUNK):
        if limit and len(found) >= limit:
            break
    return found


async def oldest(sources: Sequence[Source], wanted: Filter, start: float, now: float) -> Document | None:
    """Read the document that comes first at `start` or later."""
    low, width = start, WINDOW_S
    while low + width < now:
        found = await _sorted(sources, wanted, low, low + width, 1, 1)
        if found:
            return found[0]
        low, width = low + width, width * GROWTH
    return next(iter(await _sorted(sources, wanted, low, None, 1, 1)), None)


async def backward(
    fetch: Callable[[float | None, float | None], Awaitable[int]],
    start: float | None,
    stop: float | None,
    now: float,
    width: float,
    chunk: int,
) -> AsyncIterator[int]:
    """Call `fetch` with (from, before) for windows from `stop` back to `start`; yields how many it says it found.

    Windows grow while there is little in them and shrink where `fetch` found more than `chunk`.
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


async def _sorted(
    sources: Sequence[Source], wanted: Filter, start: float | None, stop: float | None, direction: int, limit: int
) -> list[Document]:
    """Read all sources' documents of a window in one order."""

    async def of(source: Source) -> list[Document]:
        pipeline = [*source.matches(wanted, start, stop), {"$sort": {"timestamp": direction}}]
        if limit:
            pipeline.append({"$limit": limit})
        with unavailable():
            return [source.show(document) async for document in source.collection.aggregate(pipeline)]

    found = [document for some in await together(*map(of, sources)) for document in some]
    found.sort(key=lambda document: direction * document["timestamp"])
    return found[:limit] if limit else found


# Columns.

Columns = dict[Scalar | None, tuple[Array, Array]]


async def columns(
    sources: Sequence[Source],
    wanted: Filter,
    start: float | None,
    stop: float | None,
    now: float,
    name: str | None,
    group: str | None = None,
) -> Columns:
    """Read times and values of a number field, for each value of the metadata key `group`; a document without it is
    under None. Where `name` is None every document counts, with the value 1.

    Raises
    ------
    InvalidError
        If these are more than :data:`GROUPED_MAX` documents.
    """
    parts: dict[Scalar | None, list[tuple[Array, Array]]] = {}
    total = 0

    async def fetch(low: float | None, high: float | None) -> int:
        nonlocal total
        count = 0
        for some in await together(*(_pushed(source, wanted, low, high, name, group) for source in sources)):
            for value, times, values in some:
                parts.setdefault(value, []).append((times, values))
                count += len(times)
        total += count
        if total > GROUPED_MAX:
            raise InvalidError(
                f"More than {GROUPED_MAX:,} documents are in that time: name a later start, or a filter."
            )
        return count

    async for _ in backward(fetch, start, stop, now, COLUMNS_WINDOW_S, COLUMNS_CHUNK):
        pass
    # Windows came latest first; of one time, documents keep their order.
    return {
        value: (np.concatenate([t for t, _ in some[::-1]]), np.concatenate([v for _, v in some[::-1]]))
        for value, some in parts.items()
    }


async def _pushed(
    source: Source, wanted: Filter, start: float | None, stop: float | None, name: str | None, group: str | None
) -> list[tuple[Scalar | None, Array, Array]]:
    """Read columns of one window of one source.

    As two arrays in one document, because a document for each value costs more than all else.
    """
    pipeline = source.matches(wanted, start, stop)
    pushes: Document = {"t": {"$push": "$timestamp"}}
    if name is not None:
        pipeline.append({"$match": {source.path(name): {"$type": "number"}}})
        pushes["v"] = {"$push": f"${source.path(name)}"}
    pipeline.append({"$group": {"_id": _group(source, group), **pushes}})
    with unavailable():
        found = await source.collection.aggregate(pipeline).to_list(None)
    return [(_plain(document["_id"]), *_arrays(document["t"], document.get("v"))) for document in found]


def _group(source: Source, key: str | None) -> Any:
    if key is None:
        return None
    if key == "hash" and isinstance(source, Snapshots):
        return "$hash"
    first = {"$first": {"$filter": {"input": "$labels", "cond": {"$eq": ["$$this.k", {"$literal": key}]}}}}
    return {"$let": {"vars": {"label": first}, "in": "$$label.v"}}


def _plain(value: Any) -> Scalar | None:
    """A label's value, whole numbers as such again."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _arrays(times: list[float], values: list[Any] | None) -> tuple[Array, Array]:
    """Arrays of times and values; what is no number after all (an array of them, say) is left out."""
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
