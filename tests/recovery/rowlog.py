"""All processes killed at once and Redis emptied: ``python -m tests.recovery.rowlog --rounds 20``.

Owns the rounds: load, ``kill -9`` of every process, deletion of Redis' data (those of MongoDB, the storage and the row
log stay), start, while clients repeat unanswered requests. Then the check: every accepted request was learned once, in
the order of the answers. Only a 202 counts as accepted. Kills only processes that it has started, by process id.
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import redis.asyncio
from rich.console import Console

from keepfit.backends import redis_keys
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import unseal
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring
from tests.conftest import SIGNING_KEYS
from tests.faults.check import differences
from tests.faults.clients import TrackedModel
from tests.recovery.deployment import Deployment, deployed

ATTEMPT_S_MAX, RETRY_S, STILL_S_MAX = 10.0, 0.1, 120.0
MODELS, CLIENTS = 3, 4


@dataclass(slots=True)
class Answered:
    """Answers to clients: the sequence of each accepted row, by model, and the number of answers per status."""

    sequences: list[dict[int, int]]
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a run."""

    rounds: int
    accepted: int
    statuses: dict[str, int]
    back_s: list[float]
    faults: list[str]


async def send_all(urls: Sequence[str], learners: Sequence[TrackedModel], answered: Answered, pause_s: float) -> None:
    """Send all rows of all models, each until it is accepted."""
    timeout = aiohttp.ClientTimeout(total=ATTEMPT_S_MAX)
    async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as group:
        for learner in learners:
            for client in range(CLIENTS):
                mine = range(client, len(learner.rows), CLIENTS)
                group.create_task(_send(http, urls, learner, mine, answered, pause_s))


async def _send(
    http: aiohttp.ClientSession,
    urls: Sequence[str],
    learner: TrackedModel,
    mine: range,
    answered: Answered,
    pause_s: float,
) -> None:
    sequences = answered.sequences[learner.number]
    for number in mine:
        X, y = learner.rows[number]
        path = f"/v1/models/{learner.hash}"
        is_change = isinstance(X, dict)
        method, body = ("PATCH", {"params": X}) if is_change else ("POST", {"X": [X], "y": [y]})
        path += "" if is_change else "/partial_fit"
        headers = {"Idempotency-Key": f"row-{number}", "Prefer": "wait=0"}
        attempt = 0
        while True:
            attempt += 1
            url = urls[(number + attempt) % len(urls)] + path
            try:
                async with http.request(method, url, json=body, headers=headers) as response:
                    status, answer = response.status, await response.json()
            except (TimeoutError, aiohttp.ClientError) as error:
                answered.statuses[type(error).__name__] += 1
                await asyncio.sleep(RETRY_S)
                continue
            answered.statuses[str(status)] += 1
            if status == 202:
                sequences[number] = int(answer["sequence"])
                break
            if status not in (429, 503, 504):
                answered.wrong.append(f"{status}: {answer}"[:300])
            await asyncio.sleep(RETRY_S)
        await asyncio.sleep(pause_s)


def kill_everything(deployment: Deployment) -> None:
    """Kill every process with SIGKILL, workers and their children first, before waiting for any."""
    parts = [*deployment.services, deployment.store, deployment.queue, deployment.mongo]
    doomed = [pid for part in parts for pid in (*_descendants(part.pid), part.pid)]
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for part in parts:
        part.close()


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [one for child in children for one in (*_descendants(child), child)]


def restart_without_redis_data(deployment: Deployment) -> None:
    """Delete Redis' data on disk, and start all processes."""
    for name in ("store", "queue"):
        shutil.rmtree(deployment.folder / name)
        (deployment.folder / name).mkdir()
    for part in (deployment.store, deployment.queue, deployment.mongo, deployment.workers, *deployment.gateways):
        part.start()
    deployment.snapshotter.start()


async def use_all(urls: Sequence[str], learners: Sequence[TrackedModel]) -> None:
    """Ask each model once: one whose rows were all accepted before the last loss is restored at its next use."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ATTEMPT_S_MAX)) as http:
        for learner in learners:
            X = next(X for X, _ in learner.rows if not isinstance(X, dict))
            deadline = time.monotonic() + STILL_S_MAX
            while True:
                with suppress(TimeoutError, aiohttp.ClientError):
                    async with http.post(f"{urls[0]}/v1/models/{learner.hash}/predict", json={"X": [X]}) as response:
                        if response.status < 500:
                            break
                assert time.monotonic() < deadline, f"model {learner.number} is not restored"
                await asyncio.sleep(RETRY_S)


async def drain(store: redis.asyncio.Redis, learners: Sequence[TrackedModel]) -> None:
    """Wait until no request is pending."""
    deadline = time.monotonic() + STILL_S_MAX
    while True:
        states = [await store.hmget(redis_keys.state(learner.hash), "accepted", "learned") for learner in learners]
        if all(accepted is not None and accepted == learned for accepted, learned in states):
            return
        assert time.monotonic() < deadline, f"not learned: {states}"
        await asyncio.sleep(0.05)


async def examine(store: redis.asyncio.Redis, learner: TrackedModel, sequences: dict[int, int]) -> list[str]:
    """Compare what a model has learned with the answers to its clients."""
    faults = []
    if sorted(sequences) != list(range(len(learner.rows))):
        faults.append(f"{len(sequences)} of {len(learner.rows)} rows were accepted")
    # A sequence is skipped if its gateway was killed before it had logged the request, and another one had logged a
    # later request: nothing was answered, and the client's repeat has a later sequence.
    if len(set(sequences.values())) < len(sequences):
        faults.append("two requests were answered with one sequence")
    recipe = parse(learner.recipe)
    _, found = unseal(
        await store.get(redis_keys.bundle(learner.hash)), Keyring.from_text(SIGNING_KEYS), recipe, learner.hash
    )
    expected = Bundle.new(recipe)
    for number in sorted(sequences, key=lambda number: sequences[number]):
        X, y = learner.rows[number]
        if isinstance(X, dict):
            expected.change(X)
        else:
            expected.partial_fit(shape(recipe, [X], [y], learning=True))
    if found.rows_seen != expected.rows_seen:
        faults.append(f"{found.rows_seen} rows were learned, where {expected.rows_seen} is right")
    if found.changed != expected.changed:
        faults.append("other parameters were changed")
    if await store.xlen(redis_keys.dead(learner.hash)):
        faults.append("rows were put aside")
    return [f"model {learner.number}: {fault}" for fault in [*faults, *differences(found, expected)]]


async def run(folder: Path, rounds: int, rows: int, seed: int, lasts_s: float = 4.0) -> Report:
    """Run all rounds; each model gets `rows` in total."""
    drawn = random.Random(seed)
    learners = [TrackedModel.of(number, rows) for number in range(MODELS)]
    answered = Answered([{} for _ in learners])
    back_s: list[float] = []
    with deployed(folder, row_log_url=(folder / "rows").as_uri()) as deployment:
        await _register(deployment, learners)
        pause_s = rounds * lasts_s * CLIENTS / rows
        sending = asyncio.create_task(send_all(deployment.urls, learners, answered, pause_s))
        try:
            for _ in range(rounds):
                before = sum(map(len, answered.sequences))
                await asyncio.sleep(drawn.uniform(0.5, 1.5) * lasts_s)
                kill_everything(deployment)
                restart_without_redis_data(deployment)
                started, count = time.monotonic(), sum(map(len, answered.sequences))
                deadline = started + STILL_S_MAX
                while sum(map(len, answered.sequences)) == count and not sending.done():
                    assert time.monotonic() < deadline, f"nothing was accepted after a round ({before} before)"
                    await asyncio.sleep(0.02)
                back_s.append(time.monotonic() - started)
            await asyncio.wait_for(sending, STILL_S_MAX + 2 * rounds * lasts_s)
        finally:
            sending.cancel()
        await use_all(deployment.urls, learners)
        client = redis.asyncio.Redis(port=deployment.store.port)
        await drain(client, learners)
        faults = [
            fault
            for learner in learners
            for fault in await examine(client, learner, answered.sequences[learner.number])
        ]
        await client.aclose()
    accepted = sum(map(len, answered.sequences))
    return Report(rounds, accepted, dict(answered.statuses), back_s, answered.wrong + faults)


async def _register(deployment: Deployment, learners: Sequence[TrackedModel]) -> None:
    async with aiohttp.ClientSession(deployment.urls[0]) as http:
        for learner in learners:
            body: dict[str, Any] = {"metadata": {"type": "rowlog", "number": learner.number}, "recipe": learner.recipe}
            async with http.post("/v1/models", json=body) as response:
                answer = await response.json()
                assert response.status == 201, answer
            learner.hash = answer["hash"]


def main() -> int:
    """Run from the command line; return 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.recovery.rowlog", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=2000, help="rows of each model (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where data and logs go (default: a new temporary folder)")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="keepfit-rowlog-"))
    console = Console()
    console.print(f"{given.rounds} rounds, seed {given.seed}; logs in {folder}")
    report = asyncio.run(run(folder, given.rounds, given.rows, given.seed))
    back = sorted(report.back_s)
    console.print(f"{report.accepted} requests accepted, answers: {report.statuses}")
    console.print(f"first 202 after a start: half within {back[len(back) // 2]:.1f} s, all within {back[-1]:.1f} s")
    for fault in report.faults:
        console.print(f"wrong: {fault}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
