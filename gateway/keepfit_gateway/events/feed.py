"""The feed: reads the stream of events once for all clients of this process, and hands each the events it selects.

Owns where each client is in the stream, and how many clients there may be. Never writes to a client. Invariants: a
client gets each event that it selects once, in the order of the stream, from the position on that it named; events that
are gone are reported to it as a gap; memory per client is bounded. A client that is too slow for the feed loses
nothing: it reads the stream itself from where it is, as a new one does, until it has caught up.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import redis.asyncio
import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.backoff import Backoff
from keepfit.errors import OverloadedError, UnavailableError
from keepfit.observability.outage import Outage
from keepfit.store import events
from keepfit.store.events import Event, EventId

log = structlog.get_logger(__name__)

# Shorter than the time after which the connection would count as broken.
BLOCK_MS = 500
READ_COUNT = 500
# What a client reads of the stream in one round trip.
PAGE = 100
# What waits for one client; above that it reads the stream itself. Clients share the events that wait for several.
WAITING_MAX, WAITING_BYTES_MAX = 1000, 256 * 1024
RETRY_AFTER_S = 10
# Pause between two attempts to reach Redis, and while the feed does not read yet.
PAUSE_S, RECONNECT_S, RECONNECT_S_MAX = 0.05, 0.2, 2.0


@dataclass(frozen=True, slots=True)
class Gap:
    """Events after `after` are gone; those after `id` are still there."""

    id: EventId
    after: EventId


Message = Event | Gap
Selects = Callable[[Event], bool]


class EventStream:
    """The place of one client in the stream; `position` is the last event that was handed out or not selected."""

    def __init__(self, feed: "EventFeed", client: redis.asyncio.Redis, selects: Selects) -> None:
        self.position = events.BEGINNING
        self._feed = feed
        self._client = client
        self._selects = selects
        self._is_live = False
        self._waiting: list[Event] = []
        self._bytes = 0
        # The last event that was offered, selected or not.
        self._seen = events.BEGINNING
        self._wake = asyncio.Event()

    async def begin(self, position: EventId | None) -> None:
        """Begin after `position`, or with the next event.

        Raises
        ------
        UnavailableError
            If Redis is unavailable.
        """
        self.position = await events.newest(self._client) if position is None else position

    @property
    def is_closed(self) -> bool:
        """Whether the gateway stops."""
        return self._feed.is_closed

    async def next(self, timeout_s: float) -> Sequence[Message]:
        """Return the next messages; none if there are none within `timeout_s` seconds, or the gateway stops."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_closed:
                    found: Sequence[Message] = ()
                    if not self._is_live:
                        found = await self._catch_up()
                    elif self._seen > self.position:
                        found = self._take()
                    else:
                        self._wake.clear()
                        await self._wake.wait()
                    if found:
                        return found
        except TimeoutError:
            pass
        return ()

    def offer(self, found: Sequence[Event]) -> None:
        """Take events of the feed, unless the client has not caught up."""
        if not self._is_live:
            return
        for event in found:
            if event.id <= self._seen:
                continue
            self._seen = event.id
            if self._selects(event):
                self._waiting.append(event)
                self._bytes += len(event.data)
        if len(self._waiting) > WAITING_MAX or self._bytes > WAITING_BYTES_MAX:
            self.interrupt()
        self._wake.set()

    def interrupt(self) -> None:
        """Have the client read the stream itself, from its position on."""
        self._is_live = False
        self._waiting, self._bytes = [], 0
        self._wake.set()

    def wake(self) -> None:
        """End the wait for messages."""
        self._wake.set()

    def _take(self) -> list[Event]:
        found, self._waiting, self._bytes = self._waiting, [], 0
        self.position = self._seen
        return found

    async def _catch_up(self) -> list[Message]:
        """Read a page of the stream; join the feed if that is not ahead of it."""
        try:
            page, start = await events.read_after(self._client, self.position, PAGE)
        except UnavailableError:
            await asyncio.sleep(RECONNECT_S)
            return []
        found: list[Message] = [Gap(start, self.position)] if start != self.position else []
        found += [event for event in page if self._selects(event)]
        self.position = self._seen = page[-1].id if page else start
        is_behind = self._feed.position is None or self._feed.position > self.position
        self._is_live = len(page) < PAGE and not is_behind
        if not found and not page and is_behind:
            await asyncio.sleep(PAUSE_S)
        return found


class EventFeed:
    """The reader of one gateway process, and its clients, at most `streams_max`. It reads while there are any."""

    def __init__(self, client: redis.asyncio.Redis, streams_max: int) -> None:
        self.streams_max = streams_max
        self.is_closed = False
        # The last event that was read; None while the feed does not read.
        self.position: EventId | None = None
        self._client = client
        self._streams: set[EventStream] = set()
        self._wanted = asyncio.Event()
        self._backoff = Backoff(RECONNECT_S, RECONNECT_S_MAX)
        self._outage = Outage("store", "events are not sent")

    def __len__(self) -> int:
        return len(self._streams)

    @contextmanager
    def open(self, selects: Selects) -> Iterator[EventStream]:
        """Serve a client until the block ends.

        Raises
        ------
        OverloadedError
            If there are as many clients as there may be.
        """
        if len(self._streams) >= self.streams_max:
            raise OverloadedError(
                f"This gateway sends events to {self.streams_max} clients already (KEEPFIT_EVENT_STREAMS_MAX).",
                RETRY_AFTER_S,
            )
        stream = EventStream(self, self._client, selects)
        self._streams.add(stream)
        self._wanted.set()
        try:
            yield stream
        finally:
            self._streams.discard(stream)

    def close(self) -> None:
        """End all streams, because the gateway stops."""
        self.is_closed = True
        for stream in self._streams:
            stream.wake()

    async def read_forever(self) -> None:
        """Read while there are clients, and again after each interruption, until cancelled."""
        while True:
            if not self._streams:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                await self._read()
            except UnavailableError as error:
                self._outage.begin(error)
            except Exception:
                # A gateway that runs and sends no events is worse than one that reads them again.
                log.exception("events_unreadable")
            else:
                continue
            finally:
                self.position = None
                for stream in self._streams:
                    stream.interrupt()
            await asyncio.sleep(self._backoff.next_s())

    async def _read(self) -> None:
        """Read while there are clients."""
        self.position = await events.newest(self._client)
        while self._streams:
            command = (
                "XREAD",
                "BLOCK",
                BLOCK_MS,
                "COUNT",
                READ_COUNT,
                "STREAMS",
                redis_keys.EVENTS,
                str(self.position),
            )
            (answer,) = await redis_scripts.run_async(self._client, command)
            self._outage.end()
            self._backoff.reset()
            if answer:
                ((_, entries),) = answer.items() if isinstance(answer, dict) else answer
                found = events.parse(entries)
                self.position = found[-1].id
                for stream in self._streams:
                    stream.offer(found)
