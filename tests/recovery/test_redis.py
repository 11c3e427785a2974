"""Redis stopped, hung, or refusing commands: the answers meanwhile, and the time until everything works again."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
import structlog
from pydantic import SecretStr

from keepfit.backends import redis_clients
from keepfit.local.servers import accepts, free_port, redis_command
from keepfit.settings import Settings
from tests import servers
from tests.gateway.api_client import CRASHES, REGRESSOR, Api, Reply, eventually, serving
from tests.recovery.deployment import Deployment, ManagedProcess, deployed

log = structlog.get_logger(__name__)

# Outages of 30 s take half a minute each; they run only if the variable is set.
AWAY_S = float(os.environ.get("RECOVERY_AWAY_S", "3"))
LABELLED = {"X": [[1.0, 2.0]], "y": [1.0]}
ROWS = {"X": [[1.0, 2.0]]}
COMPUTED = {"Cache-Control": "no-cache"}
# The documented bound is 2 s, for a machine that does nothing else. Without the variable only a hang fails.
FIRST_ANSWER_S = float(os.environ.get("RECOVERY_FIRST_S", "60"))
LINES_PER_S = 3.0
CPU_SHARE = 0.5


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Run one deployment for all tests of this module; each test leaves it running."""
    with deployed(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
async def apis(deployment: Deployment) -> AsyncIterator[list[Api]]:
    """Return the APIs of both gateways."""
    async with AsyncExitStack() as stack:
        yield [Api(await stack.enter_async_context(aiohttp.ClientSession(url))) for url in deployment.urls]


def check_unavailable(reply: Reply) -> None:
    """Check that an answer asks to try again later."""
    reply.problem(503)
    assert int(reply.headers["Retry-After"]) >= 1


async def call_during_outage(apis: list[Api], path: str, dependency: str) -> int:
    """Send all kinds of requests while `dependency` is unavailable; return how many rows were accepted."""
    accepted = 0
    fit = [api.post(f"{path}/partial_fit", LABELLED) for api in apis]
    predict = [api.post(f"{path}/predict", ROWS, COMPUTED) for api in apis]
    replies = await asyncio.gather(*fit, *predict)
    for reply in replies[: len(apis)]:
        if dependency == "queue":
            # Accepted rows are in the store; the queue only gets hints.
            reply.of(202)
            accepted += 1
        else:
            check_unavailable(reply)
    for reply in replies[len(apis) :]:
        check_unavailable(reply)
    ready = (await apis[0].get("/readyz")).of(503)
    assert (ready["status"], ready["mongo"]) == ("unavailable", "ok")
    assert {name for name in ("redis", "queue") if ready[name] != "ok"} == {
        "redis" if dependency == "store" else "queue"
    }
    assert (await apis[0].get("/livez")).status == 200
    scraped = (await apis[0].get("/metrics")).body.decode()
    assert f'keepfit_dependency_up{{dependency="{dependency}"}} 0.0' in scraped
    return accepted


async def first_answers(apis: list[Api], path: str) -> float:
    """Send learn and predict requests to every gateway until both succeed; return the seconds until the last success.

    A client's own key makes the repeats of a learning request one request.
    """
    started = time.monotonic()

    async def until(api: Api, call: Callable[[], Awaitable[Reply]]) -> None:
        async def answered() -> bool:
            return (await call()).status == 200

        await eventually(answered, "the first answer", seconds=FIRST_ANSWER_S)

    calls = []
    for i, api in enumerate(apis):
        headers = {"Idempotency-Key": f"back-{path[-8:]}-{i}", "Prefer": "wait=30"}
        calls.append(until(api, lambda api=api, h=headers: api.post(f"{path}/partial_fit", LABELLED, h)))
        calls.append(until(api, lambda api=api: api.post(f"{path}/predict", ROWS, COMPUTED)))
    await asyncio.gather(*calls)
    return time.monotonic() - started


@pytest.mark.parametrize("how", ["stopped", "hung"])
@pytest.mark.parametrize("dependency", ["store", "queue"])
async def test_an_unavailable_redis_is_reported_and_recovered_from(
    deployment: Deployment, apis: list[Api], metadata: dict[str, Any], dependency: str, how: str
) -> None:
    """With Redis killed or hung gateways answer 503 soon and workers wait; when it is back no row is lost."""
    path = await apis[0].make(metadata, REGRESSOR)
    for api in apis:
        await api.learn(path, **LABELLED)
        await api.predict(path, **ROWS)
    server: ManagedProcess = getattr(deployment, dependency)
    missing: AbstractContextManager[None] = server.stopped() if how == "stopped" else server.hung()
    workers = deployment.workers.children()
    lines = [len(service.lines()) for service in deployment.services]
    cpu = [service.cpu_s() for service in deployment.services]
    accepted = 2
    # In this thread: a server ends when the thread that started it ends.
    missing.__enter__()
    try:
        started = time.monotonic()
        accepted += await call_during_outage(apis, path, dependency)
        await asyncio.sleep(max(AWAY_S - (time.monotonic() - started), 0))
        away_s = time.monotonic() - started
        for service, line, used in zip(deployment.services, lines, cpu, strict=True):
            assert (service.cpu_s() - used) / away_s < CPU_SHARE
            assert (len(service.lines()) - line) / max(away_s, AWAY_S) < LINES_PER_S, service.lines()[line:]
        assert deployment.workers.children() == workers
    finally:
        missing.__exit__(None, None, None)
    first_s = await first_answers(apis, path)
    log.info("first_answers", dependency=dependency, how=how, away_s=away_s, seconds=first_s)

    async def all_learned() -> bool:
        return bool((await apis[0].model(path))["inbox"] == 0)

    await eventually(all_learned, "learning what was accepted")
    seen = (await apis[0].model(path))["rows_seen"]
    # A request that got a 503 from a hung store may have been accepted nevertheless.
    unsure = 2 if (dependency, how) == ("store", "hung") else 0
    assert accepted + 2 <= seen <= accepted + 2 + unsure
    assert deployment.workers.children() == workers
    assert not [line for service in deployment.services for line in service.lines() if CRASHES.search(line)]


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    """Return a connection to the Redis of the test."""
    opened = redis_clients.store_sync(settings)
    yield opened
    opened.close()


def held(client: redis.Redis) -> dict[bytes, Any]:
    """Return all data of models in Redis, except idempotency keys, which expire."""
    found: dict[bytes, Any] = {}
    for key in client.scan_iter("kf:{*"):
        if b":idem:" not in key:
            kind = client.type(key)
            found[key] = client.hgetall(key) if kind == b"hash" else (kind, client.dump(key))
    return found


@pytest.mark.parametrize(
    ("break_it", "mend_it", "said"),
    [
        pytest.param(("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OOM", id="no memory"),
        pytest.param(("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "READONLY", id="a replica"),
        pytest.param(
            ("ACL", "SETUSER", "default", "-@all", "+@connection", "+acl"),
            ("ACL", "SETUSER", "default", "+@all"),
            "NOPERM",
            id="no permission",
        ),
    ],
)
async def test_a_redis_that_refuses_commands_accepts_no_partial_request(
    settings: Settings,
    client: redis.Redis,
    metadata: dict[str, Any],
    break_it: tuple[str, ...],
    mend_it: tuple[str, ...],
    said: str,
) -> None:
    """If Redis is out of memory, a replica or denies access, the answer is a 503 with the reason; nothing is stored."""
    async with serving(settings) as api:
        path = await api.make(metadata, REGRESSOR)
        (await api.post(f"{path}/partial_fit", LABELLED)).of(202)
        before = held(client)
        client.execute_command(*break_it)
        try:
            large = {"X": [[1.0, 2.0]] * 20_000, "y": [1.0] * 20_000}
            for document in (LABELLED, large):
                reply = await api.post(f"{path}/partial_fit", document)
                check_unavailable(reply)
                assert said in reply.json()["detail"]
        finally:
            client.execute_command(*mend_it)
        assert held(client) == before
        assert (await api.model(path))["inbox"] == 1
        assert (await api.post(f"{path}/partial_fit", LABELLED)).of(202)["sequence"] == 2


async def test_a_loading_redis_is_unavailable(settings: Settings, tmp_path: Path, metadata: dict[str, Any]) -> None:
    """While Redis loads its data after a start every request gets a 503, and the log says why; then it succeeds."""
    port, folder = free_port(), tmp_path / "loads"
    command, log = redis_command(port, folder), tmp_path / "loads.log"
    url = SecretStr(f"redis://127.0.0.1:{port}/0")
    loading = settings.model_copy(update={"store_url": url})
    async with serving(loading) as api:
        with servers.running(command, log, lambda: accepts(port)), redis_clients.store_sync(loading) as client:
            path = await api.make(metadata, REGRESSOR)
            with client.pipeline(transaction=False) as pipe:
                for i in range(3000):
                    pipe.set(f"ballast:{i}", "x" * 64)
                pipe.execute()
            client.bgrewriteaof()
            servers.wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "a compact file")
        slowly = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
        with (
            structlog.testing.capture_logs() as logged,
            servers.running([*command, *slowly], log, lambda: accepts(port)),
        ):

            async def refused() -> bool:
                reply = await api.get(path)
                return reply.status == 503 and any("loading" in line.get("reason", "") for line in logged)

            await eventually(refused, "a 503 while Redis loads")

            async def back() -> bool:
                return (await api.get(path)).status == 200

            await eventually(back, "the return")


async def test_a_wrong_password_is_reported_and_not_shown(settings: Settings, client: redis.Redis) -> None:
    """With a wrong password requests get a 503, the log has the reason, and no answer contains the password."""
    client.config_set("requirepass", "right-one")
    try:
        url = settings.store_url.get_secret_value().replace("redis://", "redis://:wrong-one@")
        wrong = settings.model_copy(update={"store_url": type(settings.store_url)(url)})
        with structlog.testing.capture_logs() as logged:
            async with serving(wrong, secrets=("wrong-one", "right-one")) as api:
                check_unavailable(await api.get(f"/v1/models/{'0' * 64}"))
                assert (await api.get("/readyz")).of(503)["redis"] != "ok"
        reasons = [line["reason"] for line in logged if "reason" in line]
        assert any("rejects the credentials of keepfit" in reason for reason in reasons)
        assert "wrong-one" not in str(logged)
    finally:
        client.auth("right-one")
        client.config_set("requirepass", "")
