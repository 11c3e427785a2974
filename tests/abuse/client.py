"""A well-behaved client: it predicts fresh rows, learns a row now and then, and records each answer.

``python -m tests.abuse.client URL PATH`` prints a line when it is ready and begins when it reads one. It calls at fixed
times, however late earlier answers are, and counts each call from its time: a gateway that stands still delays all
calls of that while. It runs until SIGTERM, and prints its calls as JSON lines when all are answered.
"""

import asyncio
import itertools
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass

import aiohttp

# Time between two predictions.
INTERVAL_S = 0.02
# It learns a row, and asks whether the gateway is ready, after so many predictions.
OTHERS_EVERY = 50
# Time between two probes.
PROBE_S = 1.0
# Longer than the gateway takes to answer 504, also with the limits of the tests.
TIMEOUT = aiohttp.ClientTimeout(total=75)


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its time, seconds from then to the answer, and the error, or nothing if the answer was right."""

    due: float
    seconds: float
    error: str = ""


async def call(
    http: aiohttp.ClientSession, due: float, path: str, expected: int, *, method: str = "POST", document: object = None
) -> Call:
    """Send a request that was to be sent at the time `due`, and whose answer must have the status `expected`."""
    error = ""
    try:
        async with http.request(method, path, json=document) as response:
            text = await response.text()
            if response.status != expected:
                error = f"{response.status} {text[:300]}"
    except (aiohttp.ClientError, TimeoutError) as raised:
        error = repr(raised)
    return Call(due, time.monotonic() - due, error)


async def probe(http: aiohttp.ClientSession, due: float) -> Call:
    """Ask whether the gateway is ready, as Kubernetes does: only the second failure counts.

    While all workers are replaced, which takes a tenth of a second, it is not.
    """
    first = await call(http, due, "/readyz", 200, method="GET")
    if not first.error:
        return first
    await asyncio.sleep(PROBE_S)
    return Call(due, first.seconds, (await call(http, due, "/readyz", 200, method="GET")).error)


async def use(url: str, path: str, ended: asyncio.Event) -> list[Call]:
    """Predict and learn at fixed times until the event; return all calls, also those that are answered later."""
    calls: list[asyncio.Task[Call]] = []
    start = time.monotonic()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=TIMEOUT, connector=connector) as http, asyncio.TaskGroup() as group:
        for number in itertools.count():
            due = start + number * INTERVAL_S
            await asyncio.sleep(due - time.monotonic())
            if ended.is_set():
                break
            X = [[number / 7, 1.0]]
            made = [call(http, due, f"{path}/predict", 200, document={"X": X})]
            if number % OTHERS_EVERY == 0:
                made.append(call(http, due, f"{path}/partial_fit", 202, document={"X": X, "y": [1.0]}))
                made.append(probe(http, due))
            calls += map(group.create_task, made)
    return [task.result() for task in calls]


async def main() -> None:
    """Run until SIGTERM."""
    url, path = sys.argv[1:]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print("ready", flush=True)  # noqa: T201
    assert sys.stdin.readline() == "begin\n"
    for each in await use(url, path, ended):
        print(json.dumps(asdict(each)))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
