"""Late labels through kills: rows are predicted with ids, labelled in random order, and compared with a plain loop.

Owns the clients, the kills and the comparison. Run it in full size with ``python -m tests.recovery.late_labels``.
Invariant: every attempt to send a request is the same, with the same Idempotency-Key for labels.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp

from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows import shaping
from keepfit.rows.served import Served, ServedRows
from tests.gateway.api_client import REGRESSOR, Api, eventually
from tests.recovery.deployment import Deployment, ManagedProcess, deployed

FIRST, CALL, AT_ONCE = 20, 10, 8
METADATA = {"type": "shoes", "session": "late labels"}
RECIPE = {**REGRESSOR, "scaler": "StandardScaler"}
# A killed gateway may leave a connection open that never answers.
TIMEOUT = aiohttp.ClientTimeout(total=15)


class Client:
    """Sends each request until it is answered, to one gateway after the other."""

    def __init__(self, apis: list[Api]) -> None:
        self._apis = apis
        self.calls = self.attempts = 0

    async def post(self, path: str, body: Any, key: str = "") -> Any:
        """Return the answer to a request; the path and the body are the same in each attempt."""
        headers = {"Idempotency-Key": key} if key else None
        self.calls += 1
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


@dataclass(slots=True)
class Proof:
    """What was served and answered, and how it compares with a plain loop in the order of the sequences."""

    rows: int
    served: dict[int, Served] = field(default_factory=dict)
    # The row of each sequence.
    sequences: dict[int, int] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    attempts: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)

    @property
    def versions(self) -> int:
        """Number of versions that predicted the rows."""
        return len({one.version for one in self.served.values()})

    def compare(self, name: str, found: Any, right: Any) -> None:
        """Note a difference."""
        if found != right:
            self.differences.append(f"{name}: {str(found)[:200]} where {str(right)[:200]} is right")


class Run:
    """One run on a deployment: rows `FIRST` and later are predicted, and labelled afterwards."""

    def __init__(self, deployment: Deployment, apis: list[Api], proof: Proof) -> None:
        drawn = random.Random(5)
        self.X = [[drawn.gauss(0, 1), drawn.gauss(0, 1)] for _ in range(FIRST + proof.rows)]
        self.y = [3 * a - b for a, b in self.X]
        self.proof = proof
        self._drawn = drawn
        self._api, self._client = apis[1], Client(apis)
        self._path = ""
        first, second = deployment.gateways
        self._targets: Iterator[tuple[str, ManagedProcess]] = cycle(
            {
                "gateway": first, "workers": deployment.workers, "store": deployment.store, "queue": deployment.queue,
                "other gateway": second,
            }.items()
        )  # fmt: skip

    async def prove(self, kills: int) -> None:
        """Predict and label all rows through kills, wait until they are learned, and compare."""
        self._path = await self._api.make(METADATA, RECIPE)
        await self._api.learn(self._path, self.X[:FIRST], self.y[:FIRST])
        began_s, rows = time.monotonic(), self.proof.rows
        order = list(range(FIRST, FIRST + rows))
        self._drawn.shuffle(order)
        groups = [order[begin : begin + CALL] for begin in range(0, rows, CALL)]
        half = len(groups) // 2
        await self._through_kills([(self._predict, group) for group in groups[:half]], kills // 3)
        # A new version predicts what follows; labels of the first half arrive between predictions, so that more do.
        await self._label(groups[0])
        await self._learned(CALL)
        labelled, predicted = groups[1:half], groups[half:]
        mixed = [
            call
            for now, later in zip(labelled, predicted, strict=False)
            for call in ((self._label, now), (self._predict, later))
        ]
        mixed += [(self._predict, group) for group in predicted[len(labelled) :]]
        await self._through_kills(mixed, kills // 3)
        rest = [i for group in groups[half:] for i in group]
        self._drawn.shuffle(rest)
        left = [rest[begin : begin + CALL] for begin in range(0, len(rest), CALL)]
        await self._through_kills([(self._label, group) for group in left], kills - 2 * (kills // 3))
        await self._learned(rows)
        self.proof.seconds = time.monotonic() - began_s
        self.proof.calls, self.proof.attempts = self._client.calls, self._client.attempts
        await self._compare()

    async def _learned(self, rows: int) -> None:
        """Wait until so many rows are learned with their labels."""

        async def learned() -> bool:
            return bool((await self._api.model(self._path))["rows_seen"] >= FIRST + rows)

        await eventually(learned, "labels are learned", seconds=120)

    async def _predict(self, rows: list[int]) -> None:
        answer = await self._client.post(f"{self._path}/predict", {"X": [self.X[i] for i in rows], "id": rows})
        for i, prediction in zip(rows, answer["predictions"], strict=True):
            self.proof.served[i] = Served(answer["version"], answer["rows_seen"], prediction)

    async def _label(self, rows: list[int]) -> None:
        labels = [{"id": i, "y": self.y[i]} for i in rows]
        answer = await self._client.post(f"{self._path}/labels", {"labels": labels}, f"labels-{rows[0]}")
        self.proof.compare("accepted labels", (answer["accepted"], answer["errors"]), (len(rows), []))
        for i, sequence in zip(reversed(rows), range(answer["sequence"], 0, -1), strict=False):
            self.proof.compare(f"row of sequence {sequence}", self.proof.sequences.setdefault(sequence, i), i)

    async def _through_kills(
        self, calls: Sequence[tuple[Callable[[list[int]], Awaitable[None]], list[int]]], kills: int
    ) -> None:
        """Make calls, several at a time, while processes are killed and started again at even distances."""
        due = {(kill + 1) * len(calls) // (kills + 1) for kill in range(kills)}
        gate, restarts, last = asyncio.Semaphore(AT_ONCE), [], asyncio.Event()
        last.set()

        async def make(number: int, call: Callable[[list[int]], Awaitable[None]], rows: list[int]) -> None:
            async with gate:
                if number in due:
                    # Not two at a time, so that one gateway answers.
                    await last.wait()
                    last.clear()
                    restarts.append(asyncio.create_task(restarted()))
                await call(rows)

        async def restarted() -> None:
            name, process = next(self._targets)
            await asyncio.to_thread(process.kill)
            await asyncio.to_thread(process.start)
            self.proof.kills[name] += 1
            last.set()

        await asyncio.gather(*(make(number, *call) for number, call in enumerate(calls)))
        await asyncio.gather(*restarts)

    async def _compare(self) -> None:
        """Compare the model with a plain loop that scores each row with the prediction that was served."""
        compare, rows, sequences = self.proof.compare, self.proof.rows, self.proof.sequences
        described = await self._api.model(self._path)
        compare("rows seen", described["rows_seen"], FIRST + rows)
        compare("sequences", sorted(sequences), list(range(2, rows + 2)))
        compare("labelled rows", sorted(sequences.values()), list(range(FIRST, FIRST + rows)))
        compare("rows that wait for labels", described.get("open_rows", 0), 0)
        again = {"labels": [{"id": FIRST, "y": 1.0}]}
        errors = (await self._api.post(f"{self._path}/labels", again)).of(202)["errors"]
        compare("a second label", [error["reason"] for error in errors], ["labelled"])
        recipe = parse(RECIPE)
        bundle = Bundle.new(recipe)
        bundle.partial_fit(shaping.shape(recipe, self.X[:FIRST], self.y[:FIRST], learning=True))
        for sequence in sorted(sequences):
            i = sequences[sequence]
            row = shaping.shape(recipe, [self.X[i]], [self.y[i]], learning=True)
            served = [self.proof.served[i]]
            bundle.partial_fit(ServedRows(1, row.numbers, row.categories, row.y, predictions=served))
        compare("metrics", described["metrics"], bundle.metrics())
        asked = self.X[:50]
        predicted = (await self._api.post(f"{self._path}/predict", {"X": asked})).of(200)["predictions"]
        compare("predictions", predicted, bundle.predict(shaping.shape(recipe, asked, learning=False)))


async def prove(folder: Path, rows: int, kills: int) -> Proof:
    """Run a deployment in `folder`, predict and label `rows` rows through `kills` kills; return what that has shown."""
    proof = Proof(rows)
    with deployed(folder) as deployment:
        async with AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(aiohttp.ClientSession(url, timeout=TIMEOUT)) for url in deployment.urls
            ]
            await Run(deployment, [Api(session) for session in sessions], proof).prove(kills)
    return proof


def main(words: list[str]) -> int:
    """Run the proof; return 0 if the model does not differ from a plain loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        proof = asyncio.run(prove(Path(folder), options.rows, options.kills))
    figures = {
        "rows predicted": len(proof.served), "versions that predicted them": proof.versions,
        "sequences": len(proof.sequences), "kills": proof.kills, "calls": proof.calls, "attempts": proof.attempts,
        "seconds": round(proof.seconds), "differences": proof.differences,
    }  # fmt: skip
    print(json.dumps(figures, indent=2))  # noqa: T201 - a program
    return 1 if proof.differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
