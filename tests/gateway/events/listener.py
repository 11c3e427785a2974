"""A client of events for tests, which checks each event against the OpenAPI document."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.gateway import conformance
from tests.gateway.api_client import DEADLINE_S


class Listener:
    """One stream; `last_id` is what a browser would send as Last-Event-ID."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""
        self.comments = 0

    async def next(self) -> dict[str, Any] | None:
        """Return the next event, None at the end of the stream."""
        data: list[str] = []
        async for line in self.response.content:
            text = line.decode().rstrip("\r\n")
            name, _, value = text.partition(": ")
            if text.startswith(":"):
                self.comments += 1
            elif name == "id":
                self.last_id = value
            elif name == "data":
                data.append(value)
            elif not text and data:
                event: dict[str, Any] = json.loads("\n".join(data))
                conformance.validate(conformance.EVENT, event)
                return event
        return None

    async def rest(self) -> list[dict[str, Any]]:
        """Return the events until the end of the stream."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found

    async def until(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the events up to the first one with these fields."""
        found: list[dict[str, Any]] = []
        while not found or not fields.items() <= found[-1].items():
            event = await self.next()
            assert event is not None, found
            found.append(event)
        return found


@asynccontextmanager
async def listening(
    url: str, query: str = "", last_id: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Listener]:
    """Listen to the events of a gateway; the stream has begun when the block does."""
    sent = {**(headers or {}), **({"Last-Event-ID": last_id} if last_id else {})}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=DEADLINE_S)
    async with (
        aiohttp.ClientSession(url, timeout=timeout) as http,
        http.get(f"/v1/events{query}", headers=sent) as response,
    ):
        assert response.status == 200, await response.text()
        listener = Listener(response)
        # The first message has the position and no data.
        assert (await response.content.readline()).startswith(b"retry: ")
        listener.last_id = (await response.content.readline()).decode().removeprefix("id: ").rstrip()
        yield listener
