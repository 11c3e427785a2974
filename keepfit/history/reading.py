"""Read documents by time, in windows.

Owns the windows and the limits of what one call reads; :mod:`keepfit.history.sources` says how documents are selected.
Never writes. Invariant: no call reads more than a bounded number of documents that it does not return.

Documents are read in windows of time, which grow until they contain enough. MongoDB scans its index and stops by
itself; a server that collects all matches before it sorts and limits them (SecantusDB 0.7) collects little this way,
and no call takes long on either.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from keepfit.conditions import Scalar
from keepfit.errors import InvalidError
from keepfit.history.filters import Filter
from keepfit.history.grouping import Array
from keepfit.history.mongo import Document, gather_all, unavailable
from keepfit.history.sources import Source, group_key

T = TypeVar("T")

WINDOW_S, COLUMNS_WINDOW_S = 60.0, 3600.0
GROWTH = 3.0
EXISTENCE_WINDOWS_S = (3600.0, 30 * 86_400.0, None)
# A window that reaches further back than this is the last one, and has no lower bound.
HORIZON_S = 40 * 366 * 86_400.0
# Target for the documents that one call returns, whole ones and columns; more may exceed the time limit of a call.
CHUNK, COLUMNS_CHUNK = 2_000, 10_000
# Maximum number of documents that one query reads to aggregate them; each needs 16 bytes of memory.
GROUPED_MAX = 1_000_000


# Whole documents.


async def read_newest(
    sources: Sequence[Source], where: Filter, start: float | None, stop: float | None, now: float, limit: int
) -> list[Document]:
    """Return documents with `start` <= timestamp < `stop`, newest first; at most `limit`, 0 means all."""
    found: list[Document] = []
    start, stop = where.narrow(start, stop)

    async def fetch(low: float | None, high: float | None) -> int:
        some = await _read_sorted(sources, where, low, high, -1, limit and limit - len(found))
        found.extend(some)
        return len(some)

    async for _ in fetch_windows(fetch, start, stop, now, WINDOW_S, CHUNK):
        if limit and len(found) >= limit:
            break
    return found


async def has_any(source: Source, where: Filter, now: float) -> bool:
    """Return whether any document matches."""
    # Recent documents first: then the last call, which has no bound, finds few.
    for age_s in EXISTENCE_WINDOWS_S:
        pipeline = [*source.match_stages(where, None if age_s is None else now - age_s, None), {"$limit": 1}]
        with unavailable():
            if await source.collection.aggregate(pipeline).to_list(1):
                return True
    return False


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
    start, stop = where.narrow(start, stop)

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
    pipeline.append({"$group": {"_id": group_key(source, group), **pushes}})
    with unavailable():
        found = await source.collection.aggregate(pipeline).to_list(None)
    return [(_label_value(document["_id"]), *_to_arrays(document["t"], document.get("v"))) for document in found]


def _label_value(value: Any) -> Scalar | None:
    """Return the value of a group; labels store integers as floats, this returns them as integers.

    Values that are not scalars form no group of their own.
    """
    if not isinstance(value, str | float | int | bool):
        return None
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
