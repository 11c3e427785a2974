"""The response that sends events, in the form of the HTML standard (server-sent events).

Owns the form of each message and the heartbeats. Invariant: after any message that has arrived, its id is the position
from which the client continues.
"""

import asyncio
import time
from collections.abc import Callable

from aiohttp import hdrs
from aiohttp_sse import EventSourceResponse

from keepfit_gateway.events.feed import EventStream, Gap, Message
from keepfit_gateway.web.responses import encode_json

MEDIA_TYPE = "text/event-stream"
HEADERS = {hdrs.CACHE_CONTROL: "no-store", "X-Accel-Buffering": "no"}
# Clients connect again after this time.
RETRY_MS = 1000
# Proxies close a connection on which nothing is sent for a minute, some after 30 s.
HEARTBEAT_S = 15.0
# A client that has disconnected while there was nothing to send is noticed within this time.
CHECK_S = 1.0


class EventResponse(EventSourceResponse):
    """The response to one client; `prepared_s` is when its head was sent (`time.perf_counter()`)."""

    def __init__(self, send_timeout_s: float) -> None:
        super().__init__(send_timeout=send_timeout_s, ping_interval=HEARTBEAT_S)
        self.headers.update(HEADERS)
        self.prepared_s = time.perf_counter()

    async def send_from(self, stream: EventStream, timeout_s: float | None, goes_on: Callable[[], bool]) -> None:
        """Send messages until the gateway stops, `timeout_s` seconds have passed, or the client no longer `goes_on`."""
        loop = asyncio.get_running_loop()
        ends_s = None if timeout_s is None else loop.time() + timeout_s
        # An id without data moves the client's position: before the first event, and past those it did not select.
        await self.write(f"retry: {RETRY_MS}\r\nid: {stream.position}\r\n\r\n".encode())
        sent, due_s = stream.position, loop.time() + HEARTBEAT_S
        while not stream.is_closed and goes_on() and (ends_s is None or loop.time() < ends_s):
            wait_s = CHECK_S if ends_s is None else min(CHECK_S, ends_s - loop.time())
            for message in await stream.next(max(wait_s, 0.0)):
                await self.send(data_of(message), id=str(message.id))
                sent = message.id
            if loop.time() >= due_s:
                due_s = loop.time() + HEARTBEAT_S
                if sent != stream.position:
                    sent = stream.position
                    await self.write(f"id: {sent}\r\n\r\n".encode())


def data_of(message: Message) -> str:
    """Return the JSON of a message."""
    if isinstance(message, Gap):
        return encode_json({"kind": "gap", "timestamp": time.time(), "after": str(message.after)}).decode()
    return message.data
