"""The queue's servers as one gateway uses them: usually one, or several among which the models are divided.

Owns which of them are up, and which serves a model. What is sent to a server belongs to that server alone:
:mod:`keepfit_gateway.worker_client`, :mod:`keepfit_gateway.learning.hints`. Never holds a row. Invariants: a server
that does not answer, or has no worker, gets nothing while another one can serve; what waited there is asked again
elsewhere; gateways need not agree, since the store decides who learns. With one server nothing is watched.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import redis.asyncio
import structlog

from keepfit.backends import queue_servers, redis_clients, redis_keys, redis_scripts
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.jobs import gateway_records, run_queue, traffic, waiting
from keepfit.jobs.gateway_records import GatewayRecord
from keepfit.jobs.messages import DownloadOptions, Operation, UploadOptions, WorkerReply
from keepfit.jobs.traffic import Counts
from keepfit.jobs.worker_records import WorkerRecord
from keepfit.settings import Settings
from keepfit_gateway.job_enqueuer import JobEnqueuer
from keepfit_gateway.learning.hints import LearnHints
from keepfit_gateway.worker_client import WorkerClient, Workers

log = structlog.get_logger(__name__)

WATCH_S = 0.25
# A server that does not answer for so long is away: its models are served elsewhere, which costs little.
ANSWER_S = 1.0
# For lists and counts that are read from all servers: less than a probe takes (:mod:`keepfit_gateway.health`).
READ_S = 0.6

T = TypeVar("T")


class QueueServer:
    """One server: its client, what this gateway sends to it, and whether it answers and has workers."""

    def __init__(
        self,
        settings: Settings,
        client: redis.asyncio.Redis,
        ping_store: Callable[[], Awaitable[None]],
        on_away: Callable[["QueueServer"], None],
        on_lost: Callable[["QueueServer", list[str]], None],
    ) -> None:
        self.name = queue_servers.name_of(settings.queue_url_or_store)
        self.client = client
        self.enqueuer = JobEnqueuer(settings)
        self.hints = LearnHints(client, settings, self.enqueuer, lambda models: on_lost(self, models))
        self.worker_client = WorkerClient(client, settings, self.enqueuer, ping_store, lambda: on_away(self))
        self.answers = self.has_workers = True

    async def close(self) -> None:
        """Finish what is being sent, and close the connections; not the client's."""
        await self.hints.close()
        await self.worker_client.close()
        await self.enqueuer.close()


class ServerOfKey:
    """The server of a key at the moment of each command; for functions that take no more of a client than its pool."""

    def __init__(self, servers: "QueueServers", key: str) -> None:
        self._servers, self._key = servers, key

    @property
    def connection_pool(self) -> Any:
        """The pool of the server that serves the key now."""
        return self._servers.server_of(self._key).client.connection_pool


class QueueServers:
    """All servers of the queue; `store_client` is used if the store is the queue's Redis, too."""

    def __init__(
        self, settings: Settings, store_client: redis.asyncio.Redis, ping_store: Callable[[], Awaitable[None]]
    ) -> None:
        self._store_client = store_client
        self._timeout_s = settings.predict_timeout_s
        self.servers = [
            QueueServer(
                one,
                store_client if one.queue_url is None else redis_clients.queue_async(one),
                ping_store,
                self._note_away,
                self._notify_others,
            )
            for one in queue_servers.settings_of(settings)
        ]
        self._usable, self._names = self.servers, [server.name for server in self.servers]

    # Which server

    def server_of(self, key: str) -> QueueServer:
        """Return the server of a key, usually the hash of a model, among those that are up."""
        return self._usable[queue_servers.pick(key, self._names)]

    def _update(self, server: QueueServer, *, answers: bool, has_workers: bool) -> None:
        if (server.answers, server.has_workers) == (answers, has_workers):
            return
        if answers and not server.answers:
            log.info("queue_server_back", server=server.name)
        elif server.answers and not answers:
            log.warning("queue_server_away", server=server.name)
        server.answers, server.has_workers = answers, has_workers
        answering = [one for one in self.servers if one.answers]
        self._usable = [one for one in answering if one.has_workers] or answering or self.servers
        self._names = [one.name for one in self._usable]

    def _note_away(self, server: QueueServer) -> None:
        """Stop using a server that does not answer, if another one is up; what waits there is asked again elsewhere."""
        if len(self.servers) == 1:
            return
        self._update(server, answers=False, has_workers=False)
        if server not in self._usable:
            public = "A server of the queue is unavailable."
            server.worker_client.fail_all(UnavailableError(f"{public[:-1]}: {server.name}", public))

    async def _look(self, server: QueueServer) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                (workers,) = await redis_scripts.run_async(server.client, ("SCARD", redis_keys.RQ_WORKERS))
        except (UnavailableError, TimeoutError):
            self._note_away(server)
        else:
            self._update(server, answers=True, has_workers=workers > 0)

    async def watch_forever(self) -> None:
        """Look which servers are up until cancelled; one alone is always used."""
        while len(self.servers) > 1:
            try:
                await asyncio.gather(*map(self._look, self.servers))
            except Exception:
                log.exception("queue_servers_unwatched")
            await asyncio.sleep(WATCH_S)

    # Work

    async def ask(
        self,
        model_hash: str,
        operation: Operation,
        generation: int = 0,
        rows: Any = None,
        timeout_s: float | None = None,
        *,
        upload: UploadOptions | None = None,
        download: DownloadOptions | None = None,
        **options: Any,
    ) -> WorkerReply:
        """Send a worker request to the model's server, and again to another one if it goes away meanwhile.

        A request about a file goes to the server that has the file, and fails with it. Otherwise as
        :meth:`keepfit_gateway.worker_client.WorkerClient.ask`.
        """
        file = upload or download
        server = self.server_of(file.key if file else model_hash)
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + (self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return await server.worker_client.ask(
                    model_hash, operation, generation, rows, timeout_s, upload=upload, download=download, **options
                )
            except UnavailableError:
                if len(self.servers) == 1 or file:
                    raise
                if server.answers:
                    await self._look(server)
                timeout_s = ends_s - loop.time()
                if server in self._usable or timeout_s <= 0:
                    raise
            server = self.server_of(model_hash)

    def client_of(self, model_hash: str) -> WorkerClient:
        """Return the client of the workers that serve a model."""
        return self.server_of(model_hash).worker_client

    def notify(self, model_hash: str) -> None:
        """Notify the learn queue of a model that has pending requests."""
        self.server_of(model_hash).hints.put(model_hash)

    def _notify_others(self, server: QueueServer, models: list[str]) -> None:
        """Notify another server of the models of which `server` was not notified; without one, the sweep finds them."""
        self._note_away(server)
        if server not in self._usable:
            for model_hash in models:
                self.notify(model_hash)

    # What is read from all servers

    @property
    def pending(self) -> int:
        """Number of worker requests without a reply."""
        return sum(server.worker_client.pending for server in self.servers)

    @property
    def away(self) -> int:
        """Number of servers that do not answer."""
        return sum(not server.answers for server in self.servers)

    async def read_each(self, read: Callable[[QueueServer], Awaitable[T]]) -> list[T]:
        """Return what is read from each server that answers in time; raise UnavailableError if none does."""
        if len(self.servers) == 1:
            return [await read(self.servers[0])]
        asked = [server for server in self.servers if server.answers] or self.servers
        answers = await asyncio.gather(*(self._read(server, read) for server in asked))
        found = [answer for answer in answers if not isinstance(answer, KeepfitError)]
        if not found:
            raise UnavailableError("No server of the queue answers.")
        return found

    async def _read(self, server: QueueServer, read: Callable[[QueueServer], Awaitable[T]]) -> T | UnavailableError:
        try:
            async with asyncio.timeout(READ_S):
                return await read(server)
        except UnavailableError as error:
            return error
        except TimeoutError:
            return UnavailableError("Redis is unavailable: it did not answer in time.")

    async def worker_records(self) -> list[WorkerRecord]:
        """Return the record of each worker alive, ordered by name."""
        each = await self.read_each(lambda server: server.worker_client.worker_records())
        return sorted((record for found in each for record in found), key=lambda record: record.name)

    async def workers(self) -> Workers:
        """Count the workers alive."""
        each = await self.read_each(lambda server: server.worker_client.workers())
        return Workers(sum(found.alive for found in each), sum(found.busy for found in each))

    async def backlog(self) -> dict[str, int]:
        """Count the entries in the queue's servers, by kind."""
        commands = run_queue.BACKLOG.values()
        each = await self.read_each(lambda server: redis_scripts.run_async(server.client, *commands))
        return dict(zip(run_queue.BACKLOG, map(sum, zip(*each, strict=True)), strict=True))

    async def gateways(self) -> list[GatewayRecord]:
        """Return the processes of gateways that are alive."""
        return gateway_records.joined(await self.read_each(lambda server: gateway_records.read_all(server.client)))

    async def traffic(self, hashes: Sequence[str]) -> dict[str, Counts]:
        """Return the traffic of models in the last minute."""
        return traffic.joined(await self.read_each(lambda server: traffic.read(server.client, hashes)))

    async def unclaimed_s(self) -> float:
        """Return for how many seconds no lease has claimed the work in a learn queue."""
        return max(await self.read_each(lambda server: waiting.unclaimed_s(server.client)))

    # Background tasks, and the end

    def forever(self) -> list[Any]:
        """Return the coroutines of the background tasks."""
        return [self.watch_forever(), *(server.worker_client.read_forever() for server in self.servers)]

    async def close(self) -> None:
        """Finish what is being sent, and close all connections but the store's."""
        for server in self.servers:
            await server.close()
            if server.client is not self._store_client:
                with suppress(redis.RedisError):
                    await server.client.aclose()
