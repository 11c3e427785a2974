"""Redis' data are gone: how long until every model answers again, one by one at its first use, or all by one command.

Owns the disaster: everything is stopped, Redis' folder removed, everything started again. Measures from outside: over
HTTP, and the command from its start to its end, imports and all. Never measures what did not bring every model back at
the version that it had.
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

AT_ONCE = 32
COMMAND_S_MAX = 600
# The snapshotter of `keepfit up` would save models while they are counted.
NO_SNAPSHOTS = {"KEEPFIT_SNAPSHOT_EVERY_S": "86400"}


def measure(place: Path, count: int) -> dict[str, Any]:
    """Make `count` models, save them, lose Redis twice; return seconds and milliseconds by name."""
    with stack.started(place, environment=NO_SNAPSHOTS) as up:
        hashes = stack.make_models(up, count)
        saving_s, _ = _command(up.data, "snapshot")
    _lose_redis(place)
    with stack.started(place, environment=NO_SNAPSHOTS) as up:
        began = time.monotonic()
        waits = asyncio.run(_predict_all(up.url, hashes))
        first_use_s = time.monotonic() - began
    _lose_redis(place)
    with stack.started(place, environment=NO_SNAPSHOTS) as up:
        command_s, outcomes = _command(up.data, "restore")
        brought_back = sum(outcome["outcome"] == "restored" for outcome in outcomes)
        if brought_back != count:
            raise StartError(f"{brought_back} of {count} models were restored")
        again_s, _ = _command(up.data, "restore")
        asyncio.run(_predict_all(up.url, hashes))
        back_s, outcomes = _command(up.data, "restore", "--version", "1", "--force")
    return {
        "models": count,
        "snapshot_s": round(saving_s, 2),
        "first_use_all_s": round(first_use_s, 2),
        "first_use_p50_ms": round(median(waits) * 1000, 1),
        "first_use_max_ms": round(max(waits) * 1000, 1),
        "command_s": round(command_s, 2),
        "command_again_s": round(again_s, 2),
        "command_at_version_s": round(back_s, 2),
    }


def _lose_redis(place: Path) -> None:
    """Remove Redis' data, as a lost disk does; the stack must be down."""
    folder = place / "keepfit" / "redis"
    if not folder.is_dir():
        raise StartError(f"{folder} is not where Redis' data are")
    shutil.rmtree(folder)


def _command(data: Path, *words: str) -> tuple[float, list[dict[str, Any]]]:
    """Run a command of keepfit's on the stack's own settings; return its seconds and the documents it prints."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "keepfit", "--data", str(data), *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_S_MAX,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise StartError(f"keepfit {words[0]}: {done.stderr.strip()[-500:]}")
    return seconds, [json.loads(line) for line in done.stdout.splitlines()]


async def _predict_all(url: str, hashes: Sequence[str]) -> list[float]:
    """Ask each model once, some at a time; each must answer at the version that it was saved at. Seconds of each."""
    X, _ = model.rows(1)
    left, waits = iter(hashes), []

    async with aiohttp.ClientSession(url) as session:

        async def ask_some() -> None:
            for model_hash in left:
                began = time.monotonic()
                async with session.post(f"/v1/models/{model_hash}/predict", json={"X": X}) as response:
                    answer = await response.json(content_type=None)
                waits.append(time.monotonic() - began)
                if response.status != 200 or answer["version"] != 1:
                    raise StartError(f"{model_hash}: {response.status} {answer}")

        await asyncio.gather(*(ask_some() for _ in range(AT_ONCE)))
    return waits
