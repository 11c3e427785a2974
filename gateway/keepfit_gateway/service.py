"""What one gateway process has: connections, the cache of recipes, and the tasks that listen.

Owns their start and end. Never handles a request; handlers find the service in the application. Invariant: building the
application connects to nothing; everything opened at start is closed at the end.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from aiohttp import web

from keepfit.backends import redis_clients
from keepfit.errors import UnavailableError
from keepfit.history import Registry
from keepfit.observability.outage import Outage
from keepfit.recipe import uploads
from keepfit.rowlog.row_log import open_log
from keepfit.settings import Settings
from keepfit.store.dead_letters import DeadLetters
from keepfit.store.models import Store
from keepfit_gateway.job_enqueuer import JobEnqueuer
from keepfit_gateway.learning.acceptor import Acceptor
from keepfit_gateway.learning.commit_feed import CommitFeed
from keepfit_gateway.learning.recorder import Recorder
from keepfit_gateway.model_lookup import ModelLookup
from keepfit_gateway.prediction.cache import Cache
from keepfit_gateway.web.request_counts import RequestMetrics
from keepfit_gateway.worker_client import WorkerClient

INDEX_PAUSE_S = 1.0
# One question to the history may read a million documents.
HISTORY_AT_ONCE = 4
CANCEL_PAUSE_S = 0.1


class Service:
    """All that handlers work with."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.uploads = uploads.upload_keyring(settings.upload_keys.get_secret_value())
        self.request_metrics = RequestMetrics()
        self._store_client = redis_clients.store_async(settings, prompt=True)
        self._queue_client = self._store_client if settings.queue_url is None else redis_clients.queue_async(settings)
        self.job_enqueuer = JobEnqueuer(settings)
        self.store = Store(self._store_client)
        self.dead_letters = DeadLetters(self._store_client)
        self.history = Registry(settings.mongo_url.get_secret_value())
        self.history_gate = asyncio.Semaphore(HISTORY_AT_ONCE)
        rows = open_log(settings.row_log_url)
        self.recorder = None if rows is None else Recorder(self._store_client, rows)
        self.acceptor = Acceptor(self._store_client, self._queue_client, settings, self.job_enqueuer, self.recorder)
        self.worker_client = WorkerClient(self._queue_client, settings, self.job_enqueuer, self.store.ping)
        self.cache = Cache(settings.predict_cache_bytes_max)
        self.models = ModelLookup(self.store, self.history, self.worker_client, self.cache.observe_version)
        self.commit_feed = CommitFeed(
            self._store_client, self.store, self.models.invalidate, self.cache, settings.predict_staleness_s
        )

    def listen(self) -> list[asyncio.Task[None]]:
        """Start the background tasks."""
        work = (
            self.worker_client.read_forever(),
            self.commit_feed.read_forever(),
            self._ensure_indexes(),
            self._begin_log(),
        )
        return [asyncio.create_task(coroutine) for coroutine in work]

    async def _ensure_indexes(self) -> None:
        outage = Outage("mongo", "no indexes are made")
        while True:
            try:
                await self.history.ensure_indexes()
            except UnavailableError as error:
                outage.begin(error)
                await asyncio.sleep(INDEX_PAUSE_S)
            else:
                outage.end()
                return

    async def _begin_log(self) -> None:
        """Begin the row log, so that whoever reads it can tell an empty one from none."""
        if self.recorder is not None:
            with contextlib.suppress(UnavailableError):
                await self.recorder.check()

    async def close(self) -> None:
        """Close all connections."""
        await self.acceptor.close()
        await self.worker_client.close()
        await self.job_enqueuer.close()
        self.history.close()
        await self._store_client.aclose()
        if self._queue_client is not self._store_client:
            await self._queue_client.aclose()


SERVICE = web.AppKey("service", Service)
SETTINGS = web.AppKey("settings", Settings)


async def lifespan(app: web.Application) -> AsyncIterator[None]:
    """Open the service with the application, and close it with it."""
    service = app[SERVICE] = Service(app[SETTINGS])
    tasks = service.listen()
    yield
    await _ended(tasks)
    await service.close()


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended.

    Once is not always enough: redis-py sends with `asyncio.wait_for`, which in Python 3.11 swallows a cancellation that
    comes just as the send is done (python/cpython#86296).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_PAUSE_S)


async def release_waiters(app: web.Application) -> None:
    """Answer those who only wait for rows to be learned, so that stopping takes no longer than the work in hand."""
    app[SERVICE].commit_feed.end()
