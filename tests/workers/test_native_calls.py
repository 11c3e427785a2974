"""Calls of native code that keep their worker's interpreter from running: long ones, and ones that never return."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from keepfit.backends import redis_keys
from keepfit.store.unloadable import DEATHS_MAX
from tests import servers
from tests.conftest import Stack, start_stack, stop_stack
from tests.factories import dump_local
from tests.gateway.api_client import REGRESSOR, Api, eventually

LEASE_TTL_S, CALL_TIMEOUT_S = 1.5, 6
# A call of a function of PyDLL keeps the interpreter's lock, as native code may: no other thread of its process runs.
SOURCE = """import ctypes
class Native:
    def partial_fit(self, X, y):
        ctypes.PyDLL(None).sleep(int(max(y)))
    def predict(self, X):
        ctypes.PyDLL(None).sleep(int(X[0][0]))
        return [0.0] * len(X)
"""
# Its bundles end the process that loads them while the file MARK exists.
FATAL_EXIT = 77
FATAL = """import os
class Fatal:
    def partial_fit(self, X, y):
        self.rows = len(X)
    def predict(self, X):
        return [0.0] * len(X)
    def __setstate__(self, state):
        if state and os.path.exists(MARK):
            os._exit(EXIT)
        self.__dict__.update(state or {})
"""
# Its calls to learn do not return while the file MARK exists.
STUCK = """import ctypes, os
class Stuck:
    def partial_fit(self, X, y):
        while os.path.exists(MARK):
            ctypes.PyDLL(None).usleep(100_000)
    def predict(self, X):
        return [0.0] * len(X)
"""
# Longer than any test.
NEVER = 100_000.0


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a stack with two workers, leases that expire soon, and short calls."""
    environment = {
        "KEEPFIT_LEASE_TTL_S": str(LEASE_TTL_S),
        "KEEPFIT_CALL_TIMEOUT_S": str(CALL_TIMEOUT_S),
    }
    stack = start_stack(tmp_path_factory.mktemp("native") / "data", environment=environment)
    yield stack
    assert stop_stack(stack) == 0


@pytest.fixture
async def api(own_stack: Stack) -> Any:
    """Return the API of the stack."""
    async with aiohttp.ClientSession(own_stack.url) as http:
        yield Api(http)


def native(stack: Stack) -> dict[str, Any]:
    """Return the recipe of an object that sleeps: for `y` seconds when it learns, for `X[0][0]` when it predicts."""
    return {"object": dump_local(SOURCE, stack.environment()["KEEPFIT_UPLOAD_KEYS"])}


def events(stack: Stack, name: str) -> list[dict[str, Any]]:
    """Return the log events of this name of supervisor and workers."""
    lines = (line for line in stack.log("workers").splitlines() if line.startswith("{"))
    return [entry for entry in map(json.loads, lines) if entry["event"] == name]


async def test_a_long_native_call_keeps_its_lease(own_stack: Stack, api: Api, metadata: dict[str, Any]) -> None:
    """A call of several lives of a lease is learned once, by one worker, while other models are answered."""
    other = await api.make({**metadata, "other": True}, REGRESSOR)
    await api.learn(other, X=[[1.0]], y=[1.0])
    path = await api.make(metadata, native(own_stack))
    (await api.post(f"{path}/partial_fit", {"X": [[0.0]], "y": [4.0]})).of(202)
    client = redis.Redis.from_url(own_stack.environment()["KEEPFIT_STORE_URL"])
    lock, seen = redis_keys.lock(path.rpartition("/")[2]), set()
    while not (model := await api.model(path))["rows_seen"]:
        seen.add(client.get(lock))
        await api.predict(other, [[time.monotonic()]])
        await asyncio.sleep(0.05)
    assert len(seen - {None}) == 1, "several leases have learned the request"
    assert (model["version"], model["inbox"]) == (1, 0)
    assert events(own_stack, "lease_expired") == []


async def test_a_call_over_its_time_ends_with_its_worker(own_stack: Stack, api: Api, metadata: dict[str, Any]) -> None:
    """A prediction that never returns is stopped by killing its worker; later requests are answered."""
    path = await api.make(metadata, native(own_stack))
    await api.learn(path, X=[[0.0]], y=[0.0])
    before = set(own_stack.workers())
    (await api.post(f"{path}/predict?timeout=1", {"X": [[NEVER]]})).problem(504)
    servers.wait_until(lambda: bool(before - set(own_stack.workers())), "the end of the worker")
    (killed,) = (entry for entry in events(own_stack, "call_timed_out") if entry["hash"] == path.rpartition("/")[2])
    assert (killed["hash"], killed["step"]) == (path.rpartition("/")[2], "call")
    assert killed["seconds"] >= CALL_TIMEOUT_S
    await api.predict(path, [[0.0]])


async def test_rows_that_never_end_become_a_dead_letter(own_stack: Stack, api: Api, metadata: dict[str, Any]) -> None:
    """After two calls over their time a request is put aside with that reason; later rows are learned."""
    path = await api.make(metadata, native(own_stack))
    for y in (NEVER, 0.0):
        (await api.post(f"{path}/partial_fit", {"X": [[0.0]], "y": [y]})).of(202)

    async def learned() -> bool:
        return bool((await api.model(path))["rows_seen"])

    await eventually(learned, "the end of the endless request", seconds=60)
    (letter,) = (await api.get(f"{path}/dead")).of(200)["dead"]
    assert (letter["sequence"], "longer than a call may" in letter["reason"]) == (1, True), letter
    assert events(own_stack, "lease_expired") == []


async def test_a_bundle_that_kills_its_loaders_is_put_aside(
    own_stack: Stack, api: Api, metadata: dict[str, Any], tmp_path: Path
) -> None:
    """A few workers die, then its questions get an error and its rows wait, and a restore brings the model back."""
    other = await api.make({**metadata, "other": "beside"}, REGRESSOR)
    await api.learn(other, X=[[1.0]], y=[1.0])
    mark = tmp_path / "fatal"
    source = FATAL.replace("MARK", repr(str(mark))).replace("EXIT", str(FATAL_EXIT))
    path = await api.make(metadata, {"object": dump_local(source, own_stack.environment()["KEEPFIT_UPLOAD_KEYS"])})
    await api.learn(path, X=[[0.0]], y=[0.0])
    (await api.call("POST", f"{path}/snapshot")).of(201)
    for pid in own_stack.workers():
        # Their successors have no bundle in memory.
        os.kill(pid, signal.SIGKILL)
    mark.touch()
    (await api.post(f"{path}/partial_fit", {"X": [[1.0]], "y": [1.0]})).of(202)

    async def marked() -> bool:
        return bool((await api.model(path))["warnings"])

    await eventually(marked, "the mark of the bundle", seconds=60)
    found = (await api.post(f"{path}/predict", {"X": [[1.0]]})).problem(500)
    assert found["type"] == "urn:keepfit:problem:unloadable"
    ready = (await api.get("/readyz")).of(200)
    assert (ready["status"], "no worker loads" in ready["detail"]) == ("degraded", True)
    await api.predict(other, [[2.0]])
    died = [entry for entry in events(own_stack, "worker_died") if entry["exitcode"] == FATAL_EXIT]
    # At the last death the other one of the two workers may be loading the bundle, too.
    assert DEATHS_MAX <= len(died) <= DEATHS_MAX + 1
    assert {entry["hash"] for entry in events(own_stack, "bundle_unloadable")} == {path.rpartition("/")[2]}
    assert ((await api.model(path))["inbox"], (await api.get(f"{path}/dead")).of(200)["dead"]) == (1, [])

    mark.unlink()
    (await api.post(f"{path}/restore", {"version": 1})).of(200)

    async def learned() -> bool:
        return bool((await api.model(path))["rows_seen"] == 2)

    await eventually(learned, "the pending row", seconds=60)
    assert (await api.model(path))["warnings"] == []
    assert (await api.get("/readyz")).of(200)["status"] == "ok"


async def test_a_snapshot_that_kills_its_loaders_is_put_aside(
    own_stack: Stack, api: Api, metadata: dict[str, Any], tmp_path: Path
) -> None:
    """A few workers die at a lost model, then its questions get an error; a restore by name brings the model back."""
    mark = tmp_path / "fatal snapshot"
    source = FATAL.replace("MARK", repr(str(mark))).replace("EXIT", str(FATAL_EXIT + 1))
    path = await api.make(metadata, {"object": dump_local(source, own_stack.environment()["KEEPFIT_UPLOAD_KEYS"])})
    await api.learn(path, X=[[0.0]], y=[0.0])
    (await api.call("POST", f"{path}/snapshot")).of(201)
    mark.touch()
    store = redis.Redis.from_url(own_stack.environment()["KEEPFIT_STORE_URL"])
    store.delete(*store.scan_iter(match=f"kf:{{{path.rpartition('/')[2]}}}:*"))
    found = (await api.post(f"{path}/predict?timeout=100", {"X": [[1.0]]})).problem(500)
    assert found["type"] == "urn:keepfit:problem:unloadable"
    assert "the snapshot of version 1" in found["detail"]
    died = [entry for entry in events(own_stack, "worker_died") if entry["exitcode"] == FATAL_EXIT + 1]
    assert len(died) == DEATHS_MAX
    # The next one gets it at once.
    (await api.post(f"{path}/predict", {"X": [[1.0]]})).problem(500)

    mark.unlink()
    (await api.post(f"{path}/restore", {"version": 1})).of(200)
    assert (await api.predict(path, [[1.0]]))["predictions"] == [0.0]


async def test_a_repair_that_never_ends_is_ended(
    own_stack: Stack, api: Api, metadata: dict[str, Any], tmp_path: Path
) -> None:
    """One worker repairs, the other one answers other models; its question gets the reason, and no worker is killed."""
    other = await api.make({**metadata, "other": "meanwhile"}, REGRESSOR)
    await api.learn(other, X=[[1.0]], y=[1.0])
    mark = tmp_path / "stuck"
    source = STUCK.replace("MARK", repr(str(mark)))
    path = await api.make(metadata, {"object": dump_local(source, own_stack.environment()["KEEPFIT_UPLOAD_KEYS"])})
    await api.learn(path, X=[[0.0]], y=[0.0])
    before = set(own_stack.workers())
    for pid in before:
        # Their successors have no bundle in memory.
        os.kill(pid, signal.SIGKILL)
    servers.wait_until(lambda: len(set(own_stack.workers()) - before) == 2, "the successors")
    workers = own_stack.workers()
    mark.touch()
    store = redis.Redis.from_url(own_stack.environment()["KEEPFIT_STORE_URL"])
    queue = redis.Redis.from_url(own_stack.environment()["KEEPFIT_QUEUE_URL"])
    store.delete(redis_keys.bundle(path.rpartition("/")[2]))
    questions = [
        asyncio.create_task(api.post(f"{path}/predict?timeout=100", {"X": [[float(number)]]})) for number in range(4)
    ]

    async def repaired() -> bool:
        return bool(queue.hlen(redis_keys.RESTORES))

    await eventually(repaired, "the begin of the repair")
    for number in range(20):
        await api.predict(other, [[float(number)]])
    assert not any(question.done() for question in questions)
    for question in questions:
        found = (await question).problem(500)
        assert found["type"] == "urn:keepfit:problem:missing-requests"
        assert "longer than a call may" in found["detail"]
    assert own_stack.workers() == workers
    assert path.rpartition("/")[2] not in {entry["hash"] for entry in events(own_stack, "call_timed_out")}


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_worker_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    """A worker in native code is killed with its supervisor, because nothing would renew its lease."""
    mark = tmp_path / "pid"
    script = (
        "import ctypes, os, time\n"
        "from keepfit import child_processes\n"
        "supervisor = os.getpid()\n"
        "if not os.fork():\n"
        "    child_processes.end_with(supervisor)\n"
        f"    open({str(mark)!r}, 'w').write(str(os.getpid()))\n"
        "    ctypes.PyDLL(None).sleep(1000)\n"
        "time.sleep(1000)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script])
    try:
        servers.wait_until(lambda: mark.exists() and mark.read_text() != "", "the start of the worker")
    finally:
        supervisor.kill()
        supervisor.wait()
    servers.wait_until(lambda: not Path(f"/proc/{mark.read_text()}").exists(), "the end of the worker")
