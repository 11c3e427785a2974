"""What one gateway process has: connections, the cache of recipes, and the tasks that listen.

Owns their start and end. Never handles a request; handlers find the service in the application. Invariant: building the
application connects to nothing; everything opened at start is closed at the end.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from gateway.asking import Asker
from gateway.bell import Bell
from gateway.commits import Commits
from gateway.models import Models
from keepfit import connections
from keepfit.errors import UnavailableError
from keepfit.history import History
from keepfit.settings import Settings
from keepfit.store import Store

log = structlog.get_logger(__name__)

INDEX_PAUSE_S = 1.0


class Service:
    """All that handlers work with."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._store_client = connections.store_async(settings)
        self._queue_client = self._store_client if settings.queue_url is None else connections.queue_async(settings)
        self.bell = Bell(settings)
        self.store = Store(self._store_client, settings, self._queue_client, self.bell.ring)
        self.history = History(settings.mongo_url.get_secret_value())
        self.asker = Asker(self._queue_client, settings, self.bell)
        self.models = Models(self.store, self.history, self.asker)
        self.commits = Commits(self._store_client, self.store, self.models.forget)

    async def listen(self) -> None:
        """Run the background tasks until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.asker.read_forever())
            group.create_task(self.commits.read_forever())
            group.create_task(self._ensure_indexes())

    async def _ensure_indexes(self) -> None:
        while True:
            try:
                return await self.history.ensure_indexes()
            except UnavailableError as error:
                log.warning("indexes_not_made", reason=str(error))
                await asyncio.sleep(INDEX_PAUSE_S)

    async def close(self) -> None:
        """Close all connections."""
        await self.bell.close()
        self.history.close()
        await self._store_client.aclose()
        if self._queue_client is not self._store_client:
            await self._queue_client.aclose()


SERVICE = web.AppKey("service", Service)
SETTINGS = web.AppKey("settings", Settings)


async def lifespan(app: web.Application) -> AsyncIterator[None]:
    """Open the service with the application, and close it with it."""
    service = app[SERVICE] = Service(app[SETTINGS])
    listening = asyncio.create_task(service.listen())
    yield
    listening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listening
    await service.close()
