"""The synchronous form of the timeline: the same methods, each blocks until its result is available.

Owns one thread with an event loop, in which :mod:`keepfit.history.timeline` does all the work. Invariant: it can be
used from any thread, and closing it stops its thread.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from keepfit.history.mongo import Document
from keepfit.history.queries.arguments import Values
from keepfit.history.queries.filters import Kind
from keepfit.history.timeline import Timeline
from keepfit.times import Time

# Documents that one change of threads brings.
STREAM_DOCUMENTS = 500

P = ParamSpec("P")
T = TypeVar("T")


def _synchronous(
    method: Callable[Concatenate[Timeline, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["TimelineSync", P], T]:
    @wraps(method)
    def call(self: "TimelineSync", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._timeline, *args, **kwargs))

    return call


async def _take(documents: AsyncGenerator[Document]) -> list[Document]:
    """Return the next documents of a stream; none at its end."""
    some: list[Document] = []
    # Not `async for`, which would close the stream after some.
    while len(some) < STREAM_DOCUMENTS and (document := await anext(documents, None)) is not None:
        some.append(document)
    return some


class TimelineSync:
    """Synchronous access to documents by time; see :class:`~keepfit.history.timeline.Timeline`."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="timeline", daemon=True)
        self._thread.start()
        try:
            self._timeline = self._run(self._open(url))
        except BaseException:
            self._stop_thread()
            raise

    @staticmethod
    async def _open(url: str) -> Timeline:
        # The client belongs to the event loop in which it is created.
        return Timeline.open(url)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and stop the thread."""
        self._timeline.close()
        self._stop_thread()

    def _stop_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stream(
        self,
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        limit: int = 0,
        *,
        kind: Kind | None = None,
    ) -> Iterator[Document]:
        """Yield the documents that match, newest first, while the server returns them; see :meth:`Timeline.stream`."""
        documents = self._timeline.stream(where, start, stop, limit, kind=kind)
        try:
            while some := self._run(_take(documents)):
                yield from some
        finally:
            self._run(documents.aclose())

    ensure_indexes = _synchronous(Timeline.ensure_indexes)
    add = _synchronous(Timeline.add)
    store = _synchronous(Timeline.store)
    bulk_upsert = _synchronous(Timeline.bulk_upsert)
    delete = _synchronous(Timeline.delete)
    delete_many = _synchronous(Timeline.delete_many)
    query = _synchronous(Timeline.query)
    query_sorted = _synchronous(Timeline.query_sorted)
    query_latest = _synchronous(Timeline.query_latest)
    query_last = _synchronous(Timeline.query_last)
    query_time = _synchronous(Timeline.query_time)
    query_closest = _synchronous(Timeline.query_closest)
    query_last_per = _synchronous(Timeline.query_last_per)
    query_top = _synchronous(Timeline.query_top)
    stats = _synchronous(Timeline.stats)
    points = _synchronous(Timeline.points)
