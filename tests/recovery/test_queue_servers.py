"""Several servers of the queue: one is killed while rows flow, and comes back empty; each row is learned once."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
import redis

from keepfit.backends import queue_servers, redis_keys
from tests.gateway.api_client import REGRESSOR, Api, Twin, eventually
from tests.recovery.deployment import Deployment, ManagedProcess, deployed

MODELS = 9
ROW = [0.5, -1.0]
# What a prediction may take while a server of the queue is away, its retries included: below a second where the machine
# is quiet.
PREDICTED_S = 5.0


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Run one deployment with three servers of the queue."""
    with deployed(tmp_path_factory.mktemp("servers"), queues=3) as running:
        yield running


@pytest.fixture
async def apis(deployment: Deployment) -> AsyncIterator[list[Api]]:
    """Return the APIs of both gateways."""
    async with AsyncExitStack() as stack:
        yield [Api(await stack.enter_async_context(aiohttp.ClientSession(url))) for url in deployment.urls]


def workers_at(server: ManagedProcess) -> int:
    """Return how many workers are registered at a server."""
    with redis.Redis(port=server.port) as client:
        return int(client.scard(redis_keys.RQ_WORKERS))


class Sender:
    """Sends rows to one model, one after the other through both gateways, and predicts in between."""

    def __init__(self, apis: list[Api], path: str) -> None:
        self._apis, self._path = apis, path
        self.sent: list[tuple[list[list[float]], list[float]]] = []
        self.sequences: list[int] = []
        self.slowest_s = 0.0
        self.stop = False

    async def begin(self) -> None:
        """Send a first row, and wait until it is learned: the model can predict."""
        self.sent.append(([ROW], [1.0]))
        learned = await self._apis[0].learn(self._path, *self.sent[0])
        self.sequences.append(learned["sequence"])

    async def run(self) -> None:
        """Send and predict until stopped; every request is answered without a retry of the client."""
        while not self.stop:
            for api in self._apis:
                number = len(self.sent) + 1
                rows = ([[number / 7 % 1, number / 11 % 1]], [number / 13 % 1])
                self.sent.append(rows)
                document = {"X": rows[0], "y": rows[1]}
                accepted = (await api.post(f"{self._path}/partial_fit", document)).of(202)
                self.sequences.append(accepted["sequence"])
                began_s = time.monotonic()
                # No two alike: a kept answer needs no worker.
                await api.predict(self._path, [[float(number), -1.0]])
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            await asyncio.sleep(0.02)


async def test_a_killed_server_of_the_queue_moves_its_models_and_gets_them_back(
    deployment: Deployment, apis: list[Api]
) -> None:
    """Rows are learned once and in order, predictions go on; its workers go and return."""
    api, killed = apis[0], deployment.queues[1]
    await eventually(lambda: asyncio.sleep(0, all(map(workers_at, deployment.queues))), "a worker at each server")
    paths = [await api.make({"type": "moved", "number": number}, REGRESSOR) for number in range(MODELS)]
    names = [queue_servers.name_of(one.queue_url_or_store) for one in queue_servers.settings_of(deployment.settings)]
    homes = {queue_servers.pick(path.rpartition("/")[2], names) for path in paths}
    assert homes == {0, 1, 2}
    senders = [Sender(apis, path) for path in paths]
    for sender in senders:
        await sender.begin()

    async def all_send(rows: int) -> None:
        goals = [len(sender.sent) + rows for sender in senders]
        await eventually(
            lambda: asyncio.sleep(0, all(len(s.sent) >= goal for s, goal in zip(senders, goals, strict=True))),
            "more rows of each model",
        )

    async def ready() -> Any:
        return (await api.get("/readyz")).of(200)

    async def is_ok() -> bool:
        found = await ready()
        return found["status"] == "ok" and found["workers"] == 3

    async with asyncio.TaskGroup() as running:
        for sender in senders:
            running.create_task(sender.run())
        await all_send(10)
        with killed.stopped():
            await all_send(10)
            found = await ready()
            assert (found["status"], found["queue"]) == ("degraded", "ok")
            assert "Servers of the queue that do not answer: 1 of 3" in found["detail"]
            assert "keepfit_queue_servers_away 1.0" in (await api.get("/metrics")).body.decode()
            # Its worker has moved.
            others = [server for server in deployment.queues if server is not killed]
            await eventually(
                lambda: asyncio.sleep(0, sum(map(workers_at, others)) == 3), "three workers at two servers"
            )
            await all_send(10)
        await eventually(lambda: asyncio.sleep(0, all(map(workers_at, deployment.queues))), "a worker at each server")
        await eventually(is_ok, "an answer that all is well")
        with redis.Redis(port=killed.port) as client:
            before = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
            await all_send(10)
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] > before
        for sender in senders:
            sender.stop = True

    for sender, path in zip(senders, paths, strict=True):

        async def is_learned(path: str = path) -> bool:
            return bool((await api.model(path))["inbox"] == 0)

        await eventually(is_learned, "all rows learned")
        assert (await api.model(path))["rows_seen"] == len(sender.sent)
        assert sender.sequences == list(range(1, len(sender.sent) + 1))
        twin = Twin(REGRESSOR)
        for X, y in sender.sent:
            twin.learn(X, y)
        assert (await api.predict(path, [ROW]))["predictions"] == twin.predict([ROW])
    assert max(sender.slowest_s for sender in senders) < PREDICTED_S


async def test_a_server_of_the_queue_that_hangs_is_not_waited_for(deployment: Deployment, apis: list[Api]) -> None:
    """Predictions of its models are answered by the others once it has not answered for a second."""
    api = apis[0]
    paths = [await api.make({"type": "hung", "number": number}, REGRESSOR) for number in range(MODELS)]
    for path in paths:
        await api.learn(path, [ROW], [1.0])
    with deployment.queues[2].hung():

        async def is_degraded() -> bool:
            return bool((await api.get("/readyz")).json()["status"] == "degraded")

        await eventually(is_degraded, "a degraded state")
        for path in paths:
            assert (await api.learn(path, [ROW], [1.0]))["rows_seen"] == 2
            await api.predict(path, [[3.0, 4.0]])


async def test_what_is_read_about_the_queue_covers_all_servers(deployment: Deployment, apis: list[Api]) -> None:
    """`GET /v1/workers`, the state of the system and the metrics have the workers and gateways of all servers."""
    api = apis[0]

    async def all_are_listed() -> bool:
        workers = (await api.get("/v1/workers")).of(200)["workers"]
        system = (await api.get("/v1/system")).of(200)
        return len(workers) == len(system["workers"]) == 3 and len(system["gateways"]) == 2

    await eventually(all_are_listed, "three workers and two gateways")
    assert 'keepfit_workers{state="ready"}' in (await api.get("/metrics")).body.decode()
