"""The speed of the Python clients against a running gateway, beside raw sockets and libraries of HTTP.

    python -m benchmarks.client [URL]

Needs `keepfit up`. Lone predictions are measured in alternating rounds, and each is compared with the raw socket of its
round. The figures are in the guide of the Python client.
"""

import asyncio
import http.client
import itertools
import socket
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from keepfit import AsyncClient, Client

ROUNDS, CALLS = 11, 1000
CONCURRENCY, CONCURRENT_CALLS = 32, 10_000
# Rows that no call before had, so that no cache answers.
fresh = itertools.count(int(time.time()) % 100_000 * 1000)


def median_us(call: Callable[[], object]) -> float:
    """Return the median time of a call, in microseconds."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times) / 1e3


def body() -> bytes:
    """Return a prediction of one row."""
    return b'{"X":[[%d,2.5]]}' % next(fresh)


def main() -> None:
    """Measure, and print a line for each."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 80
    with Client(url) as client:
        features = {"a": "number", "b": "number"}
        model = client.create(
            {"type": "benchmark", "run": uuid.uuid4().hex}, estimator="SGDRegressor", features=features
        )
        model.partial_fit([[1, 2], [3, 4]], [1, 2], wait=True)
        path = f"/v1/models/{model.hash}/predict"
        raw = socket.create_connection((host, port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stdlib = http.client.HTTPConnection(host, port)

        def ask_raw() -> bytes:
            data = body()
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            return raw.recv(65536)

        def ask_stdlib() -> bytes:
            stdlib.request("POST", path, body(), {"Content-Type": "application/json"})
            return stdlib.getresponse().read()

        calls: dict[str, Callable[[], object]] = {
            "raw socket": ask_raw,
            "keepfit.Client": lambda: model.predict([[next(fresh), 2.5]]),
            "http.client": ask_stdlib,
        }
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                found[name].append(median_us(call))
        for name, medians in found.items():
            ratios = sorted(one / raw_us for one, raw_us in zip(medians, found["raw socket"], strict=True))
            print(  # noqa: T201
                f"{name}: p50 {statistics.median(medians):.0f} µs ({min(medians):.0f} to {max(medians):.0f}), "
                f"{statistics.median(ratios):.2f} times a raw socket ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
        asyncio.run(concurrent(url, model.hash, path))
        model.delete()
        raw.close()
        stdlib.close()


async def concurrent(url: str, model_hash: str, path: str) -> None:
    """Measure concurrent calls of the asyncio client, and of aiohttp."""
    async with AsyncClient(url) as client, aiohttp.ClientSession(url) as session:
        model = client.model(model_hash)

        async def ask() -> None:
            await model.predict([[next(fresh), 2.5]])

        async def ask_aiohttp() -> None:
            async with session.post(path, data=body(), headers={"Content-Type": "application/json"}) as response:
                response.raise_for_status()
                await response.read()

        for name, call in (("keepfit.AsyncClient", ask), ("aiohttp", ask_aiohttp)):

            async def work(call: Callable[[], object] = call) -> None:
                for _ in range(CONCURRENT_CALLS // CONCURRENCY):
                    await call()  # type: ignore[misc]

            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
            seconds = time.perf_counter() - started
            rate = CONCURRENT_CALLS // CONCURRENCY * CONCURRENCY / seconds
            print(f"{name}: {rate:.0f} predictions/s with {CONCURRENCY} at a time, without an error")  # noqa: T201


if __name__ == "__main__":
    main()
