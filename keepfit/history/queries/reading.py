"""Read documents by time, in windows.

Owns the windows and the order of documents; :mod:`keepfit.history.queries.sources` says how they are selected, and
:mod:`keepfit.history.queries.columns` reads their numbers. Never writes. Invariant: no call reads more than a bounded
number of documents that it does not return, and a stream holds a bounded number of them.

Documents are read in windows of time, which grow until they contain enough. MongoDB scans its index and stops by
itself; a server that collects all matches before it sorts and limits them (SecantusDB 0.7) collects little this way,
and no call takes long on either.
"""

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


async def stream(
    sources: Sequence[Source], where: Filter, start: float | None, stop: float | None, now: float
) -> AsyncGenerator[Document]:
    """Yield all documents with `start` <= timestamp < `stop`, newest first, as cursors of the server return them."""
    start, stop = where.narrow(start, stop)
    found = windows(start, stop, now, WINDOW_S, CHUNK)
    low, high = next(found)
    while True:
        count = 0
        async with aclosing(_merged(sources, where, low, high)) as documents:
            async for document in documents:
                count += 1
                yield document
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
    """Raise UnavailableError for errors of the driver; if a server reads a window for too long, it says what helps."""
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
        raise UnavailableError(message, message) from cause


def windows(
    start: float | None, stop: float | None, now: float, width: float, chunk: int
) -> Generator[Window, int, None]:
    """Yield (start, stop) of each window from `stop` back to `start`; send it the number of documents of the window.

    The first window has `width` seconds. Windows grow while they contain few documents, and shrink where there are more
    than `chunk`.
    """
    high, low = stop, (now if stop is None else min(stop, now)) - width
    horizon = low - HORIZON_S
    while True:
        end = low <= (horizon if start is None else start)
        count = yield start if end else low, high
        if end:
            return
        width *= min(GROWTH, chunk / count) if count else GROWTH
        high, low = low, low - width


async def fetch_windows(
    fetch: Callable[[float | None, float | None], Awaitable[int]],
    start: float | None,
    stop: float | None,
    now: float,
    width: float,
    chunk: int,
) -> AsyncIterator[int]:
    """Call `fetch` with (start, stop) of each of :func:`windows`; yield the counts that it returns."""
    found = windows(start, stop, now, width, chunk)
    window = next(found)
    while True:
        count = await fetch(*window)
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
