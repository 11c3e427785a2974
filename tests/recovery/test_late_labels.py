"""Late labels through kills: each is learned once, and scored with the prediction that was served."""

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows import shaping
from keepfit.rows.served import Served, ServedRows
from tests.gateway.api_client import REGRESSOR, Api, eventually
from tests.recovery.deployment import Deployment, ManagedProcess, deployed

# The full size, which is documented, runs by hand: LATE_LABELS_ROWS=20000 LATE_LABELS_KILLS=10.
ROWS = int(os.environ.get("LATE_LABELS_ROWS", "300"))
KILLS = int(os.environ.get("LATE_LABELS_KILLS", "3"))
FIRST, CALL, AT_ONCE = 20, 10, 8
METADATA = {"type": "shoes", "session": "late labels"}
RECIPE = {**REGRESSOR, "scaler": "StandardScaler"}
# A killed gateway may leave a connection open that never answers.
TIMEOUT = aiohttp.ClientTimeout(total=15)


class Client:
    """Sends each request until it is answered, to one gateway after the other."""

    def __init__(self, apis: list[Api]) -> None:
        self._apis = apis
        self.attempts = 0

    async def post(self, path: str, body: Any, key: str = "") -> Any:
        """Return the answer to a request; the path and the body are the same in each attempt."""
        headers = {"Idempotency-Key": key} if key else None
        while True:
            api = self._apis[self.attempts % len(self._apis)]
            self.attempts += 1
            try:
                reply = await api.post(path, body, headers)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(0.05)
                continue
            if reply.status in (200, 202):
                return reply.json()
            assert reply.status in (429, 503, 504), (reply.status, reply.body)
            await asyncio.sleep(0.05)


def restart(process: ManagedProcess) -> None:
    """Kill a process and start it again."""
    process.kill()
    process.start()


async def run_through_kills(deployment: Deployment, calls: list[Callable[[], Any]], kills: int) -> None:
    """Make calls, several at a time, while gateways, workers and the store are killed at even distances."""
    targets = [deployment.gateways[0], deployment.workers, deployment.store, deployment.gateways[1]]
    due = {(kill + 1) * len(calls) // (kills + 1): targets[kill % len(targets)] for kill in range(kills)}
    gate, restarts, last = asyncio.Semaphore(AT_ONCE), [], asyncio.Event()
    last.set()

    async def make(number: int, call: Callable[[], Any]) -> None:
        async with gate:
            target = due.get(number)
            if target is not None:
                # Not two at a time, so that one gateway answers.
                await last.wait()
                last.clear()
                restarts.append(asyncio.create_task(killed(target)))
            await call()

    async def killed(target: ManagedProcess) -> None:
        await asyncio.to_thread(restart, target)
        last.set()

    await asyncio.gather(*(make(number, call) for number, call in enumerate(calls)))
    await asyncio.gather(*restarts)
    assert len(restarts) == kills


async def test_labels_are_learned_once_through_kills(tmp_path: Path) -> None:
    """Rows predicted and labelled in random order, through kills of every process, give the model of a plain loop."""
    drawn = random.Random(5)
    X = [[drawn.gauss(0, 1), drawn.gauss(0, 1)] for _ in range(FIRST + ROWS)]
    y = [3 * a - b for a, b in X]
    served: dict[int, Served] = {}
    sequences: dict[int, int] = {}
    with deployed(tmp_path) as deployment:
        async with AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(aiohttp.ClientSession(url, timeout=TIMEOUT)) for url in deployment.urls
            ]
            client, apis = Client([Api(session) for session in sessions]), [Api(session) for session in sessions]
            path = await apis[0].make(METADATA, RECIPE)
            await apis[0].learn(path, X[:FIRST], y[:FIRST])

            async def predict(rows: list[int]) -> None:
                answer = await client.post(f"{path}/predict", {"X": [X[i] for i in rows], "id": rows})
                for i, prediction in zip(rows, answer["predictions"], strict=True):
                    served[i] = Served(answer["version"], answer["rows_seen"], prediction)

            async def label(rows: list[int]) -> None:
                labels = [{"id": i, "y": y[i]} for i in rows]
                answer = await client.post(f"{path}/labels", {"labels": labels}, f"labels-{rows[0]}")
                assert (answer["accepted"], answer["errors"]) == (len(rows), [])
                for i, sequence in zip(reversed(rows), range(answer["sequence"], 0, -1), strict=False):
                    assert sequences.setdefault(sequence, i) == i

            # Half of the rows are labelled between predictions, so that predictions come from many versions.
            order = list(range(FIRST, FIRST + ROWS))
            drawn.shuffle(order)
            groups = [order[begin : begin + CALL] for begin in range(0, ROWS, CALL)]
            half = len(groups) // 2
            await run_through_kills(deployment, [lambda g=g: predict(g) for g in groups[:half]], KILLS // 3)
            mixed = [
                call
                for now, later in zip(groups[:half], groups[half : 2 * half], strict=True)
                for call in (lambda g=now: label(g), lambda g=later: predict(g))
            ]
            await run_through_kills(
                deployment, [*mixed, *(lambda g=g: predict(g) for g in groups[2 * half :])], KILLS // 3
            )
            rest = [i for group in groups[half:] for i in group]
            drawn.shuffle(rest)
            left = [rest[begin : begin + CALL] for begin in range(0, len(rest), CALL)]
            await run_through_kills(deployment, [lambda g=g: label(g) for g in left], KILLS - 2 * (KILLS // 3))

            async def all_learned() -> bool:
                return bool((await apis[1].model(path))["rows_seen"] == FIRST + ROWS)

            await eventually(all_learned, "all labels are learned", seconds=120)
            assert sorted(sequences) == list(range(2, ROWS + 2))
            assert sorted(sequences.values()) == list(range(FIRST, FIRST + ROWS))
            described = await apis[1].model(path)
            second = (await apis[1].post(f"{path}/labels", {"labels": [{"id": order[0], "y": 1.0}]})).of(202)
            assert [error["reason"] for error in second["errors"]] == ["labelled"]
            assert "open_rows" not in described
            recipe = parse(RECIPE)
            bundle = Bundle.new(recipe)
            bundle.partial_fit(shaping.shape(recipe, X[:FIRST], y[:FIRST], learning=True))
            for sequence in sorted(sequences):
                i = sequences[sequence]
                rows = shaping.shape(recipe, [X[i]], [y[i]], learning=True)
                bundle.partial_fit(ServedRows(1, rows.numbers, rows.categories, rows.y, predictions=[served[i]]))
            assert described["metrics"] == bundle.metrics()
            assert len({one.version for one in served.values()}) > 1
            X_new = X[:5]
            predicted = (await apis[1].post(f"{path}/predict", {"X": X_new})).of(200)["predictions"]
            assert predicted == bundle.predict(shaping.shape(recipe, X_new, learning=False))
