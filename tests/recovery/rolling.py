"""Rolling restarts under load: gateways and supervisors of workers are restarted one after the other, none is missed.

`python -m tests.recovery.rolling --rounds 10` restarts each of two gateways and two supervisors ten times, and prints
what clients noticed. Owns the clients: each repeats, under the same Idempotency-Key and at the other gateway, only what
has lost its connection, as a load balancer or every HTTP client does. Invariant: any other answer than success fails.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from keepfit.settings import Settings
from tests.gateway.api_client import REGRESSOR, Twin
from tests.recovery.deployment import Deployment, ManagedProcess, deployed

log = structlog.get_logger(__name__)

CLIENTS = 8
# Workers compute all predictions, so that each needs one.
SETTINGS = {"scorer_bytes_max": "0"}


@dataclass(slots=True)
class Client:
    """One client of one model: learns a row and predicts one, in turn, and notes what it got."""

    urls: list[str]
    number: int
    path: str = ""
    sent: list[tuple[list[list[float]], list[float]]] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    predicted: int = 0
    repeated: int = 0
    longest_s: float = 0.0

    async def make(self, http: aiohttp.ClientSession) -> None:
        """Make the model, and learn a first row."""
        document = {"metadata": {"type": "rolling", "number": self.number, "run": uuid.uuid4().hex}}
        async with http.post(f"{self.urls[0]}/v1/models", json={**document, "recipe": REGRESSOR}) as answer:
            self.path = f"/v1/models/{(await answer.json())['hash']}"
        await self.learn(http, wait=True)

    async def run(self, http: aiohttp.ClientSession, ended: asyncio.Event) -> None:
        """Learn and predict until the end; rows are waited for, so that each needs a worker."""
        while not ended.is_set():
            began_s = time.monotonic()
            await self.learn(http, wait=True)
            # No two alike: an answer that is kept needs no worker.
            await self._post(http, "predict", {"X": [[float(len(self.sent)), float(self.number)]]}, {})
            self.predicted += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    async def learn(self, http: aiohttp.ClientSession, *, wait: bool) -> None:
        """Send the next row."""
        number = len(self.sent) + 1
        X, y = [[number / 7 % 1, number / 11 % 1]], [number / 13 % 1]
        self.sent.append((X, y))
        fields = {"Idempotency-Key": uuid.uuid4().hex} | ({"Prefer": "wait=60"} if wait else {})
        answer = await self._post(http, "partial_fit", {"X": X, "y": y}, fields)
        self.sequences.append(answer["sequence"])

    async def learned(self, http: aiohttp.ClientSession) -> int:
        """Wait until no row is pending; return how many the model has learned."""
        while True:
            async with http.get(f"{self.urls[0]}{self.path}") as answer:
                found = await answer.json()
            if not found["inbox"]:
                return int(found["rows_seen"])
            await asyncio.sleep(0.05)

    async def _post(self, http: aiohttp.ClientSession, call: str, body: Any, fields: dict[str, str]) -> Any:
        turns = itertools.cycle(self.urls[self.number % 2 :] + self.urls[: self.number % 2])
        while True:
            url = next(turns)
            try:
                async with http.post(f"{url}{self.path}/{call}", json=body, headers=fields) as answer:
                    found = await answer.json()
            except aiohttp.ClientConnectionError:
                self.repeated += 1
                await asyncio.sleep(0)
                continue
            # A gateway that stops does not wait until a row is learned: it is accepted (202).
            assert answer.status in (200, 202), (answer.status, found)
            return found

    def check(self, rows_seen: int, prediction: list[float], row: list[float]) -> None:
        """Fail unless each row was learned once and in order."""
        assert rows_seen == len(self.sent)
        assert self.sequences == list(range(1, len(self.sent) + 1))
        twin = Twin(REGRESSOR)
        for X, y in self.sent:
            twin.learn(X, y)
        assert prediction == twin.predict([row])


async def roll(deployment: Deployment, services: Sequence[ManagedProcess], rounds: int) -> list[Client]:
    """Restart each of the services so many times, one after the other, while clients work; return the clients."""
    async with aiohttp.ClientSession() as http:
        clients = [Client(deployment.urls, number) for number in range(CLIENTS)]
        for client in clients:
            await client.make(http)
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as running:
            for client in clients:
                running.create_task(client.run(http, ended))
            for service in [*services] * rounds:
                # SIGTERM, and the next one only once it has ended and its successor is ready.
                await asyncio.to_thread(service.close)
                await _everyone_goes_on(clients)
                await asyncio.to_thread(service.start)
                await _all_workers(http, deployment.urls)
                await _everyone_goes_on(clients)
            ended.set()
        for client in clients:
            rows_seen = await client.learned(http)
            row = [0.5, -1.0]
            async with http.post(f"{deployment.urls[1]}{client.path}/predict", json={"X": [row]}) as answer:
                client.check(rows_seen, (await answer.json())["predictions"], row)
    return clients


async def _all_workers(http: aiohttp.ClientSession, urls: Sequence[str]) -> None:
    """Wait until each gateway knows the workers of both supervisors, as a rolling update waits for a new pod."""
    for url in urls:
        while True:
            async with http.get(f"{url}/readyz") as answer:
                if (await answer.json()).get("workers") == 2 * Settings().workers:
                    break
            await asyncio.sleep(0.02)


async def _everyone_goes_on(clients: Sequence[Client]) -> None:
    """Wait until each client has got two more answers."""
    goals = [client.predicted + 2 for client in clients]
    while any(client.predicted < goal for client, goal in zip(clients, goals, strict=True)):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def second_supervisor(deployment: Deployment) -> ManagedProcess:
    """Return another `keepfit worker` of the deployment, not yet started."""
    first = deployment.workers
    return ManagedProcess(first.command, first.log.with_name("workers-2.log"), 0, first.environment)


def main() -> int:
    """Restart, and print what clients noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="rolling-") as folder, deployed(Path(folder), **SETTINGS) as deployment:
        other = second_supervisor(deployment)
        other.start()
        try:
            services = [*deployment.gateways, deployment.workers, other]
            clients = asyncio.run(roll(deployment, services, rounds))
        finally:
            other.close()
    log.info(
        "restarted",
        restarts=rounds * len(services),
        rows=sum(len(client.sent) for client in clients),
        predictions=sum(client.predicted for client in clients),
        repeated=sum(client.repeated for client in clients),
        longest_s=round(max(client.longest_s for client in clients), 3),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
