"""Loss of Redis' data: time until every model answers again, at first use or by one command.

Owns the failure: all processes are stopped, the folder of Redis is removed, all processes are started again. Measures
from outside: over HTTP, and the command from start to exit, imports included. Never reports a measurement after which a
model is missing or at another version than before.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from benchmarks import model, stack
from benchmarks.processes import StartError

CONCURRENCY = 32
COMMAND_S_MAX = 600
# The snapshotter of `keepfit up` would save models during the measurement.
NO_SNAPSHOTS = {"KEEPFIT_SNAPSHOT_EVERY_S": "86400"}


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Create `count` models, save them, lose Redis twice; return seconds and milliseconds by name."""
    with stack.started(folder, environment=NO_SNAPSHOTS) as up:
        hashes = stack.make_models(up, count)
        saving_s, _ = _command(up.data, "snapshot")
    _lose_redis(folder)
    with stack.started(folder, environment=NO_SNAPSHOTS) as up:
        started = time.monotonic()
        latencies_s = asyncio.run(_predict_all(up.url, hashes))
        first_use_s = time.monotonic() - started
    _lose_redis(folder)
    with stack.started(folder, environment=NO_SNAPSHOTS) as up:
        command_s, outcomes = _command(up.data, "restore")
        restored = sum(outcome["outcome"] == "restored" for outcome in outcomes)
        if restored != count:
            raise StartError(f"{restored} of {count} models were restored")
        again_s, _ = _command(up.data, "restore")
        asyncio.run(_predict_all(up.url, hashes))
        at_version_s, outcomes = _command(up.data, "restore", "--version", "1", "--force")
    return {
        "models": count,
        "snapshot_s": round(saving_s, 2),
        "first_use_all_s": round(first_use_s, 2),
        "first_use_p50_ms": round(median(latencies_s) * 1000, 1),
        "first_use_max_ms": round(max(latencies_s) * 1000, 1),
        "command_s": round(command_s, 2),
        "command_again_s": round(again_s, 2),
        "command_at_version_s": round(at_version_s, 2),
    }


def _lose_redis(folder: Path) -> None:
    """Remove the data of Redis, as the loss of a disk does; the stack must be stopped."""
    redis_folder = folder / "keepfit" / "redis"
    if not redis_folder.is_dir():
        raise StartError(f"{redis_folder} is not the data folder of Redis")
    shutil.rmtree(redis_folder)


def _command(data: Path, *arguments: str) -> tuple[float, list[dict[str, Any]]]:
    """Run a keepfit command with the settings of the stack; return its seconds and the documents that it prints."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "keepfit", "--data", str(data), *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_S_MAX,
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise StartError(f"keepfit {arguments[0]}: {done.stderr.strip()[-500:]}")
    return seconds, [json.loads(line) for line in done.stdout.splitlines()]


async def _predict_all(url: str, hashes: Sequence[str]) -> list[float]:
    """Request one prediction per model, 32 at a time; return the seconds of each.

    Raises
    ------
    StartError
        If a model does not answer with the version at which it was saved.
    """
    X, _ = model.rows(1)
    remaining, latencies_s = iter(hashes), []

    async with aiohttp.ClientSession(url) as session:

        async def predict_some() -> None:
            for model_hash in remaining:
                started = time.monotonic()
                async with session.post(f"/v1/models/{model_hash}/predict", json={"X": X}) as response:
                    answer = await response.json(content_type=None)
                latencies_s.append(time.monotonic() - started)
                if response.status != 200 or answer["version"] != 1:
                    raise StartError(f"{model_hash}: {response.status} {answer}")

        await asyncio.gather(*(predict_some() for _ in range(CONCURRENCY)))
    return latencies_s
