"""The command `keepfit status` on a stack that runs, that lacks a part, and that is down."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keepfit.local.demo import kill_all
from tests import servers
from tests.conftest import SHOES_RECIPE, Stack, start_stack, stop_stack
from tests.keepfit.cli.command import Done, keepfit
from tests.keepfit.cli.terminal import on_terminal, rows_of

PARTS = [
    "status", "keepfit up", "gateway", "gateways", "store", "queue", "history", "storage", "workers", "models",
    "waiting", "snapshots",
]  # fmt: skip


def status(stack: Stack, cwd: Path, *words: str) -> Done:
    """Run `keepfit status` on the stack's folder."""
    return keepfit("status", "--data", str(stack.data), *words, cwd=cwd)


def state(done: Done) -> dict[str, Any]:
    """Return the state that `keepfit status --json` printed."""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_running_stack_is_ok(stack: Stack, tmp_path: Path) -> None:
    """Every part is on one screen of 80 columns, both workers are named, and the exit code is 0."""
    done = status(stack, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row[0]: row[1] for row in rows_of(done.stdout)}
    assert [name for name in rows if not name.startswith("  ")] == PARTS
    assert rows["status"] == rows["store"] == rows["queue"] == rows["history"] == rows["storage"] == "ok"
    assert rows["gateway"] == f"ok at {stack.url}"
    assert rows["gateways"].startswith("1 process alive, ")
    assert rows["keepfit up"] == f"runs with pid {stack.process.pid} at {stack.url}"
    assert len([name for name in rows if name.startswith("  ")]) == 2
    shown = on_terminal("status", "--data", str(stack.data), cwd=tmp_path)
    assert [line for line in shown.splitlines() if len(line.rstrip()) > 80] == []
    assert len(shown.splitlines()) < 25


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a stack that the tests of this module disturb, each a part that runs again after the test."""
    stack = start_stack(tmp_path_factory.mktemp("status") / "data")
    yield stack
    if stack.process.poll() is None:
        kill_all(stack.data)
        stack.process.wait(30)


async def test_what_waits_is_counted_while_nothing_learns(own: Stack, tmp_path: Path) -> None:
    """Without workers the state is unavailable (exit code 3), and pending rows and their age are shown."""
    stack = own
    async with aiohttp.ClientSession(stack.url) as http:
        document = {"metadata": {"type": "shoes"}, "recipe": SHOES_RECIPE}
        async with http.post("/v1/models", json=document) as response:
            model_hash = (await response.json())["hash"]
        # Neither `keepfit up` nor the supervisor starts another worker.
        os.kill(stack.process.pid, signal.SIGSTOP)
        for pid in (stack.pids()["workers"], *stack.workers()):
            os.kill(pid, signal.SIGSTOP)
        rows = {"X": [["nike", 2001], ["puma", 2002]], "y": [4.0, 5.0]}
        for _ in range(2):
            async with http.post(f"/v1/models/{model_hash}/partial_fit", json=rows) as response:
                assert response.status == 202
    found = state(status(stack, tmp_path, "--json"))
    assert found["waiting"] | {"oldest_s": 0} == {
        "models": 1, "requests": 2, "rows": 4, "rows_counted_in": 2, "oldest_s": 0,
    }  # fmt: skip
    # It is an age: the next look finds it larger.
    assert state(status(stack, tmp_path, "--json"))["waiting"]["oldest_s"] > found["waiting"]["oldest_s"]
    assert found["models"] == {"registered": 1, "live": 1}
    for pid in (*stack.workers(), stack.pids()["workers"], stack.process.pid):
        os.kill(pid, signal.SIGCONT)
    servers.wait_until(lambda: state(status(stack, tmp_path, "--json"))["status"] == "ok", "the end of what waited")


def test_a_failed_part_degrades(own: Stack, tmp_path: Path) -> None:
    """Without MongoDB the service learns and predicts: degraded, with exit code 1."""
    stack = own
    os.kill(stack.process.pid, signal.SIGSTOP)
    os.kill(stack.pids()["mongo"], signal.SIGSTOP)
    try:
        done = status(stack, tmp_path, "--json")
        assert (done.returncode, state(done)["status"]) == (1, "degraded")
        assert state(done)["history"] != "ok"
        assert state(done)["store"] == "ok"
    finally:
        os.kill(stack.pids()["mongo"], signal.SIGCONT)
        os.kill(stack.process.pid, signal.SIGCONT)


def test_a_stack_that_is_down_is_reported_part_by_part(own: Stack, tmp_path: Path) -> None:
    """After the stack has stopped each part says why it does not answer; the exit code is 3. It is the last test."""
    stack = own
    assert stop_stack(stack) == 0
    done = status(stack, tmp_path)
    assert done.returncode == 3
    rows = {row[0]: row[1] for row in rows_of(done.stdout)}
    assert rows["status"] == "unavailable"
    assert rows["keepfit up"] == "does not run on this folder"
    assert rows["gateway"].startswith(f"No gateway answers at {stack.url}: Connection refused")
    assert "Redis is unavailable" in rows["store"]
    assert "MongoDB is unavailable" in rows["history"]
    assert rows["waiting"] == rows["models"] == rows["gateways"] == "unknown"
    assert rows["storage"] == "ok"
