"""`keepfit up` and `keepfit demo` as a user runs them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from keepfit import hash_seed
from keepfit.local import demo, stack
from keepfit.local.data_folder import RunningStack
from keepfit.local.demo import kill_all
from keepfit.observability.logs import READY_EVENTS
from keepfit.settings import load
from tests import servers
from tests.conftest import SHOES_RECIPE, Stack, start_stack, stop_stack
from tests.keepfit.cli.command import keepfit

METADATA = {"type": "shoes", "session": "up"}


async def learn(stack: Stack, votes: int) -> dict[str, Any]:
    """Create the model if it does not exist, learn some votes, and return a prediction."""
    async with aiohttp.ClientSession(stack.url) as session:
        async with session.post("/v1/models", json={"metadata": METADATA, "recipe": SHOES_RECIPE}) as response:
            assert response.status in (200, 201), await response.text()
        for i in range(votes):
            body = {"metadata": METADATA, "X": [["nike", 2000 + i]], "y": [i % 5]}
            async with session.post("/v1/partial_fit", json=body, headers={"Prefer": "wait=20"}) as response:
                assert response.status == 200, await response.text()
        return await predict(session)


async def predict(session: aiohttp.ClientSession) -> dict[str, Any]:
    """Predict as a client does: retry after the time that a 503 names, until a worker is back."""
    deadline = time.monotonic() + servers.START_S_MAX
    while True:
        async with session.post("/v1/predict", json={"metadata": METADATA, "X": [["nike", 2003]]}) as response:
            answer: dict[str, Any] = await response.json()
            if response.status == 200:
                return answer
            assert response.status == 503, answer
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(int(response.headers["Retry-After"]))


@pytest.mark.timeout(240)
async def test_a_second_up_continues_with_the_data(up: Callable[[], Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows learned before Ctrl-C, and before a SIGKILL of every process, are there after the next start.

    So is a hash seed of the user, for the next stack on the folder and for other commands.
    """
    monkeypatch.setenv(hash_seed.NAME, "7")
    stack = up()
    monkeypatch.delenv(hash_seed.NAME)
    assert stack.environment()[hash_seed.NAME] == hash_seed.chosen(stack.data / "env") == "7"
    pids = [*stack.pids().values(), *stack.workers()]
    first = await learn(stack, votes=3)
    assert first["rows_seen"] == 3
    assert stop_stack(stack) == 0
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]  # noqa: ASYNC240 - /proc does not block

    stack = up()
    variables = Path(f"/proc/{stack.pids()['workers']}/environ").read_bytes()  # noqa: ASYNC240 - /proc does not block
    assert b"PYTHONHASHSEED=7\0" in variables
    assert await learn(stack, votes=0) == first
    second = await learn(stack, votes=2)
    assert second["rows_seen"] == 5
    assert kill_all(stack.data) >= 6
    stack.process.wait(10)

    stack = up()
    assert await learn(stack, votes=0) == second
    assert stop_stack(stack) == 0


def test_a_child_that_ends_meanwhile_stops_no_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes of a stack are killed, although a child of a service ended after it was listed."""
    lasting, child = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    child.kill()
    child.wait()
    record = RunningStack(url="", pid=lasting.pid, parts={"workers": lasting.pid})
    monkeypatch.setattr(demo, "record_of", lambda data: record)
    monkeypatch.setattr(demo, "_children", lambda pid: [child.pid])
    assert kill_all(tmp_path) == 2
    assert lasting.wait() == -signal.SIGKILL


@pytest.mark.timeout(240)
async def test_a_dead_process_is_restarted(up: Callable[[], Stack]) -> None:
    """Gateway, supervisor and Redis are killed one after the other; each is restarted and nothing is lost."""
    stack = up()
    before = await learn(stack, votes=3)
    for name in ("gateway", "workers", "redis"):
        pid = stack.pids()[name]
        os.kill(pid, signal.SIGKILL)
        servers.wait_until(lambda name=name, pid=pid: stack.pids()[name] != pid, f"the restart of {name}")  # type: ignore[misc]
        servers.wait_until(lambda: servers.answers(f"{stack.url}/readyz"), f"readiness after {name} died")
        assert await learn(stack, votes=0) == before
    after = await learn(stack, votes=1)
    assert after["rows_seen"] == 4
    assert stop_stack(stack) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="several processes need Linux")
@pytest.mark.timeout(240)
async def test_a_gateway_with_several_processes(tmp_path: Path) -> None:
    """`--gateways 2` starts two on one port; the first screen and `status` show it, and a killed gateway comes back."""
    stack = start_stack(tmp_path / "data", words=("--gateways", "2"))
    try:
        assert "KEEPFIT_GATEWAY_PROCESSES=2\n" in (stack.data / "up.log").read_text()
        before = await learn(stack, votes=3)
        supervisor = stack.pids()["gateway"]
        first = children(supervisor)
        assert len(first) == 2
        shown = keepfit("status", "--data", str(stack.data), cwd=tmp_path)
        assert (shown.returncode, f"ok at {stack.url}, 2 processes\n" in shown.stdout) == (0, True)
        os.kill(supervisor, signal.SIGKILL)
        servers.wait_until(lambda: stack.pids()["gateway"] != supervisor, "the restart of the gateway")
        servers.wait_until(lambda: servers.answers(f"{stack.url}/readyz"), "readiness of the gateway")
        assert await learn(stack, votes=0) == before
        assert not set(first) & set(children(stack.pids()["gateway"]))
    finally:
        assert stop_stack(stack) == 0


@pytest.mark.timeout(240)
async def test_an_idle_model_leaves_and_its_next_use_brings_it_back(up: Callable[..., Stack]) -> None:
    """A saved model leaves Redis; predictions, repeated calls and new rows find it as it was, and nothing is lost."""
    stack = up(IDLE_AFTER_S="1", SNAPSHOT_EVERY_S="0.2", LOG_LEVEL="error")
    client = redis.Redis.from_url(stack.environment()["KEEPFIT_STORE_URL"])
    headers = {"Prefer": "wait=20", "Idempotency-Key": "one"}
    body = {"metadata": METADATA, "X": [["nike", 2000]], "y": [1]}
    with client:
        before = await learn(stack, votes=2)
        async with aiohttp.ClientSession(stack.url) as session:
            async with session.post("/v1/partial_fit", json=body, headers=headers) as response:
                first = await response.json()
                assert response.status == 200, first
            (state,) = client.keys("kf:{*}:st")
            for _ in range(2):
                servers.wait_until(lambda: not client.exists(state), "the model to leave Redis")
                async with session.get("/v1/models", params={"type": "shoes"}) as response:
                    (listed,) = (await response.json())["models"]
                    assert (listed["version"], listed["inbox"]) == (first["version"], 0)
                assert not client.exists(state)
                async with session.post("/v1/partial_fit", json=body, headers=headers) as response:
                    assert (await response.json())["sequence"] == first["sequence"]
            servers.wait_until(lambda: not client.exists(state), "the model to leave Redis again")
            assert (await predict(session))["rows_seen"] == before["rows_seen"] + 1
        after = await learn(stack, votes=1)
        assert (after["rows_seen"], after["version"]) == (before["rows_seen"] + 2, before["version"] + 2)
    assert stop_stack(stack) == 0
    # Below the level of errors, services have logged only that they are ready.
    logs = [(stack.data / f"logs/{name}.log").read_text() for name in ("gateway", "workers", "snapshotter")]
    assert {json.loads(line)["event"] for log in logs for line in log.splitlines()} == READY_EVENTS


def test_two_stacks_do_not_share_a_folder(stack: Stack) -> None:
    """A second `up` on the same folder names the first one and does not disturb it."""
    command = [sys.executable, "-m", "keepfit", "up", "--data", str(stack.data), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"pid {stack.process.pid}" in done.stderr.replace("\n", " ")
    assert servers.answers(f"{stack.url}/readyz")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_each_process_has_the_secrets_that_it_needs(stack: Stack, metadata: dict[str, Any]) -> None:
    """The environment of each child, and of its children, holds the keys that it needs and no others."""
    async with aiohttp.ClientSession(stack.url) as session:
        # Starts the process that checks recipes.
        recipe = {"estimator": "SGDRegressor", "params": {"alpha": 0.0123}}
        async with session.post("/v1/models", json={"metadata": metadata, "recipe": recipe}) as response:
            assert response.status == 201
    pids = stack.pids()
    needs = {"workers": {"signing-keys", "upload-keys"}, "snapshotter": {"signing-keys"}, "gateway": {"upload-keys"}}
    for name, pid in pids.items():
        for each in [pid, *children(pid)]:
            text = environment_of(each)
            expected = needs.get(name, set()) if each == pid or name != "gateway" else set()
            for file in ("signing-keys", "upload-keys"):
                secret = (stack.data / file).read_text().strip().partition(":")[2]
                assert (secret in text) is (file in expected), (name, file)
            assert ("KEEPFIT_STORE_URL" in text) is (name in needs and (each == pid or name != "gateway")), name
    assert children(pids["gateway"])
    assert children(pids["workers"])


def environment_of(pid: int) -> str:
    """Return the variables that a process was started with."""
    return Path(f"/proc/{pid}/environ").read_text()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def test_secrets_of_the_folder_are_readable_by_its_owner_only(stack: Stack) -> None:
    """Only the owner can read the files of signing key and settings, and no log contains the key."""
    key = (stack.data / "signing-keys").read_text().strip()
    for name in ("signing-keys", "env"):
        assert (stack.data / name).stat().st_mode & 0o077 == 0
    for log in [*(stack.data / "logs").iterdir(), stack.data / "up.log"]:
        assert key.partition(":")[2] not in log.read_text(errors="replace"), log


@pytest.mark.timeout(300)
def test_the_demo_learns_all_flights_and_survives_the_loss_of_redis(tmp_path: Path) -> None:
    """The demo on the first flights learns all of them, survives the loss of Redis and is far better than the mean."""
    command = [sys.executable, "-m", "keepfit", "--data", str(tmp_path / "data")]
    demo = [*command, "demo", "--once", "--port", "0", "--flights", "12000"]
    done = subprocess.run(
        demo, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert "200 of 200 the same to the last bit" in text
    assert "= 12,000 of 12,000 flights" in text
    error, mean = text.rsplit("error ", 1)[1].split(" min, mean's ")
    assert float(error) < 0.6 * float(mean.split()[0])
    assert not (tmp_path / "data" / "up.json").exists()


def test_up_refuses_a_port_in_use(stack: Stack, tmp_path: Path) -> None:
    """`keepfit up` refuses a port on which another gateway listens."""
    port = json.loads((stack.data / "up.json").read_text())["url"].rpartition(":")[2]
    command = [sys.executable, "-m", "keepfit", "up", "--data", str(tmp_path), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"keepfit: Cannot listen on 127.0.0.1:{port}: the port is in use; choose another one with KEEPFIT_PORT, or "
        "with --port of `keepfit up`.\n"
    )


def test_gateway_refuses_a_port_in_use(stack: Stack, tmp_path: Path) -> None:
    """`keepfit gateway` on a port in use exits with one line that names the address."""
    port = json.loads((stack.data / "up.json").read_text())["url"].rpartition(":")[2]
    environment = {**os.environ, **stack.environment(), "KEEPFIT_PORT": port}
    command = [sys.executable, "-m", "keepfit", "gateway"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in done.stderr.replace("\n", " ")


def test_the_url_of_the_row_log_is_stored_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KEEPFIT_ROW_LOG_URL, if set, is stored in the folder for a later restore; otherwise the folder names none."""

    def environment(name: str) -> Mapping[str, str]:
        settings = load().model_copy(update={"port": 0})
        return stack.Stack(tmp_path / name, settings, lambda lines: None).environment

    assert "KEEPFIT_ROW_LOG_URL" not in environment("without")
    url = (tmp_path / "log").as_uri()
    monkeypatch.setenv("KEEPFIT_ROW_LOG_URL", url)
    assert environment("with")["KEEPFIT_ROW_LOG_URL"] == url
