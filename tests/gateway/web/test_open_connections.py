"""The maximum of connections: which one is closed for another, and a crowd at a real gateway."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from keepfit_gateway.web import open_connections
from keepfit_gateway.web.connection import ProblemHandler
from keepfit_gateway.web.open_connections import OpenConnections, connections_max, raise_file_limit
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, Api, Reply, connected, eventually, serving
from tests.gateway.gateway_process import GatewayProcess, gateway_process
from tests.gateway.raw_requests import get, unread

# With a hard limit of 512 open files, 448 are for connections.
SOFT, HARD, MOST, CROWD = 100, 512, 448, 600


class Client:
    """A connection that notes whether it was dropped."""

    def __init__(self, name: str) -> None:
        self.client = name
        self.waits_for_client = self.has_unsent = False
        self.is_dropped = False

    def drop(self) -> None:
        """Note it."""
        self.is_dropped = True


def filled(count_max: int) -> tuple[OpenConnections, list[Client]]:
    """Return connections at their maximum, without a request."""
    connections, clients = OpenConnections(count_max), [Client(str(number)) for number in range(count_max)]
    for client in clients:
        connections.add(client)
    return connections, clients


def dropped_by_next(connections: OpenConnections, clients: list[Client]) -> str:
    """Add a connection that stays without a request, and return the name of the one that is dropped for it."""
    before = {client for client in clients if client.is_dropped}
    clients.append(Client("next"))
    connections.add(clients[-1])
    (dropped,) = {client for client in clients if client.is_dropped} - before
    assert len(connections) == connections.count_max
    return dropped.client


def test_the_oldest_without_a_request_is_dropped_first() -> None:
    """Connections with a request stay while there is one without, the oldest of which goes first."""
    connections, clients = filled(4)
    connections.mark_busy(clients[0])
    connections.mark_busy(clients[2])
    connections.mark_idle(clients[2])
    assert [dropped_by_next(connections, clients) for _ in range(3)] == ["1", "3", "next"]
    connections.remove(clients[0])
    connections.remove(clients[0])
    assert len(connections) == 3


def test_then_the_longest_idle_is_dropped() -> None:
    """Without such a connection it is the one whose last answer is longest ago."""
    connections, clients = filled(3)
    for client in clients:
        connections.mark_busy(client)
    for client in (clients[1], clients[0]):
        connections.mark_idle(client)
    connections.mark_answered(clients[1])
    assert dropped_by_next(connections, clients) == "0"
    connections.mark_busy(clients[-1])
    connections.mark_idle(clients[-1])
    assert dropped_by_next(connections, clients) == "1"


def test_then_one_whose_client_is_waited_for_and_never_a_complete_request() -> None:
    """A client that does not read, or send the rest of a body, goes before a new connection; others never do."""
    connections, clients = filled(3)
    for client in clients:
        connections.mark_busy(client)
    clients[1].waits_for_client = True
    assert dropped_by_next(connections, clients) == "1"
    connections.mark_busy(clients[-1])
    assert dropped_by_next(connections, clients) == "next"
    assert [client.is_dropped for client in clients[:3]] == [False, True, False]


def test_an_idle_one_with_an_unsent_answer_is_dropped_after_the_other_idle_ones() -> None:
    """Dropping a connection discards what its client has not read, so those that have read everything go first."""
    connections, clients = filled(3)
    for client in clients:
        connections.mark_busy(client)
        connections.mark_idle(client)
    clients[0].has_unsent = clients[1].has_unsent = True
    dropped = []
    for _ in range(3):
        dropped.append(dropped_by_next(connections, clients))
        connections.mark_busy(clients[-1])
    assert dropped == ["2", "0", "1"]


def test_the_log_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many dropped connections are one log line with their number."""
    connections, clients = filled(2)
    with structlog.testing.capture_logs() as logged:
        for _ in range(50):
            dropped_by_next(connections, clients)
        assert [(line["event"], line["more"]) for line in logged] == [("connections_dropped", 0)]
        monkeypatch.setattr(connections._throttle, "_every_s", 0.0)
        dropped_by_next(connections, clients)
    assert (logged[-1]["more"], logged[-1]["connections_max"], connections.dropped) == (49, 2, 51)


@pytest.mark.parametrize(
    ("files_max", "wanted", "expected"),
    [(1024, 10_000, 896), (100_000, 10_000, 10_000), (256, 10_000, 192), (20, 10, 1), (resource.RLIM_INFINITY, 5, 5)],
)
def test_the_limit_of_open_files_lowers_the_maximum(
    monkeypatch: pytest.MonkeyPatch, files_max: int, wanted: int, expected: int
) -> None:
    """An eighth of the open files, at least 64, is left for everything else."""
    monkeypatch.setattr(open_connections.resource, "getrlimit", lambda _: (files_max, files_max))
    assert connections_max(wanted) == expected


@pytest.mark.parametrize(("hard", "calls"), [(4096, [(4096, 4096)]), (resource.RLIM_INFINITY, [])])
def test_the_soft_limit_is_raised(monkeypatch: pytest.MonkeyPatch, hard: int, calls: list[Any]) -> None:
    """The soft limit of open files becomes the hard one; without a hard one it stays."""
    made: list[Any] = []
    monkeypatch.setattr(open_connections.resource, "getrlimit", lambda _: (1024, hard))
    monkeypatch.setattr(open_connections.resource, "setrlimit", lambda _, limits: made.append(limits))
    raise_file_limit()
    assert made == calls


# A real gateway.


@pytest.fixture(scope="module")
def gateway(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Run a gateway for this module with few open files."""
    folder: Path = tmp_path_factory.mktemp("crowd")
    with gateway_process(stack, folder, (SOFT, HARD), KEEPFIT_HEAD_TIMEOUT_S="60") as process:
        yield process


async def number_of(http: aiohttp.ClientSession, name: str) -> float:
    """Return the value of a metric without labels."""
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


CROWDS = {
    "silent": b"",
    "slow heads": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ",
    "idle": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "slow bodies": b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 9\r\n\r\n{",
    "refused bodies": b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
}


@pytest.mark.parametrize("crowd", CROWDS)
async def test_a_crowd_does_not_keep_others_out(gateway: GatewayProcess, metadata: dict[str, Any], crowd: str) -> None:
    """While more connections than the maximum send nothing more, probes and predictions on new ones are answered."""
    async with AsyncExitStack() as stack, asyncio.timeout(120):
        for number in range(CROWD):
            _, writer = await stack.enter_async_context(connected(gateway.url))
            writer.write(CROWDS[crowd])
            await writer.drain()
            if number % 100 == 99:
                async with aiohttp.ClientSession(gateway.url) as http, http.get("/livez") as response:
                    assert response.status == 200
        async with aiohttp.ClientSession(gateway.url) as http:
            api = Api(http)
            path = await api.make(metadata, REGRESSOR)
            await api.learn(path, [[1.0, 2.0]], [1.0])
            assert len((await api.predict(path, [[1.0, 2.0]]))["predictions"]) == 1
            assert await number_of(http, "keepfit_connections_dropped_total") > 0
            assert MOST / 2 < await number_of(http, "keepfit_connections") <= MOST
    assert gateway.events("connections_dropped")[0]["connections_max"] == MOST
    async with aiohttp.ClientSession(gateway.url) as http:

        async def are_gone() -> bool:
            return await number_of(http, "keepfit_connections") < 10

        await eventually(are_gone, "the end of the crowd")


async def test_clients_that_do_not_read_keep_no_other_out(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the most connections wait for their clients to read, with more requests behind, a new one is answered."""
    count, paused = 3, set[ProblemHandler]()
    pause = ProblemHandler.pause_writing

    def noted(handler: ProblemHandler) -> None:
        paused.add(handler)
        pause(handler)

    async def all_wait() -> bool:
        return len(paused) == count

    monkeypatch.setattr(ProblemHandler, "pause_writing", noted)
    async with serving(stack.settings().model_copy(update={"connections_max": count})) as api:
        with ExitStack() as crowd:
            for _ in range(count):
                client = crowd.enter_context(unread(api.url))
                # More than the kernel holds of one connection.
                await asyncio.get_running_loop().sock_sendall(client, get("/openapi.json") * 50)
            await eventually(all_wait, "more answers than the kernel holds")
            assert (await api.get("/livez")).of(200) == {"status": "ok"}
            assert [handler.transport is None for handler in paused].count(True) == 1


async def test_a_silent_connection_is_closed_after_the_time_for_a_head(stack: Stack, tmp_path: Path) -> None:
    """A connection that sends no byte, or half a head, gets 408 and is closed after KEEPFIT_HEAD_TIMEOUT_S."""
    with gateway_process(stack, tmp_path, KEEPFIT_HEAD_TIMEOUT_S="0.2") as process:
        for sent in (b"", b"GET /li"):
            async with connected(process.url) as (reader, writer), asyncio.timeout(30):
                writer.write(sent)
                assert "head" in Reply.parse(await reader.read()).problem(408)["detail"]
