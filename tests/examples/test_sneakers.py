"""examples/sneakers, run by a real Node.js against the real stack: its answers, its calls, its behavior after failures.

Tests that need failures of keepfit, or its received calls, put a `Proxy` in between: a real HTTP server that records
each call and forwards it, rejects it, or drops its answer.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pytest
import rfc8785
from aiohttp import ClientError, ClientSession, web
from openapi_spec_validator import validate

from tests.browser.page import Page as BrowserPage
from tests.clients.node import NODE, NPM, PATH, ROOT, compiled, run
from tests.examples_in_docs import assert_shown, blocks
from tests.examples_in_docs import run as run_blocks
from tests.gateway.test_api_page import Page

SNEAKERS = ROOT / "examples" / "sneakers"
DEADLINE_S = 60

pytestmark = pytest.mark.timeout(200)

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


def pair(maker: str, year: int) -> dict[str, Any]:
    """Return the fields of a pair."""
    return {"maker": maker, "brand": f"{maker} classic", "year": year}


@dataclass
class Sneakers:
    """One running Node.js process."""

    process: asyncio.subprocess.Process
    url: str
    http: ClientSession

    async def vote(self, maker: str, year: int, fit: float, size: float | None = None) -> str:
        """Post the vote of a new user and return its id."""
        body = {"user": uuid.uuid4().hex, **pair(maker, year), "fit": fit}
        if size is not None:
            body["size"] = size
        status, answer = await self.post("/true/add" if size is None else "/true/addsize", body)
        assert status == 201
        assert {name: answer[name] for name in body} == body
        return str(answer["id"])

    async def true_size(self, maker: str, year: int) -> dict[str, Any]:
        """Return the answer for a pair."""
        status, answer = await self.post("/true/single", pair(maker, year))
        assert status == 200, answer
        return answer

    async def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Post JSON; return status and answer."""
        async with self.http.post(self.url + path, json=body) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
        return response.status, answer

    async def score(self) -> dict[str, Any]:
        """Return the numbers of votes and of the model."""
        async with self.http.get(f"{self.url}/true/score") as response:
            answer: dict[str, Any] = await response.json()
        assert response.status == 200
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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the example beside the compiled client, installed as its readme says."""
    root = tmp_path_factory.mktemp("tree")
    (root / "clients").mkdir()
    (root / "clients/node").symlink_to(compiled())
    copied = root / "examples/sneakers"
    shutil.copytree(SNEAKERS, copied, ignore=shutil.ignore_patterns("node_modules", "*.sqlite*", "votes*.json"))
    run(NODE, NPM, "install", "--no-package-lock", "--ignore-scripts", cwd=copied, PATH=PATH)
    (root / ".venv").symlink_to(sys.prefix)
    return root


@pytest.fixture
async def start(http: ClientSession, session: str, tree: Path, tmp_path: Path) -> AsyncIterator[Start]:
    """Yield a function that starts the service for a keepfit address; stop all started processes afterwards."""
    processes: list[asyncio.subprocess.Process] = []

    async def start_at(keepfit_url: str) -> Sneakers:
        process = await launch(tree, keepfit_url, session, tmp_path)
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


async def launch(
    tree: Path, keepfit_url: str, session: str, folder: Path, stderr: int | None = None
) -> asyncio.subprocess.Process:
    """Start Node.js on a free port, without the environment of this process."""
    return await asyncio.create_subprocess_exec(
        *command(tree), env=settings(keepfit_url, session, folder), stdout=asyncio.subprocess.PIPE, stderr=stderr
    )


def command(tree: Path) -> list[str]:
    """Return the command that starts the service."""
    return [str(NODE), "--disable-warning=ExperimentalWarning", str(tree / "examples/sneakers/server.js")]


def settings(keepfit_url: str, session: str, folder: Path) -> dict[str, str]:
    """Return the settings of a service on a free port, whose votes are in a folder."""
    data = str(folder / "votes.sqlite")
    return {"PORT": "0", "KEEPFIT_URL": keepfit_url, "SESSION": session, "DATA_FILE": data}


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
    retry_after_s: int = 0
    calls: list[Call] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer with an error status, or forward the call and return or drop the answer."""
        body = await request.read()
        call = Call(request.path, request.headers.get("Idempotency-Key"), json.loads(body or b"{}"), time.monotonic())
        self.calls.append(call)
        fault = next(self.faults, None)
        if isinstance(fault, int):
            problem = {
                "type": "about:blank",
                "title": "proxy",
                "status": fault,
                "detail": "rejected by the test",
            }
            return web.json_response(problem, status=fault, headers={"Retry-After": str(self.retry_after_s)})
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": call.key} if call.key else {})
        async with self.http.request(
            request.method, self.upstream + request.path, data=body or None, headers=headers
        ) as response:
            call.answer = await response.json()
            if fault == "drop_answer" and request.transport is not None:
                request.transport.abort()
            return web.json_response(call.answer, status=response.status)

    def to(self, path: str) -> list[Call]:
        """Return the calls of paths that end so, oldest first."""
        return [call for call in self.calls if call.path.endswith(path)]


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


@pytest.fixture(scope="module")
def unreachable_url() -> Iterator[str]:
    """Yield an address that refuses connections: its port is bound and nothing listens on it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(scope="module")
def empty_url(tree: Path, unreachable_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run one service for all tests that store no vote, without keepfit; yield its address."""
    environment = settings(unreachable_url, "1", tmp_path_factory.mktemp("empty"))
    with subprocess.Popen(command(tree), env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["listening"]
        finally:
            process.kill()


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

    async def predict(self, maker: str, year: int) -> dict[str, Any]:
        """Request a prediction from keepfit directly."""
        body = {"metadata": self.metadata, "X": [pair(maker, year)]}
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
    assert state["recipe"]["features"] == {"maker": "category", "brand": "category", "year": "number"}
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
    assert proxy.to("/predict") == []


async def test_votes_and_averages_work_without_keepfit(start: Start, unreachable_url: str) -> None:
    """While keepfit is unreachable, votes are accepted and pairs with votes are answered."""
    service = await start(unreachable_url)
    await service.vote("nike", 2001, 4)
    await service.vote("nike", 2001, 5)
    assert await service.true_size("nike", 2001) == {"trueSize": 4.5, "votes": 2, "source": "votes"}


async def test_a_pair_without_votes_answers_503_without_keepfit(http: ClientSession, empty_url: str) -> None:
    """With keepfit unreachable, a pair without votes answers 503 with the pair and the reason."""
    async with http.post(f"{empty_url}/true/single", json=pair("puma", 1999)) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert "puma puma classic 1999" in problem["detail"]
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
    """Predictions are on the scale of the votes after two votes, and near those of their maker after many."""
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
    """A maker without any vote is predicted by the model, and the request does not change the model."""
    service = await start(stack.url)
    await service.vote("nike", 2001, 4)
    await service.vote("adidas", 2005, 2)
    before = await model.learned(2)
    answer = await service.true_size("an unknown maker", 2010)
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
    proxy.faults, proxy.retry_after_s = iter([503, 429]), 1
    ids = [await service.vote("nike", 2000 + n, 1 + n % 5) for n in range(10)]
    await service.delivered()
    assert (await model.learned(10))["rows_seen"] == 10

    sent = proxy.to("/partial_fit")
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
    assert [call.key for call in proxy.to("/partial_fit")] == [ids[0], ids[0], ids[0], ids[1]]


async def test_a_vote_rejected_for_its_content_does_not_block_others(start: Start, proxy: Proxy, model: Model) -> None:
    """A vote rejected for its content is skipped, and the votes after it are learned."""
    service = await start(proxy.url)
    await until(model.state)
    proxy.faults = iter([422])
    ids = [await service.vote("nike", 2001, 4), await service.vote("nike", 2002, 3)]
    await service.delivered()
    assert (await model.learned(1))["rows_seen"] == 1
    assert [call.key for call in proxy.to("/partial_fit")] == ids


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
        return len(proxy.to("/partial_fit")) >= 3 or None

    await until(three_calls)
    assert await service.stop(signal.SIGKILL) == -signal.SIGKILL
    before = [call.key for call in proxy.to("/partial_fit")]
    assert set(before) == {first, second}

    proxy.calls.clear()
    proxy.faults = iter(())
    service = await start(proxy.url)
    assert await service.true_size("nike", 2001) == {"trueSize": 3, "votes": 2, "source": "votes"}
    await service.delivered()
    assert (await model.learned(3))["rows_seen"] == 3
    assert [call.key for call in proxy.to("/partial_fit")] == [second, third]


async def test_every_answered_vote_survives_kills(start: Start, unreachable_url: str) -> None:
    """Votes of many users at a time that were answered are stored, whenever the service is killed."""
    answered = 0
    for _ in range(3):
        service = await start(unreachable_url)
        assert (await service.score())["votes"] >= answered
        first = asyncio.Event()

        async def votes(service: Sneakers = service, first: asyncio.Event = first) -> int:
            count = 0
            with contextlib.suppress(ClientError):
                while True:
                    await service.vote("nike", 2001, 4)
                    count += 1
                    first.set()
            return count

        tasks = [asyncio.create_task(votes()) for _ in range(8)]
        await asyncio.wait_for(first.wait(), DEADLINE_S)
        await service.stop(signal.SIGKILL)
        answered += sum(await asyncio.gather(*tasks))
    service = await start(unreachable_url)
    score = await service.score()
    # Each caller may have had one vote stored whose answer it did not get.
    assert answered <= score["votes"] == score["users"] == score["waiting"] <= answered + 24
    assert score["model"] is None


async def test_a_damaged_file_stops_the_start(tree: Path, unreachable_url: str, session: str, tmp_path: Path) -> None:
    """A data file that is no database makes the start fail with one line of output that names it."""
    (tmp_path / "votes.sqlite").write_text("nonsense" * 1000)
    process = await launch(tree, unreachable_url, session, tmp_path, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 1
    assert errors.decode().count("\n") == 1
    assert "votes.sqlite: file is not a database" in errors.decode()


async def test_a_user_has_one_vote_on_a_pair(start: Start, unreachable_url: str) -> None:
    """The same vote again changes nothing, also in other letters; another one on the pair answers 409."""
    service = await start(unreachable_url)
    vote = {"user": "Ann", "maker": "Nike", "brand": "Air Max", "year": 2001, "size": 8.5, "fit": 4}
    status, first = await service.post("/true/addsize", vote)
    assert (status, first["maker"], first["size"]) == (201, "nike", 8.5)
    assert await service.post("/true/addsize", vote | {"maker": " NIKE "}) == (200, first)
    for path, other in (
        ("/true/addsize", vote | {"fit": 3}),
        ("/true/addsize", vote | {"size": 9}),
        ("/true/add", vote),
    ):
        status, problem = await service.post(path, other)
        assert (status, problem["status"]) == (409, 409)
        assert "Ann has voted on nike air max 2001 already" in problem["detail"]
    both = [service.post("/true/add", {**vote, "user": "Bob", "fit": fit}) for fit in (1, 5)]
    assert sorted(status for status, _ in await asyncio.gather(*both)) == [201, 409]
    assert (await service.post("/true/add", vote | {"brand": "air force"}))[0] == 201
    score = await service.score()
    assert (score["votes"], score["users"], score["pairs"]) == (3, 2, 2)


async def test_the_score_has_the_metrics_of_the_model(start: Start, stack: Stack, model: Model) -> None:
    """The score has the numbers of votes, and the model's running error beside the baseline's."""
    service = await start(stack.url)
    for n in range(12):
        await service.vote("nike", 2000 + n, 1 + n % 5, size=8 + n / 2)
    await service.delivered()
    state = await model.learned(12)
    score = await service.score()
    assert {**score, "model": None} == {"votes": 12, "users": 12, "pairs": 12, "waiting": 0, "model": None}
    metrics = state["metrics"]
    assert score["model"] == {
        "hash": state["hash"], "version": state["version"], "rows_seen": 12,
        "mean_absolute_error": metrics["mean_absolute_error"],
        "baseline_mean_absolute_error": metrics["baseline_mean_absolute_error"],
    }  # fmt: skip


async def test_the_estimates_of_the_load_script_come_true(start: Start, stack: Stack, tree: Path) -> None:
    """Pairs without votes are estimated twice as well as by the mean, from the votes of users with a hidden rule."""
    service = await start(stack.url)
    load = tree / "examples/sneakers/load.js"
    output = await asyncio.to_thread(run, NODE, load, "--url", service.url, "--votes", "600", "--seed", "2", cwd=tree)
    result = json.loads(output.splitlines()[-1])
    assert result["rows_seen"] == 600
    assert result["estimates"] > 100
    assert result["error"] < result["baseline"] / 2
    assert "600 votes sent, 600 stored" in output


async def test_the_session_of_the_readme(start: Start, stack: Stack, model: Model, tmp_path: Path) -> None:
    """The commands of the readme give the answers that it shows, once the model has learned its votes."""
    service = await start(stack.url)
    page = [block for block in blocks() if block.page == "examples/sneakers/README.md" and "call()" in block.text]
    assert len(page) == 1
    for turn in ("first", "second"):
        folder = tmp_path / turn
        folder.mkdir()
        outputs = await asyncio.to_thread(run_blocks, page, folder, {"": {}}, {"http://127.0.0.1:3000": service.url})
        await service.delivered()
        await model.learned(3)
    shown = [step.shown for step in page[0].steps()]
    assert len(shown) == len(outputs) == 8
    for output, expected in zip(outputs[1:], shown[1:], strict=True):
        assert_shown(output, expected)


async def test_the_pages_load_what_is_served(http: ClientSession, empty_url: str) -> None:
    """The page to vote and that of the calls load files of the service alone, as their policy demands."""
    for path in ("/", "/api"):
        async with http.get(empty_url + path) as response:
            page = Page(await response.text())
            policy = response.headers["Content-Security-Policy"]
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert page.inline == []
        loaded = {address for _, address in page.loads if address != "data:,"}
        assert len(loaded) == 2
        for address in loaded:
            async with http.get(empty_url + address) as response:
                assert response.status == 200
                assert response.headers["Content-Type"].startswith(("text/javascript", "text/css"))
                assert await response.read()


@pytest.mark.timeout(300)
async def test_a_user_votes_and_asks_on_the_page(start: Start, stack: Stack, model: Model, page: BrowserPage) -> None:
    """In a browser, the page asks and votes, shows answers and errors, and requests nothing from another host."""
    service = await start(stack.url)
    await until(model.state)
    await page.goto(service.url)
    await page.until("document.querySelector('#score').innerText === '0 votes'")

    async def ask(maker: str, year: str, answer: str, *, is_error: bool = False) -> None:
        await page.fill("[name=maker]", maker)
        await page.fill("[name=brand]", "air max")
        await page.fill("[name=year]", year)
        await page.click("#pair button")
        await shown("#answer", answer, is_error)

    async def shown(selector: str, pattern: str, is_error: bool = False) -> None:
        element = f"document.querySelector({json.dumps(selector)})"
        await page.until(f"new RegExp({json.dumps(pattern)}).test({element}.innerText)")
        assert await page.evaluate(f"{element}.classList.contains('error')") is is_error

    # The browser requires a text; spaces are one, which the service rejects.
    await ask("  ", "2015", "^maker", is_error=True)
    await ask("nike", "2015", "^nike air max 2015 has no votes", is_error=True)
    await page.fill("[name=user]", "ann")
    await page.click("#vote label", "a bit large")
    await page.click("#vote button")
    await shown("#voted", "^Thank you")
    await shown("#answer", r"^4\.00: a bit large \(1 vote\)$")
    await shown("#score", "^1 vote(;|$)")
    # A user has one vote on a pair.
    await page.click("#vote label", "too small")
    await page.click("#vote button")
    await shown("#voted", "already", is_error=True)
    await service.delivered()
    await model.learned(1)
    await ask("puma", "2016", r"^\d\.\d\d: .* \(estimated, no votes yet\)$")
    assert page.exceptions == page.violations == []
    assert all(each.startswith(f"{service.url}/") for each in page.requests)

    # A wrong year does not leave the browser: the answer stays.
    before = len(page.requests)
    await page.fill("[name=year]", "1800")
    await page.click("#pair button")
    assert await page.evaluate("document.querySelector('[name=year]').validity.rangeUnderflow")
    assert len(page.requests) == before


async def test_the_document_describes_every_call(http: ClientSession, empty_url: str) -> None:
    """The OpenAPI document is valid, and each of its calls exists."""
    async with http.get(f"{empty_url}/api.json") as response:
        document = await response.json()
    validate(document)
    assert {"/true/add", "/true/addsize", "/true/single", "/true/score", "/healthz"} == set(document["paths"])
    for path, methods in document["paths"].items():
        for method in methods:
            async with http.request(method, empty_url + path) as response:
                assert str(response.status) in document["paths"][path][method]["responses"]


async def test_one_command_starts_all(http: ClientSession, tree: Path, tmp_path: Path) -> None:
    """start.sh starts keepfit and the service, which learn a vote, and a signal stops both."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    environment = {"PATH": PATH, "HOME": str(tmp_path), "KEEPFIT_PORT": str(port), "PORT": "0", "SNEAKERS_DATA": "data"}
    process = await asyncio.create_subprocess_exec(
        tree / "examples/sneakers/start.sh", cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (line := await process.stdout.readline()).startswith(b'{"listening"'):
                assert line
        service = Sneakers(process, json.loads(line)["listening"], http)
        await service.vote("nike", 2001, 4)
        await service.delivered()

        async def learned() -> bool | None:
            model = (await service.score())["model"]
            return (model is not None and model["rows_seen"] == 1) or None

        await until(learned)
    finally:
        process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await process.communicate()
    assert process.returncode == 0
    assert (tmp_path / "data/votes.sqlite").exists()


async def test_sigterm_finishes_outstanding_requests(start: Start, unreachable_url: str) -> None:
    """After SIGTERM new connections are refused, a vote in transit is stored and answered, and the exit code is 0."""
    service = await start(unreachable_url)
    port = int(service.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"user": "ann", **pair("nike", 2001), "fit": 4}).encode()
    writer.write(
        b"POST /true/add HTTP/1.1\r\nHost: node\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
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


VOTE = {"user": "ann", "maker": "nike", "brand": "air max", "year": 2001, "fit": 4}


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b"", 400, "not JSON"),
        (b'{"maker":', 400, "not JSON"),
        (b'{"maker": "\xff"}', 400, "not JSON"),
        (b"[]", 400, "JSON object"),
        (b"null", 400, "JSON object"),
        (b"{}", 400, "fit"),
        (json.dumps(VOTE | {"maker": " "}), 422, "maker"),
        (json.dumps(VOTE | {"maker": 7}), 422, "maker"),
        (json.dumps(VOTE | {"maker": "n" * 101}), 422, "maker"),
        (json.dumps(VOTE | {"maker": "ni\0ke"}), 422, "maker"),
        (json.dumps(VOTE | {"maker": "\ud800"}), 422, "maker"),
        (json.dumps(VOTE | {"year": "2001"}), 422, "year"),
        (json.dumps(VOTE | {"year": 2001.5}), 422, "year"),
        (json.dumps(VOTE | {"year": 1}), 422, "year"),
        (json.dumps(VOTE | {"fit": 0}), 422, "fit"),
        (json.dumps(VOTE | {"fit": 5.1}), 422, "fit"),
        (json.dumps(VOTE | {"fit": True}), 422, "fit"),
        (json.dumps(VOTE | {"fit": None}), 422, "fit"),
        (b" " * 100_000, 413, "16384 bytes"),
    ],
)
async def test_an_invalid_vote_is_rejected(
    http: ClientSession, empty_url: str, body: bytes | str, status: int, expected: str
) -> None:
    """An invalid vote answers an error that names the field, and nothing is stored."""
    async with http.post(f"{empty_url}/true/add", data=body) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == status
    assert expected in problem["detail"]
    if expected in VOTE:
        assert expected in [error["field"] for error in problem["errors"]]
    async with http.get(f"{empty_url}/healthz") as response:
        assert await response.json() == {"status": "ok", "votes": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("target", "status", "expected"),
    [
        ("POST /true/single", 400, "not JSON"),
        ("GET /true/single", 405, "POST"),
        ("DELETE /true/add", 405, "POST"),
        ("POST /true/score", 405, "GET"),
        ("GET /true/votes", 404, "/true/votes"),
        ("GET /votes.js", 404, "/votes.js"),
        ("GET /../server.js", 404, "server.js"),
    ],
)
async def test_an_invalid_request_is_rejected(
    http: ClientSession, empty_url: str, target: str, status: int, expected: str
) -> None:
    """An invalid request answers an error that names the field."""
    method, path = target.split()
    async with http.request(method, empty_url + path) as response:
        problem = await response.json(content_type="application/problem+json")
    assert response.status == problem["status"] == status
    assert expected in problem["detail"]
