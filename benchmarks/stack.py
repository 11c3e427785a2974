"""keepfit under measurement: `keepfit up` with a folder of its own, and models that have learned.

Owns how keepfit is started (as a user starts it: two workers, append-only file, fsync always) and what scenarios read
from outside. Never uses keepfit's code: everything goes over HTTP, /proc and Redis' INFO.
"""

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import redis

from benchmarks import model
from benchmarks.load import Call
from benchmarks.processes import StartError, children, resident_mb, running, wait_until
from keepfit.local.servers import answers, free_port

PREDICT = '{"X":[[%.6f,%.6f,%.6f,%.6f]]}'
LEARN = '{"X":[[%.6f,%.6f,%.6f,%.6f]],"y":[%.6f]}'
RECIPE: Mapping[str, Any] = {
    "estimator": model.ESTIMATOR,
    "params": model.PARAMS,
    "scaler": model.SCALER,
    "updates": "merged",
}
REQUEST_S_MAX = 120
CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Stack:
    """A running `keepfit up`."""

    url: str
    data: Path

    def predict(self, model_hash: str) -> Call:
        """Return the call that requests a prediction."""
        return Call(f"/v1/models/{model_hash}/predict", PREDICT)

    def learn(self, model_hash: str) -> Call:
        """Return the call that sends a row to learn."""
        return Call(f"/v1/models/{model_hash}/partial_fit", LEARN)

    def describe(self, model_hash: str) -> dict[str, Any]:
        """Return the description of a model."""
        with urllib.request.urlopen(f"{self.url}/v1/models/{model_hash}", timeout=REQUEST_S_MAX) as response:  # noqa: S310
            described: dict[str, Any] = json.load(response)
            return described

    def wait_until_learned(self, model_hash: str, seconds: float) -> dict[str, Any]:
        """Wait until a model has learned all accepted rows; return its description.

        Raises
        ------
        StartError
            If that takes more than `seconds`.
        """
        deadline = time.monotonic() + seconds
        while (described := self.describe(model_hash))["inbox"]:
            if time.monotonic() > deadline:
                raise StartError(f"{described['inbox']} requests are still pending after {seconds:g} s")
            time.sleep(0.02)
        return described

    def process_ids(self) -> dict[str, int]:
        """Return the process ids of gateway, workers' supervisor, and servers, by name."""
        return dict(json.loads((self.data / "up.json").read_text())["parts"])

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return children(self.process_ids()["workers"])

    def memory_mb(self) -> dict[str, float]:
        """Return the resident megabytes of the gateway and the largest worker, and those that Redis uses for data."""
        lines = (self.data / "env").read_text().splitlines()
        url = dict(line.split("=", 1) for line in lines)["KEEPFIT_STORE_URL"]
        with redis.Redis.from_url(url) as client:
            information: Any = client.info("memory")
        return {
            "Redis": information["used_memory"] / 1e6,
            "gateway": resident_mb(self.process_ids()["gateway"]),
            "worker": max(map(resident_mb, self.workers())),
        }


@contextmanager
def started(data: Path, workers: int = 2, environment: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """Run `keepfit up` until the block ends."""
    data.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "keepfit", "up", "--data", str(data / "keepfit"), "--port", str(port)]
    command += ["--workers", str(workers)]
    with running(command, data / "keepfit.log", lambda: answers(f"{url}/readyz"), environment):
        stack = Stack(url, data / "keepfit")
        wait_until(lambda: len(stack.workers()) == workers, "all workers running")
        yield stack


def make_model(stack: Stack, recipe: Mapping[str, Any] = RECIPE, features: int = model.FEATURES) -> str:
    """Create one model that has learned :data:`benchmarks.model.TRAINED_ROWS` rows; return its hash."""
    return make_models(stack, 1, recipe, model.TRAINED_ROWS, features)[0]


def make_models(
    stack: Stack,
    count: int,
    recipe: Mapping[str, Any] = RECIPE,
    trained_rows: int = 20,
    features: int = model.FEATURES,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Create models, let each learn and predict once; return their hashes in order."""
    return asyncio.run(_make_models(stack.url, count, recipe, model.rows(trained_rows, features=features), progress))


async def _make_models(
    url: str,
    count: int,
    recipe: Mapping[str, Any],
    rows: tuple[Sequence[Sequence[float]], Sequence[float]],
    progress: Callable[[int], None],
) -> list[str]:
    hashes = [""] * count
    numbers = iter(range(count))
    X, y = rows

    async with _poster(url) as post:

        async def create_some() -> None:
            for number in numbers:
                created = await post("/v1/models", {"metadata": {"type": "bench", "number": number}, "recipe": recipe})
                path = f"/v1/models/{created['hash']}"
                await post(f"{path}/partial_fit", {"X": X, "y": y}, prefer="wait=60")
                await post(f"{path}/predict", {"X": X[:1]})
                hashes[number] = created["hash"]
                progress(number + 1)

        await asyncio.gather(*(create_some() for _ in range(CONCURRENCY)))
    return hashes


@asynccontextmanager
async def _poster(url: str) -> AsyncIterator[Callable[..., Awaitable[dict[str, Any]]]]:
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(REQUEST_S_MAX)) as session:

        async def post(path: str, body: dict[str, Any], prefer: str | None = None) -> dict[str, Any]:
            headers = {"Prefer": prefer} if prefer else {}
            async with session.post(path, json=body, headers=headers) as response:
                answer: dict[str, Any] = await response.json(content_type=None)
                if response.status not in (200, 201):
                    raise StartError(f"{path} answered {response.status}: {answer.get('detail')}")
                return answer

        yield post
