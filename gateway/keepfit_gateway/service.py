"""The resources of one gateway process: connections, caches and background tasks.

Owns their start and end. Never handles a request; handlers find the service in the application. Invariants: building
the application opens no connection; everything opened at start is closed at the end.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterable

from aiohttp import web

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.backends.backoff import Backoff
from keepfit.errors import UnavailableError
from keepfit.history import Registry
from keepfit.observability.outage import Outage
from keepfit.observability.process_counts import Parts
from keepfit.recipe import uploads
from keepfit.rowlog.row_log import open_log
from keepfit.scoring.encoding import decode
from keepfit.settings import Settings
from keepfit.store import idle
from keepfit.store.dead_letters import DeadLetters
from keepfit.store.models import Store
from keepfit.store.pull_jobs import PullJobs
from keepfit_gateway.events.feed import EventFeed
from keepfit_gateway.file_transfer import FileTransfer
from keepfit_gateway.heartbeat import Heartbeat
from keepfit_gateway.history_writes import HistoryWrites
from keepfit_gateway.learning.acceptor import Acceptor
from keepfit_gateway.learning.commit_feed import CommitFeed
from keepfit_gateway.learning.open_rows import OpenRows
from keepfit_gateway.learning.recorder import Recorder
from keepfit_gateway.merged_metrics import ProcessMetrics
from keepfit_gateway.model_lookup import ModelLookup
from keepfit_gateway.model_overview import ModelOverview
from keepfit_gateway.prediction.cache import Cache
from keepfit_gateway.prediction.scorers import Scorers
from keepfit_gateway.prediction.without_worker import Counts
from keepfit_gateway.queue_servers import QueueServers, ServerOfKey
from keepfit_gateway.traffic import TrafficCounts
from keepfit_gateway.web.large_requests import ANSWERS_BYTES_MAX, Lane
from keepfit_gateway.web.open_connections import OpenConnections, connections_max
from keepfit_gateway.web.request_counts import RequestMetrics

INDEX_PAUSE_S, INDEX_PAUSE_S_MAX = 1.0, 10.0
# A single history query may read a million documents.
HISTORY_QUERIES_MAX = 4
CANCEL_PAUSE_S = 0.1
USES_S, USES_PER_CALL = 60.0, 1000
# The key lives for three turns: one may be late, and one may find the model unused.
FOLLOW_S, FOLLOWED_TTL_MS, FOLLOWED_PER_CALL = 1.0, 3000, 1000


class Service:
    """Everything that handlers use."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.settings = settings
        self.uploads = uploads.upload_keyring(settings.upload_keys.get_secret_value())
        self.request_metrics = RequestMetrics(parts)
        self.process_metrics = ProcessMetrics(parts)
        self.connections = OpenConnections(connections_max(settings.connections_max))
        self._store_client = redis_clients.store_async(settings, prompt=True)
        self.store = Store(self._store_client)
        self.queues = QueueServers(settings, self._store_client, self.store.ping)
        self.dead_letters = DeadLetters(self._store_client)
        self.pull_jobs = PullJobs(self._store_client, settings.job_keep_s)
        self.history = Registry(settings.mongo_url.get_secret_value())
        self.history_gate = asyncio.Semaphore(HISTORY_QUERIES_MAX)
        self.history_writes = HistoryWrites(settings, self.history)
        rows = open_log(settings.row_log_url)
        self.recorder = None if rows is None else Recorder(self._store_client, rows)
        self.acceptor = Acceptor(self._store_client, settings, self.queues.notify, self.recorder)
        self.open_rows = OpenRows(self._store_client, settings, self.acceptor, self.recorder)
        self.files = FileTransfer(lambda key: self.queues.server_of(key).client, settings)
        self.answers = Lane(ANSWERS_BYTES_MAX)
        self.cache = Cache(settings.predict_cache_bytes_max)
        self.scorers = Scorers(self.cache, decode, settings.scorer_cache_bytes_max, settings.scorer_bytes_max)
        self.predictions = Counts()
        self.mongo_outage = Outage("mongo", "models are neither created nor restored")
        self.overview = ModelOverview(self._store_client, self.history)
        self.models = ModelLookup(self.store, self.history, self.queues, self.cache.observe_version, self.overview)
        self.commit_feed = CommitFeed(
            self._store_client,
            self.store,
            self.models.invalidate,
            self.cache,
            settings.predict_staleness_s,
            self.scorers if self.scorers.enabled else None,
        )
        self.event_feed = EventFeed(self._store_client, settings.event_streams_max)
        own = ServerOfKey(self.queues, uuid.uuid4().hex)
        self.heartbeat = Heartbeat(
            own,
            lambda: self.request_metrics.answered,
            lambda: len(self.connections),
            lambda: len(self.event_feed),
        )
        self.traffic = TrafficCounts(own, self.heartbeat.name)

    def start(self) -> list[asyncio.Task[None]]:
        """Start the background tasks."""
        coroutines = (
            *self.queues.forever(),
            self.commit_feed.read_forever(),
            self._ensure_indexes(),
            self._probe_row_log(),
            self._note_uses(),
            self._follow(),
            self.open_rows.expire_forever(),
            self.event_feed.read_forever(),
            self.heartbeat.beat_forever(),
            self.traffic.publish_forever(),
        )
        return [asyncio.create_task(coroutine) for coroutine in coroutines]

    async def _ensure_indexes(self) -> None:
        backoff = Backoff(INDEX_PAUSE_S, INDEX_PAUSE_S_MAX)
        while True:
            try:
                await self.history.ensure_indexes()
            except UnavailableError as error:
                self.mongo_outage.begin(error)
                await asyncio.sleep(backoff.next_s())
            else:
                self.mongo_outage.end()
                return

    async def _probe_row_log(self) -> None:
        """Probe the row log, which creates it: a reader can distinguish an empty log from none."""
        if self.recorder is not None:
            with contextlib.suppress(UnavailableError):
                await self.recorder.check()

    async def _note_uses(self) -> None:
        """Note once a minute which models were used without a worker, so that they do not count as idle."""
        while True:
            await asyncio.sleep(USES_S)
            used = list(self.cache.take_used())
            for begin in range(0, len(used), USES_PER_CALL):
                # A model that leaves Redis for lack of a note comes back with its next use.
                with contextlib.suppress(UnavailableError):
                    await redis_scripts.run_async(self._store_client, *idle.touch(used[begin : begin + USES_PER_CALL]))

    async def _follow(self) -> None:
        """Have the scorers of new versions published, for models whose scorer is used while they learn."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            followed = self.scorers.take_followed()
            for begin in range(0, len(followed), FOLLOWED_PER_CALL):
                some = followed[begin : begin + FOLLOWED_PER_CALL]
                commands = (("SET", redis_keys.followed(name), "", "PX", FOLLOWED_TTL_MS) for name in some)
                # Without it, the model's next scorer is asked for.
                with contextlib.suppress(UnavailableError):
                    await redis_scripts.run_async(self._store_client, *commands)

    async def close(self) -> None:
        """Close all connections."""
        await self.heartbeat.close()
        await self.overview.close()
        await self.open_rows.close()
        await self.acceptor.close()
        await self.queues.close()
        self.history.close()
        await self._store_client.aclose()


SERVICE = web.AppKey("service", Service)
SETTINGS = web.AppKey("settings", Settings)
PARTS = web.AppKey("parts", Parts)


async def lifespan(app: web.Application) -> AsyncIterator[None]:
    """Open the service when the application starts, and close it when it stops."""
    service = app[SERVICE] = Service(app[SETTINGS], app[PARTS])
    tasks = service.start()
    yield
    await _cancel(tasks)
    await service.close()


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended.

    One call is not always enough: redis-py sends with `asyncio.wait_for`, which in Python 3.11 loses a cancellation
    that arrives when the send completes (python/cpython#86296).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_PAUSE_S)


async def release_waiters(app: web.Application) -> None:
    """Answer the requests that only wait for their commit, and end streams of events: shutdown waits for neither."""
    service = app[SERVICE]
    service.commit_feed.close_watches()
    service.event_feed.close()
