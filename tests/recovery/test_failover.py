"""The primary of a replicated Redis dies while rows flow: a replica takes its place, and no accepted row is lost."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import UnavailableError
from keepfit.settings import Settings
from tests.conftest import Stack, start_stack, stop_stack
from tests.recovery.flow import flowing
from tests.replicated import Replicated, replicated

# More for a longer test by hand: with three servers and three sentinels, which take a second longer.
KILLS = int(os.environ.get("FAILOVER_KILLS", "1"))
SERVERS = int(os.environ.get("FAILOVER_SERVERS", "2"))
REPLICAS_MIN = int(os.environ.get("FAILOVER_REPLICAS_MIN", str(SERVERS - 1)))
CLIENTS, ROWS_AFTER_KILL = 4, 100

log = structlog.get_logger(__name__)

pytestmark = pytest.mark.timeout(120 + 40 * KILLS)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    """Run the servers."""
    with replicated(tmp_path_factory.mktemp("failover") / "redis", SERVERS, 1 if SERVERS == 2 else 3) as running:
        yield running


@pytest.fixture
def stack(servers: Replicated, tmp_path: Path) -> Iterator[Stack]:
    """Run a stack whose store and queue are on these servers; a row is on all of them before it is accepted."""
    environment = {"KEEPFIT_STORE_URL": servers.url, "KEEPFIT_STORE_REPLICAS_MIN": str(REPLICAS_MIN)}
    running = start_stack(tmp_path / "data", environment=environment)
    yield running
    assert stop_stack(running) == 0


@pytest.mark.parametrize("on_disk", [True, False])
async def test_a_promise_waits_for_replicas_also_if_it_was_made_before(
    servers: Replicated, monkeypatch: pytest.MonkeyPatch, *, on_disk: bool
) -> None:
    """While a replica is stopped, the first call and its repetition fail; both had been executed on the primary."""
    settings = Settings(store_url=servers.url, store_replicas_min=SERVERS - 1, store_replicas_fsync=on_disk)
    client, blocking = redis_clients.store_async(settings), redis_clients.store_sync(settings)
    store = ScriptConnection(client)
    monkeypatch.setattr(redis_scripts, "REPLICAS_TIMEOUT_MS", 400)
    stored = redis_scripts.call("note_rows", [redis_keys.OPEN_ROWS], ["ab" * 32, 0, 0, "", 0])
    promised = redis_scripts.call("discard", [redis_keys.dead("ab" * 32)], ["1-1"])
    replica = servers.replicas()[0]
    servers.pause(replica, signal.SIGSTOP)
    try:
        await store.run(stored)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="Only 0 of 1"):
                await store.run(promised)
        with pytest.raises(UnavailableError, match="Only 0 of 1"):
            await asyncio.to_thread(redis_scripts.run, blocking, promised)
    finally:
        servers.pause(replica, signal.SIGCONT)
    monkeypatch.undo()
    assert await store.run(promised) == [[]]
    await store.close()
    await client.aclose()
    blocking.close()


async def test_no_accepted_row_is_lost_in_a_failover(servers: Replicated, stack: Stack) -> None:
    """Each row is learned once, in the order of its sequence, by the model that the new primary has in the end."""
    async with flowing(stack.url, CLIENTS, "t") as flow:
        for _ in range(KILLS):
            await flow.more(ROWS_AFTER_KILL)
            dead = await asyncio.to_thread(servers.kill_primary)
            await asyncio.to_thread(servers.start, dead)
            await flow.more(ROWS_AFTER_KILL)
            while not await asyncio.to_thread(servers.is_complete):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await flow.end()
    log.info("failovers_survived", kills=KILLS, rows=len(flow.accepted), refused=flow.refused)
    flow.check(stack.settings().model_copy(update={"store_url": SecretStr(servers.url)}))
