"""Forged jobs in RQ's queue, with real workers: none of them runs, no worker stops, and leases still run."""

import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Queue
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.job import Job
from rq.serializers import DefaultSerializer, JSONSerializer
from rq.suspension import suspend

from keepfit import identity
from keepfit.backends import redis_clients, redis_keys
from keepfit.jobs import run_queue
from keepfit.jobs.rq_jobs import PREDICT
from keepfit.local.stack import end_with_parent
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store.models import Install, Store
from tests.conftest import SIGNING_KEYS
from tests.factories import accept
from tests.servers import wait_until

LEASE = "ab" * 16
HUGE = 8 * 2**20


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """Run `keepfit worker` with one process; yield the supervisor and its log file."""
    log = tmp_path / "worker.log"
    environment = {
        **os.environ,
        "KEEPFIT_STORE_URL": settings.store_url.get_secret_value(),
        "KEEPFIT_MONGO_URL": settings.mongo_url.get_secret_value(),
        "KEEPFIT_SNAPSHOT_URL": settings.snapshot_url,
        "KEEPFIT_SIGNING_KEYS": SIGNING_KEYS,
        "KEEPFIT_WORKERS": "1",
    }
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "keepfit", "worker"],
            env=environment,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - as in `keepfit up`
        )
    yield supervisor, log
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(30) == 0, log.read_text()


def write(client: redis.Redis, name: bytes | str, data: Any, **fields: Any) -> None:
    """Write a job record, as any client of Redis could, and push its id to the queue."""
    raw = data if isinstance(data, bytes) else zlib.compress(json.dumps(data).encode())
    key = Job.redis_job_namespace_prefix.encode() + (name if isinstance(name, bytes) else name.encode())
    client.hset(key, mapping={"data": raw, "status": "queued", **fields})
    client.rpush(redis_keys.RQ_QUEUE, name)
    client.incr("written")


def push_forged_jobs(client: redis.Redis, mark: Path) -> int:
    """Push all kinds of forged jobs, each of which would create the file `mark`; return how many."""
    command = f"touch {mark}"
    system = ["os.system", None, [command], {}]
    for serializer in (DefaultSerializer, JSONSerializer):
        Queue(redis_keys.QUEUE, connection=client, serializer=serializer).enqueue("os.system", command)
    pickled = b"cos\nsystem\n(V" + command.encode() + b"\ntR."
    ids = (f"{number:032x}" for number in range(1000))
    lease = [PREDICT, None, [LEASE], {}]
    write(client, next(ids), system)
    write(client, next(ids), pickled)
    write(client, next(ids), zlib.compress(pickled), meta=pickled, result=pickled)
    for name in ("success_callback_name", "failure_callback_name", "stopped_callback_name"):
        write(client, next(ids), system, **{name: "os.system"})
    write(client, next(ids), [PREDICT, None, [command], {}])
    write(client, next(ids), [PREDICT, {"py/object": "os.system"}, [LEASE], {}])
    write(client, next(ids), ["subprocess.run", None, [["touch", str(mark)]], {}], retries_left=9, repeats_left=9)
    write(client, next(ids), b"\x00" * HUGE)
    write(client, next(ids), zlib.compress(b"[" * HUGE))
    for fields in ({"timeout": "soon"}, {"status": "bogus"}, {"dependency_ids": "{"}, {"created_at": "x"}):
        write(client, next(ids), lease, **fields)
    for name in (b"\xff\xfe", b"", b"../x", b"a:b", b"new\nline", b"{h}", b"x" * 10_000):
        write(client, name, system)
    client.rpush(redis_keys.RQ_QUEUE, next(ids))
    client.set(Job.redis_job_namespace_prefix + (name := next(ids)), "no hash")
    client.rpush(redis_keys.RQ_QUEUE, name)
    # Plus the two that RQ itself enqueued; the last two have no job record, which also happens in normal operation.
    return int(client.get("written") or 0) + 2  # type: ignore[arg-type]


async def test_forged_jobs_neither_run_nor_stop_a_worker(
    settings: Settings, worker: tuple["subprocess.Popen[bytes]", Path], tmp_path: Path
) -> None:
    """One worker refuses and logs forged jobs of all kinds, and executes the lease enqueued after them."""
    client, mark = redis_clients.queue_sync(settings), tmp_path / "ran"
    wait_until(lambda: bool(client.smembers(redis_keys.RQ_WORKERS)), "the worker's start")
    (name,) = client.smembers(redis_keys.RQ_WORKERS)  # type: ignore[misc]
    # Commands that any client may publish, and the key that suspends RQ's workers.
    channel = PUBSUB_CHANNEL_TEMPLATE % name.decode().rpartition(":")[2]
    for command in ("shutdown", "kill-horse", "stop-job", "stop-execution", "{"):
        assert client.publish(channel, json.dumps({"command": command})) == 0, "a worker subscribes to RQ's commands"
    suspend(client)
    count = push_forged_jobs(client, mark)
    store = redis_clients.store_async(settings)
    metadata, recipe = {"type": "forged"}, parse({"estimator": "SGDRegressor"})
    model_hash = identity.hash_of(metadata)
    opened = Store(store)
    await opened.install(Install(model_hash, identity.canonical(metadata).decode(), recipe.text(), generation=1))
    model = await opened.describe(model_hash)
    assert model is not None
    await accept(opened, model, shape(recipe, [[1.0]], [1.0], learning=True))
    run_queue.enqueue_lease(client, run_queue.LEARN, settings.lease_ttl_s, [model_hash])
    state = redis_keys.state(model_hash)
    wait_until(lambda: client.hget(state, "learned") == b"1", "a row being learned after the forged jobs")
    await store.aclose()
    _, log = worker
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events.count("job_refused") == count, log.read_text()
    assert events.count("worker_started") == 1, log.read_text()
    assert not {"worker_died", "sweep_failed"} & set(events)
    assert client.smembers(redis_keys.RQ_WORKERS) == {name}
    assert not client.llen(redis_keys.RQ_QUEUE)
    assert not mark.exists()
    refusals = [line for line in lines if line["event"] == "job_refused"]
    assert max(len(line["job"]) + len(line["reason"]) for line in refusals) < 500
