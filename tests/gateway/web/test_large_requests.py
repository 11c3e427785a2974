"""Large requests take turns, in order, and give them back however they end."""

import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfit.backends import redis_clients, redis_keys
from keepfit.jobs import run_queue
from keepfit.settings import Settings
from keepfit_gateway.web import large_requests, offload
from keepfit_gateway.web.large_requests import Lane, Turns
from keepfit_gateway.web.offload import HUGE_BYTES_MIN, INLINE_BYTES_MAX
from tests.gateway.api_client import REGRESSOR, Api, eventually, serving

SIZE_MAX = 10
LARGE = b'{"X":[%s[1.0,2.0]]}' % (b"[1.0,2.0]," * (INLINE_BYTES_MAX // 10 + 1))


class Clients:
    """Tasks that want turns of a lane; `holding` are those that have one, in the order in which they got it."""

    def __init__(self) -> None:
        self.lane = Lane(SIZE_MAX)
        self.tasks: list[asyncio.Task[None]] = []
        self.sizes: list[int] = []
        self.holding: list[int] = []

    def start(self, size: int) -> None:
        """Let a further client wait for a turn."""
        number = len(self.tasks)
        self.sizes.append(size)

        async def hold() -> None:
            await self.lane.begin(size, 60)
            self.holding.append(number)
            try:
                await asyncio.Event().wait()
            finally:
                self.holding.remove(number)
                self.lane.end(size)

        self.tasks.append(asyncio.create_task(hold()))

    def end(self, number: int) -> None:
        """End a client, whether it waits or has its turn."""
        if self.tasks:
            self.tasks[number % len(self.tasks)].cancel()


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


Steps = st.lists(st.tuples(st.booleans(), st.integers(1, SIZE_MAX), st.booleans()), max_size=40)


@given(Steps)
def test_turns_begin_in_order_and_within_the_bound(steps: list[tuple[bool, int, bool]]) -> None:
    """Whatever ends when, also as its turn begins: of the clients left, the first ones hold turns, as many as fit."""

    async def run() -> None:
        clients = Clients()
        for starts, number, at_once in steps:
            if starts:
                clients.start(number)
            else:
                clients.end(number)
            if at_once:
                continue
            await settle()
            left = [i for i, task in enumerate(clients.tasks) if not task.done()]
            assert sum(clients.sizes[i] for i in clients.holding) <= SIZE_MAX
            assert sorted(clients.holding) == left[: len(clients.holding)]
            if len(clients.holding) < len(left):
                following = clients.sizes[left[len(clients.holding)]]
                assert sum(clients.sizes[i] for i in clients.holding) + following > SIZE_MAX
        for number in range(len(clients.tasks)):
            clients.end(number)
        outcomes = await asyncio.gather(*clients.tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {asyncio.CancelledError}
        await clients.lane.begin(SIZE_MAX, 60)

    asyncio.run(run())


@pytest.fixture
async def path(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Api, str]]:
    """Run a gateway with room for one large request; its only worker answers nothing. Return the path of a model."""
    monkeypatch.setattr(large_requests, "LANE_BYTES_MAX", 1)
    with redis_clients.queue_sync(settings) as client:
        client.sadd(redis_keys.RQ_WORKERS, "rq:worker:one")
        client.hset("rq:worker:one", "state", "idle")
    async with serving(settings) as api:
        yield api, await api.make({"type": "large"}, REGRESSOR)


async def refused(api: Api, path: str, timeout_s: float, body: bytes = LARGE) -> str:
    """Ask for a large prediction, which expires; return the reason."""
    headers = {"Content-Type": "application/json"}
    reply = await api.call("POST", f"{path}/predict?timeout={timeout_s}", data=body, headers=headers)
    return str(reply.problem(504)["detail"])


async def test_a_large_prediction_waits_for_its_turn(path: tuple[Api, str], settings: Settings) -> None:
    """While another large request has the turn, a large one waits until its timeout, and a small one does not."""
    first = asyncio.create_task(refused(*path, timeout_s=5))
    with redis_clients.queue_sync(settings) as client:

        async def is_asked() -> bool:
            return bool(client.exists(redis_keys.queued_models(run_queue.PREDICT.name)))

        await eventually(is_asked, "the first request")
    assert await refused(*path, timeout_s=0.1) == "Other large requests took 0.1 s; send this again, or less at a time."
    assert "No answer came" in await refused(*path, timeout_s=0.1, body=b'{"X":[[1.0,2.0]]}')
    assert not first.done()
    assert "No answer came within 5 s" in await first


async def test_a_large_answer_waits_for_its_turn(path: tuple[Api, str], settings: Settings) -> None:
    """While a worker computes answers of 24 MiB, the next large one waits, and a small one does not."""
    api, _ = path
    recipe = {"estimator": "GaussianNB", "classes": [f"class {i}" for i in range(10_000)]}
    model = await api.make({"type": "classes"}, recipe)
    many = json.dumps({"X": [[1, 2]] * 100, "proba": True}).encode()
    assert len(many) < INLINE_BYTES_MAX
    first = asyncio.create_task(refused(api, model, timeout_s=5, body=many))
    with redis_clients.queue_sync(settings) as client:

        async def is_asked() -> bool:
            return bool(client.exists(redis_keys.queued_models(run_queue.PREDICT.name)))

        await eventually(is_asked, "the first request")
    assert "Other large requests took 0.1 s" in await refused(api, model, timeout_s=0.1, body=many)
    assert "No answer came" in await refused(api, model, timeout_s=0.1, body=b'{"X":[[1,2]]}')
    assert not first.done()
    assert "No answer came within 5 s" in await first
    assert "No answer came" in await refused(api, model, timeout_s=0.1, body=many)


async def test_the_wait_for_a_turn_counts_as_time_for_the_answer(path: tuple[Api, str], settings: Settings) -> None:
    """A prediction that had to wait for its turn has only the rest of its time for the workers."""
    first = asyncio.create_task(refused(*path, timeout_s=2))
    with redis_clients.queue_sync(settings) as client:

        async def is_asked() -> bool:
            return bool(client.exists(redis_keys.queued_models(run_queue.PREDICT.name)))

        await eventually(is_asked, "the first request")
    found = re.match(r"No answer came within ([\d.]+) s;", await refused(*path, timeout_s=10))
    assert found is not None
    assert float(found[1]) < 10
    assert "No answer came within 2 s" in await first


async def test_turns_end_with_their_requests(path: tuple[Api, str]) -> None:
    """Turns of requests that were refused, accepted or too late are free for the next ones."""
    api, model = path
    rows = json.loads(LARGE)["X"]
    for _ in range(2):
        (await api.post(f"{model}/partial_fit", {"X": rows, "y": [[1]] * len(rows)})).problem(422)
        (await api.post(f"{model}/partial_fit", {"X": rows, "y": [1.0]})).problem(422)
        (await api.post(f"{model}/partial_fit", {"X": rows, "y": [1.0] * len(rows)})).of(202)
        assert "No answer came" in await refused(api, model, timeout_s=0.1)


async def test_one_chunk_is_taken_in_each_iteration_of_the_event_loop() -> None:
    """However many large bodies arrive, other tasks run between two of their chunks."""
    turns, taken = Turns(), 0

    async def body() -> None:
        nonlocal taken
        for _ in range(5):
            await turns.arrive()
            taken += 1

    bodies = asyncio.gather(*(body() for _ in range(20)))
    while not bodies.done():
        before = taken
        await asyncio.sleep(0)
        assert taken - before <= 1
    assert taken == 100


async def test_one_thread_computes_for_large_input_and_one_for_huge() -> None:
    """Functions on large input run one after the other; one on huge input does not hold them up."""
    running, at_a_time, release = 0, 0, threading.Event()

    def work() -> None:
        nonlocal running, at_a_time
        running += 1
        at_a_time = max(at_a_time, running)
        sys.setswitchinterval(sys.getswitchinterval())
        running -= 1

    huge = asyncio.ensure_future(offload.compute(HUGE_BYTES_MIN, release.wait, 60))
    await asyncio.gather(*(offload.compute(INLINE_BYTES_MAX + 1, work) for _ in range(50)))
    assert not huge.done()
    release.set()
    assert await huge
    assert at_a_time == 1
    assert await offload.compute(INLINE_BYTES_MAX, threading.get_ident) == threading.get_ident()


async def test_small_input_does_not_wait_for_large() -> None:
    """A small table, which is parsed in a thread too, does not wait for the one of large input."""
    release = threading.Event()
    large = asyncio.ensure_future(offload.compute(INLINE_BYTES_MAX + 1, release.wait, 60))
    assert await offload.compute_in_thread(INLINE_BYTES_MAX, threading.get_ident) != threading.get_ident()
    assert not large.done()
    release.set()
    assert await large
