"""Read documents by time, in windows.

Owns the windows and the order of documents; :mod:`keepfit.history.queries.sources` says how they are selected, and
:mod:`keepfit.history.queries.columns` reads their numbers. Never writes. Invariant: no call reads more than a bounded
number of documents that it does not return, and a stream holds a bounded number of them.

Documents are read in windows of time, which grow until they contain enough. MongoDB scans its index and stops by
itself; a server that collects all matches before it sorts and limits them (SecantusDB 0.7) collects little this way,
and no call takes long on either. A window that has grown over empty time may contain very many: if the server does not
read it in time, a part of it is read instead.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager

from pymongo.errors import PyMongoError, ServerSelectionTimeoutError

from keepfit.errors import UnavailableError
from keepfit.history import mongo
from keepfit.history.mongo import Document, gather_all, unavailable
from keepfit.history.queries.filters import Filter
from keepfit.history.queries.sources import Source
from keepfit.times import format_time

Window = tuple[float | None, float | None]

WINDOW_S, COLUMNS_WINDOW_S = 60.0, 3600.0
GROWTH = 3.0
EXISTENCE_WINDOWS_S = (3600.0, 30 * 86_400.0, None)
# A window that reaches further back than this is the last one, and has no lower bound.
HORIZON_S = 40 * 366 * 86_400.0
# Target for the documents that one call returns, whole ones and columns; more may exceed the time limit of a call.
CHUNK, COLUMNS_CHUNK = 2_000, 10_000
# A part of a window that was not read in time comes next. A query has so many: each takes the time of a call.
SLOW_PARTS, SLOW_MAX = 16.0, 8


class SlowWindow(Exception):  # noqa: N818 - what is done about it is decided here; callers get `error`
    """MongoDB has not read a window in time; `error` says so to users."""

    def __init__(self, error: UnavailableError) -> None:
        super().__init__(str(error))
        self.error = error


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
    low, width, most_s, slow = start, WINDOW_S, math.inf, 0
    while True:
        high = low + width if low + width < now else None
        try:
            found = await _read_sorted(sources, where, low, high, 1, 1)
        except SlowWindow as late:
            slow += 1
            if slow > SLOW_MAX:
                raise late.error from None
            width = most_s = min(width, max(now - low, 0.0)) / SLOW_PARTS
            continue
        if found or high is None:
            return next(iter(found), None)
        low, width = high, min(width * GROWTH, most_s)


async def stream(
    sources: Sequence[Source], where: Filter, start: float | None, stop: float | None, now: float
) -> AsyncGenerator[Document]:
    """Yield all documents with `start` <= timestamp < `stop`, newest first, as cursors of the server return them."""
    start, stop = where.narrow(start, stop)
    found = windows(start, stop, now, WINDOW_S, CHUNK)
    low, high = next(found)
    slow = 0
    while True:
        count: int | None = 0
        try:
            async with aclosing(_merged(sources, where, low, high)) as documents:
                async for document in documents:
                    count = (count or 0) + 1
                    yield document
        except SlowWindow as late:
            slow += 1
            if count or slow > SLOW_MAX:
                raise late.error from None
            count = None
        try:
            low, high = found.send(count)
        except StopIteration:
            return


async def _merged(
    sources: Sequence[Source], where: Filter, low: float | None, high: float | None
) -> AsyncGenerator[Document]:
    """Yield the documents of all sources in a window, newest first."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(aclosing(_sorted(source, where, low, high))) for source in sources]
        heads = await gather_all(*(anext(stream, None) for stream in streams))
        while any(head is not None for head in heads):
            newest = max(range(len(heads)), key=lambda place: _timestamp(heads[place]))
            document = heads[newest]
            heads[newest] = await anext(streams[newest], None)
            if document is not None:
                yield document


async def _sorted(source: Source, where: Filter, low: float | None, high: float | None) -> AsyncGenerator[Document]:
    pipeline = [*source.match_stages(where, low, high), {"$sort": {"timestamp": -1}}]
    with within_window(low, high):
        async for document in source.collection.aggregate(pipeline):
            yield source.to_public(document)


def _timestamp(document: Document | None) -> float:
    return float("-inf") if document is None else float(document["timestamp"])


@contextmanager
def within_window(start: float | None, stop: float | None) -> Iterator[None]:
    """Raise UnavailableError for errors of the driver, SlowWindow if the server reads the window for too long."""
    try:
        with unavailable():
            yield
    except UnavailableError as error:
        cause = error.__cause__
        is_slow = isinstance(cause, PyMongoError) and cause.timeout
        if not is_slow or isinstance(cause, ServerSelectionTimeoutError):
            raise
        first, last = (None if edge is None else format_time(round(edge)) for edge in (start, stop))
        message = (
            f"MongoDB has not read the documents {f'from {first} ' if first else ''}{f'before {last} ' if last else ''}"
            f"within {mongo.CALL_TIMEOUT_MS / 1000:g} s: they are too many for it, or it is overloaded. Ask for a "
            "shorter time with after and before, or for points that a roll-up has."
        )
        slow = UnavailableError(message, message)
        slow.__cause__ = cause
        raise SlowWindow(slow) from cause


def windows(
    start: float | None, stop: float | None, now: float, width: float, chunk: int
) -> Generator[Window, int | None, None]:
    """Yield (start, stop) of each window from `stop` back to `start`; send it the number of documents of the window.

    The first window has `width` seconds. Windows grow while they contain few documents, and shrink where there are more
    than `chunk`. Send None if a window was not read in time: its later part is the next window, and the others after it
    are no longer than that.
    """
    high, low = stop, (now if stop is None else min(stop, now)) - width
    horizon = low - HORIZON_S
    # Where the last window began that was not read in time, and how long windows after that are at most.
    crowded = most_s = math.inf
    while True:
        end = low <= (horizon if start is None else start)
        count = yield start if end else low, high
        if count is None:
            top, crowded = (now if high is None else min(high, now)), start if end and start is not None else low
            width = most_s = max(top - crowded, 0.0) / SLOW_PARTS
            low = top - width
            continue
        if end:
            return
        width *= min(GROWTH, chunk / count) if count else GROWTH
        if low > crowded:
            width = min(width, most_s)
        high, low = low, low - width


async def fetch_windows(
    fetch: Callable[[float | None, float | None], Awaitable[int]],
    start: float | None,
    stop: float | None,
    now: float,
    width: float,
    chunk: int,
) -> AsyncIterator[int]:
    """Call `fetch` with (start, stop) of each of :func:`windows`; yield the counts that it returns.

    `fetch` must change nothing if it raises SlowWindow: it is called again with a part of the window.
    """
    found = windows(start, stop, now, width, chunk)
    window, slow = next(found), 0
    while True:
        count: int | None
        try:
            count = await fetch(*window)
        except SlowWindow as late:
            slow += 1
            if slow > SLOW_MAX:
                raise late.error from None
            count = None
        else:
            yield count
        try:
            window = found.send(count)
        except StopIteration:
            return


async def _read_sorted(
    sources: Sequence[Source], where: Filter, start: float | None, stop: float | None, direction: int, limit: int
) -> list[Document]:
    """Return the documents of all sources in a window, sorted by time; `direction` is 1 or -1, `limit` 0 means all."""

    async def of(source: Source) -> list[Document]:
        pipeline = [*source.match_stages(where, start, stop), {"$sort": {"timestamp": direction}}]
        if limit:
            pipeline.append({"$limit": limit})
        with within_window(start, stop):
            return [source.to_public(document) async for document in source.collection.aggregate(pipeline)]

    found = [document for some in await gather_all(*map(of, sources)) for document in some]
    found.sort(key=lambda document: direction * document["timestamp"])
    return found[:limit] if limit else found
