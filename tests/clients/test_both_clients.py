"""The Python and the Node.js client at the same time, against one stack: no error, and each row learned once.

Both teach, score and ask one model. It counts the rows of each label and sums their columns, which is exact for whole
numbers, so a row that is lost, learned twice, or learned with another label is seen.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import skops.io

from keepfit import AsyncClient
from keepfit.client.clients import AsyncModel
from tests.clients.node import client_node, compiled
from tests.conftest import Stack

# For each client: CALLS=10000 before the command of this file is a load that shows more.
CALLS = int(os.environ.get("CALLS", "600"))
CALLERS = 32
LABELS = ["node", "python"]
# Learned first and last: what is learned last tells that all before it is.
ENDS = [[1, 0, 0], [1, 0, 0]]

pytestmark = pytest.mark.timeout(120 + CALLS // 10)


@dataclass
class Done:
    """What the calls of one client gave."""

    hash: str
    errors: list[str] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    seconds: float = 0.0


def teaches(number: int) -> bool:
    """Return whether a call teaches its row; of ten calls, one scores and the others predict."""
    return number % 10 != 9 and number % 3 == 0


async def call(model: AsyncModel, number: int, done: Done) -> None:
    """Make a call, as clients/node/tests/mixed_calls.mjs does."""
    X = [[1, number**2, 0]]
    if number % 10 == 9:
        assert (await model.score(X, ["python"]))["accuracy"] in (0, 1)
    elif teaches(number):
        done.sequences.append((await model.partial_fit(X, ["python"]))["sequence"])
    else:
        (prediction,) = await model.predict(X)
        assert prediction in LABELS


async def python_calls(model: AsyncModel) -> Done:
    """Make all calls of the Python client."""
    done, numbers, started = Done(model.hash), itertools.count(), time.perf_counter()

    async def caller() -> None:
        while (number := next(numbers)) < CALLS:
            try:
                await call(model, number, done)
            except Exception as error:  # noqa: BLE001 - an error of any kind is counted
                done.errors.append(repr(error))

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    done.seconds = time.perf_counter() - started
    return done


async def both(model: AsyncModel, url: str, client: Path) -> tuple[Done, Done]:
    """Make all calls of both clients, which begin at the same time."""
    assert model.metadata is not None
    program = (client_node(), "tests/mixed_calls.mjs", url, json.dumps(model.metadata), str(CALLS))
    node = await asyncio.create_subprocess_exec(
        *program, cwd=client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=2**24
    )
    try:
        assert node.stdout is not None
        assert await node.stdout.readline() == b"ready\n"
        ending = asyncio.create_task(node.communicate(b"go\n"))
        python = await python_calls(model)
        output, _ = await ending
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    assert node.returncode == 0
    return python, Done(**json.loads(output))


async def test_both_clients_at_a_time(stack: Stack, metadata: dict[str, Any]) -> None:
    """No call of both clients fails, and the model has learned each row that they taught, once."""
    taught = [number for number in range(CALLS) if teaches(number)]
    async with AsyncClient(stack.url) as client:
        model = await client.create(metadata, {"estimator": "MultinomialNB", "classes": LABELS})
        await model.partial_fit(ENDS, LABELS, wait=True)
        python, node = await both(model, stack.url, await asyncio.to_thread(compiled))
        learned = await model.partial_fit(ENDS, LABELS, wait=True)
        described = await model.describe()
        estimator = skops.io.loads(await model.download(part="estimator"))
    sys.stdout.write(f"{CALLS} calls of each: Python {python.seconds:.1f} s, Node.js {node.seconds:.1f} s\n")
    sys.stdout.write(f"{learned['rows_seen']} rows learned, {len(python.errors) + len(node.errors)} errors\n")
    assert (python.errors, node.errors) == ([], [])
    assert python.hash == node.hash == described["hash"]
    assert len(python.sequences) == len(node.sequences) == len(taught)
    assert sorted(python.sequences + node.sequences) == list(range(2, learned["sequence"]))
    assert learned["rows_seen"] == described["rows_seen"] == 4 + 2 * len(taught)
    rows, squares = 2 + len(taught), sum(number**2 for number in taught)
    assert estimator.class_count_.tolist() == [rows, rows]
    assert estimator.feature_count_.tolist() == [[rows, 0, squares], [rows, squares, 0]]
