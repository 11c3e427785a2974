"""More than can be done: what waits is bounded, says when to come again, and is dropped when nobody wants it."""

import asyncio
from typing import Any

import pytest

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs import run_queue
from keepfit.settings import Settings
from tests.gateway.api_client import REGRESSOR, Api, eventually, serving

LABELLED = {"X": [[1.0, 2.0]], "y": [1.0]}
ROWS = {"X": [[1.0, 2.0]]}


def waiting(settings: Settings) -> int:
    """Count the fields of the predict room's questions."""
    with redis_clients.queue_sync(settings) as client:
        found = client.hlen(redis_keys.worker_requests(run_queue.PREDICT.name))
        assert isinstance(found, int)
        return found


async def test_more_questions_than_may_wait_get_429(settings: Settings, metadata: dict[str, Any]) -> None:
    """Past the limit the answer is 429 with Retry-After at once, while those before go on waiting."""
    small = settings.model_copy(update={"predict_entries_max": 2, "predict_timeout_s": 30.0})
    async with serving(small) as api, serving(small) as another:
        path = await api.make(metadata, REGRESSOR)
        patient = [asyncio.create_task(one.post(f"{path}/predict?timeout=1.5", ROWS)) for one in (api, another)]

        async def all_wait() -> bool:
            return waiting(settings) == 2 + 2

        await eventually(all_wait, "the questions' arrival")
        refused = await api.post(f"{path}/predict", ROWS)
        assert "2 requests wait" in refused.problem(429)["detail"]
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert not any(task.done() for task in patient)
        for reply in await asyncio.gather(*patient):
            reply.problem(503)


async def test_a_gateway_bounds_what_waits_in_it(settings: Settings, metadata: dict[str, Any]) -> None:
    """Questions about many models count against one gateway's limit too."""
    small = settings.model_copy(update={"predict_entries_max": 3})
    async with serving(small) as api:
        paths = [await api.make({**metadata, "i": i}, REGRESSOR) for i in range(4)]
        replies = await asyncio.gather(*(api.post(f"{path}/predict?timeout=0.5", ROWS) for path in paths))
        assert sorted(reply.status for reply in replies) == [429, 503, 503, 503]


async def test_a_timeout_of_ones_own(lonely: Api, settings: Settings, metadata: dict[str, Any]) -> None:
    """`timeout` names the seconds after which the answer is not wanted; with workers registered that is a 504."""
    path = await lonely.make(metadata, REGRESSOR)
    with redis_clients.queue_sync(settings) as client:
        client.sadd(redis_keys.RQ_WORKERS, "rq:worker:one")
        client.set("rq:worker:one", "alive")
        async with asyncio.timeout(5):
            detail = (await lonely.post(f"{path}/predict?timeout=0.25", ROWS)).problem(504)["detail"]
            assert "0.25 s" in detail
            (await lonely.post(f"{path}/score?timeout=0.1", LABELLED)).problem(504)


@pytest.mark.parametrize("given", ["0", "-1", "1e3", "601", "nan", "inf", "x", "", "1,5", "0.0"])
async def test_a_timeout_that_is_none(lonely: Api, metadata: dict[str, Any], given: str) -> None:
    """What is not a number of seconds within bounds is refused before anything is asked."""
    path = await lonely.make(metadata, REGRESSOR)
    assert "timeout" in (await lonely.post(f"{path}/predict?timeout={given}", ROWS)).problem(400)["detail"]


async def test_questions_nobody_waits_for_are_not_kept(
    lonely: Api, settings: Settings, metadata: dict[str, Any]
) -> None:
    """What is past its deadline is dropped by the next claim, and no answer is made of it."""
    path = await lonely.make(metadata, REGRESSOR)
    replies = await asyncio.gather(*(lonely.post(f"{path}/predict?timeout=0.2", ROWS) for _ in range(5)))
    assert {reply.status for reply in replies} == {503}
    with redis_clients.queue_sync(settings) as client:

        async def overdue() -> bool:
            # A deadline is the digits 2 to 14 of a question, in milliseconds of the server's clock.
            deadlines = [
                int(value[1:14])
                for value in client.hvals(redis_keys.worker_requests(run_queue.PREDICT.name))
                if len(value) > 14
            ]
            return client.time()[0] * 1000 > max(deadlines)

        await eventually(overdue, "the questions' deadlines")
        (lease,) = client.zrange(redis_keys.leases(run_queue.PREDICT.name), 0, -1)
        (answer,) = redis_scripts.run(client, run_queue.claim(run_queue.PREDICT, lease.decode(), 60.0, "test"))
        assert answer[2:] == []
    assert waiting(settings) == 0


async def test_a_full_inbox_answers_429(settings: Settings, metadata: dict[str, Any]) -> None:
    """Past the limit of the inbox the answer is 429 with Retry-After, and nothing of it is kept."""
    async with serving(settings.model_copy(update={"inbox_entries_max": 3})) as api:
        path = await api.make(metadata, REGRESSOR)
        replies = await asyncio.gather(*(api.post(f"{path}/partial_fit", LABELLED) for _ in range(5)))
        assert sorted(reply.status for reply in replies) == [202, 202, 202, 429, 429]
        assert sorted(reply.json()["sequence"] for reply in replies if reply.status == 202) == [1, 2, 3]
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status == 429)
        assert (await api.model(path))["inbox"] == 3


async def test_what_comes_together_is_accepted_together(lonely: Api, metadata: dict[str, Any]) -> None:
    """Many concurrent requests get all sequences from 1 on, each once, whatever trips they went in."""
    path = await lonely.make(metadata, REGRESSOR)
    replies = await asyncio.gather(*(lonely.post(f"{path}/partial_fit", LABELLED) for _ in range(200)))
    assert sorted(reply.of(202)["sequence"] for reply in replies) == list(range(1, 201))
