"""`keepfit up` and `keepfit demo` as a user runs them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keepfit.local import stack
from keepfit.local.demo import kill_all
from tests import servers
from tests.conftest import SHOES_RECIPE, Stack, stop_stack

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
async def test_a_second_up_continues_with_the_data(up: Callable[[], Stack]) -> None:
    """Rows learned before Ctrl-C, and before a SIGKILL of every process, are there after the next start."""
    stack = up()
    pids = [*stack.pids().values(), *stack.workers()]
    first = await learn(stack, votes=3)
    assert first["rows_seen"] == 3
    assert stop_stack(stack) == 0
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]  # noqa: ASYNC240 - /proc does not block

    stack = up()
    assert await learn(stack, votes=0) == first
    second = await learn(stack, votes=2)
    assert second["rows_seen"] == 5
    assert kill_all(stack.data) >= 6
    stack.process.wait(10)

    stack = up()
    assert await learn(stack, votes=0) == second
    assert stop_stack(stack) == 0


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


def test_two_stacks_do_not_share_a_folder(stack: Stack) -> None:
    """A second `up` on the same folder names the first one and does not disturb it."""
    command = [sys.executable, "-m", "keepfit", "up", "--data", str(stack.data), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"pid {stack.process.pid}" in done.stderr.replace("\n", " ")
    assert servers.answers(f"{stack.url}/readyz")


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
    assert f"Port {port} is in use; choose another one with --port." in " ".join(done.stderr.split())


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
    assert "KEEPFIT_ROW_LOG_URL" not in stack.Stack(tmp_path / "without", 0, 1).environment
    url = (tmp_path / "log").as_uri()
    monkeypatch.setenv("KEEPFIT_ROW_LOG_URL", url)
    assert stack.Stack(tmp_path / "with", 0, 1).environment["KEEPFIT_ROW_LOG_URL"] == url
