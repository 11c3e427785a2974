"""The timeline for who has no event loop: the same calls, each waits for its answer.

Owns one thread with an event loop; :mod:`keepfit.history.timeline` does all the work in it. Invariant: it may be used
from any thread, and closing it ends its thread.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from keepfit.history.timeline import Timeline

P = ParamSpec("P")
T = TypeVar("T")


def _waiting(
    method: Callable[Concatenate[Timeline, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["TimelineSync", P], T]:
    @wraps(method)
    def call(self: "TimelineSync", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(method(self._timeline, *args, **kwargs))

    return call


class TimelineSync:
    """Access to documents by time, call by call."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="timeline", daemon=True)
        self._thread.start()
        try:
            self._timeline = self._run(self._open(url))
        except BaseException:
            self._end()
            raise

    @staticmethod
    async def _open(url: str) -> Timeline:
        # The client belongs to the loop that it is made in.
        return Timeline.open(url)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._timeline.close()
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    ensure_indexes = _waiting(Timeline.ensure_indexes)
    store = _waiting(Timeline.store)
    bulk_upsert = _waiting(Timeline.bulk_upsert)
    delete = _waiting(Timeline.delete)
    delete_many = _waiting(Timeline.delete_many)
    query = _waiting(Timeline.query)
    query_sorted = _waiting(Timeline.query_sorted)
    query_latest = _waiting(Timeline.query_latest)
    query_last = _waiting(Timeline.query_last)
    query_time = _waiting(Timeline.query_time)
    query_closest = _waiting(Timeline.query_closest)
    stats = _waiting(Timeline.stats)
    points = _waiting(Timeline.points)
