"""What a listing shows of real workers, and of records that are no workers."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import redis

from keepfit.backends import redis_keys
from keepfit.settings import Settings
from keepfit_workers.activity import Activity
from tests.conftest import SHOES_RECIPE, Stack
from tests.gateway.api_client import Api, eventually, serving
from tests.keepfit.cli.command import keepfit
from tests.keepfit.cli.terminal import rows_of

NAMES = {"name", "host", "pid", "state", "models_held", "rows_per_s", "call_s"}
# Heartbeats come each tenth of a second, so that the test waits for none.
QUICK = {"LEASE_TTL_S": "0.3"}


async def listed(api: Api) -> dict[int, dict[str, Any]]:
    """Return the workers by process id."""
    workers = (await api.get("/v1/workers")).of(200)["workers"]
    assert [worker["name"] for worker in workers] == sorted(worker["name"] for worker in workers)
    assert all(worker.keys() == NAMES for worker in workers)
    return {worker["pid"]: worker for worker in workers}


async def test_workers_are_listed_while_they_live(up: Callable[..., Stack], tmp_path: Path) -> None:
    """Each process is listed with the models that it holds and its rate; a killed one is replaced by its successor."""
    stack = up(**QUICK)
    async with aiohttp.ClientSession(stack.url) as http:
        api = Api(http)

        async def both() -> bool:
            return set(await listed(api)) == set(stack.workers()) and len(stack.workers()) == 2

        await eventually(both, "both workers")
        before = await listed(api)
        assert {worker["host"] for worker in before.values()} == {os.uname().nodename}
        for number in range(3):
            path = await api.make({"type": "shoes", "number": number}, SHOES_RECIPE)
            await api.learn(path, [{"make": "nike", "year": 2000}] * 5, [1.0] * 5)

        async def counted() -> bool:
            found = (await listed(api)).values()
            # Both may hold the same model.
            return sum(worker["models_held"] for worker in found) >= 3 and sum(w["rows_per_s"] for w in found) > 0

        await eventually(counted, "the models and the rate")
        stopped, killed = sorted(before)
        os.kill(stopped, signal.SIGSTOP)
        os.kill(killed, signal.SIGKILL)

        async def replaced() -> bool:
            found = await listed(api)
            return killed not in found and len(found) == 2 and found[stopped]["call_s"] >= 1

        await eventually(replaced, "the successor")
        os.kill(stopped, signal.SIGCONT)
        printed = await asyncio.to_thread(keepfit, "workers", "--data", str(stack.data), cwd=tmp_path)
        assert {row[0] for row in rows_of(printed.stdout)} >= {worker["name"] for worker in before.values()} - {
            before[killed]["name"]
        }


async def test_workers_without_a_supervisor_are_listed_until_their_records_expire(
    settings: Settings,
) -> None:
    """A record without its fields, or with others, is not listed; states follow the record and its call."""
    client = redis.Redis.from_url(settings.store_url.get_secret_value())
    records: dict[str, dict[str, Any]] = {
        "idle": {"hostname": "a", "pid": 1, "state": "started"},
        "busy": {"hostname": "a", "pid": 2, "state": "busy", "call_s": 9, "models_held": 4, "rows_per_s": "2.5"},
        "long": {"hostname": "a", "pid": 3, "state": "busy", "call_s": 11},
        "stopped": {"hostname": "a", "pid": 4, "state": "idle", "call_s": 11},
        "forged": {"hostname": b"\xff", "pid": 5, "state": "idle"},
        "text": {"hostname": "a", "pid": "many", "state": "idle"},
    }
    for name, fields in records.items():
        client.hset(redis_keys.rq_worker(name), mapping=fields)
    client.sadd(redis_keys.RQ_WORKERS, *map(redis_keys.rq_worker, (*records, "expired")))
    async with serving(settings.model_copy(update={"predict_timeout_s": 10.0})) as api:
        found = (await api.get("/v1/workers")).of(200)["workers"]
        assert [(worker["name"], worker["state"]) for worker in found] == [
            ("busy", "busy"),
            ("idle", "idle"),
            ("long", "long_call"),
            ("stopped", "long_call"),
        ]
        assert found[0] == {
            "name": "busy", "host": "a", "pid": 2, "state": "busy", "models_held": 4, "rows_per_s": 2.5, "call_s": 9,
        }  # fmt: skip
        assert (found[1]["models_held"], found[1]["rows_per_s"], found[1]["call_s"]) == (0, 0.0, 0)
        client.delete(redis_keys.rq_worker("busy"))
        assert len((await api.get("/v1/workers")).of(200)["workers"]) == 3


def test_the_counts_of_a_worker_are_read_by_its_supervisor() -> None:
    """The end of a batch records the counts; what follows keeps them."""
    activity = Activity()
    activity.begin("batch")
    activity.end(models_held=2, rows_learned=7)
    activity.begin("call", "a" * 64)
    doing = activity.read()
    assert (doing.models_held, doing.rows_learned, doing.step) == (2, 7, "call")
