"""Rows that flow to a model while servers end, and the check that each was learned once and in order."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import unseal
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings

RECIPE = {"estimator": "SGDRegressor", "scaler": "StandardScaler"}


class Flow:
    """Clients that send rows to one model, repeat what is refused, and note what was accepted."""

    def __init__(self, http: aiohttp.ClientSession, model_hash: str, rows: int = 1, *, may_lose: bool = False) -> None:
        self._http = http
        self._rows = rows
        self._may_lose = may_lose
        self.hash = model_hash
        self._path = f"/v1/models/{model_hash}"
        self._numbers = itertools.count(1)
        self._sending: asyncio.Future[Any] = asyncio.gather()
        self.accepted: dict[int, tuple[list[list[float]], list[float]]] = {}
        self.refused = 0
        # What the model has learned, when it has ended.
        self.rows_seen = 0
        # Accepted requests, also those whose sequence another one has got since.
        self.count = 0
        self.has_ended = asyncio.Event()

    async def _send_rows(self) -> None:
        while not self.has_ended.is_set():
            number = next(self._numbers)
            X, y = [[number % 7.0, number % 11.0]] * self._rows, [number % 5.0] * self._rows
            key = {"Idempotency-Key": uuid.uuid4().hex}
            while True:
                async with self._http.post(f"{self._path}/partial_fit", json={"X": X, "y": y}, headers=key) as response:
                    reply = await response.json()
                    if response.status == 202:
                        break
                    assert response.status == 503, reply
                    assert "Retry-After" in response.headers
                    self.refused += 1
                await asyncio.sleep(0.05)
            assert self._may_lose or reply["sequence"] not in self.accepted, (
                f"{len(self.accepted)} were accepted, now {reply['sequence']} again"
            )
            self.count += 1
            self.accepted[reply["sequence"]] = X, y

    def begin(self, clients: int) -> None:
        """Begin to send."""
        self._sending = asyncio.gather(*(self._send_rows() for _ in range(clients)))

    async def more(self, count: int) -> None:
        """Wait until so many more rows were accepted."""
        wanted = self.count + count
        while self.count < wanted and not self._sending.done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if self._sending.done():
            # A row was lost.
            await self._sending

    async def described(self) -> dict[str, Any]:
        """Return the model's document, or nothing while the store is unavailable."""
        async with self._http.get(self._path) as response:
            found: dict[str, Any] = await response.json()
            return found if response.status == 200 else {}

    async def end(self) -> None:
        """Send no more, and wait until everything is learned."""
        self.has_ended.set()
        await self._sending
        sent = self._rows * self.count
        while (found := await self.described()).get("rows_seen") != sent and (
            not self._may_lose or found.get("inbox", 1)
        ):
            assert found.get("rows_seen", 0) < sent
            await asyncio.sleep(0.05)
        self.rows_seen = found["rows_seen"]

    def check(self, settings: Settings) -> None:
        """Fail unless the live bundle is the one that has learned these rows in the order of their sequences."""
        assert sorted(self.accepted) == list(range(1, len(self.accepted) + 1))
        with redis_clients.store_sync(settings) as client:
            (data,) = redis_scripts.run(client, ("GET", redis_keys.bundle(self.hash)))
        keys = Keyring.from_text(settings.signing_keys.get_secret_value())
        header, found = unseal(data, keys, parse(RECIPE), self.hash)
        expected = Bundle.new(parse(RECIPE))
        for sequence in sorted(self.accepted):
            expected.partial_fit(shape(expected.recipe, *self.accepted[sequence], learning=True))
        assert header.sequence == len(self.accepted)
        assert (found.estimator.coef_ == expected.estimator.coef_).all()
        assert (found.columns.scaler.mean_ == expected.columns.scaler.mean_).all()


@asynccontextmanager
async def flowing(url: str, clients: int, name: str, rows: int = 1, *, may_lose: bool = False) -> AsyncIterator[Flow]:
    """Create a model and send requests with `rows` rows to it; the block ends it."""
    async with aiohttp.ClientSession(url) as http:
        async with http.post("/v1/models", json={"metadata": {"type": name}, "recipe": RECIPE}) as response:
            flow = Flow(http, (await response.json())["hash"], rows, may_lose=may_lose)
        flow.begin(clients)
        yield flow
