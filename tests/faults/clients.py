"""Clients that send each row until it is accepted, and record its sequence.

Owns the rows, each unique, and the record of accepted sequences. Only a 202 counts as accepted. Some rows are predicted
with an id first, and learned when their label comes. Invariant: every attempt to send a row or a label has the same
Idempotency-Key, so that the row counts once however often it is sent.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from keepfit.rows.served import Served

# A killed gateway may leave a connection open that never answers; the row is sent again after this time.
ATTEMPT_S_MAX = 5.0
RETRY_S = 0.05
REGISTER_TIMEOUT = aiohttp.ClientTimeout(total=60.0)
MAKES = ["nike", "adidas", "puma", "reebok", "asics", "vans", "fila"]
FEATURES = {"make": "category", "year": "number", "weight": "number"}
# Four estimators whose learned state depends on the order of rows, down to the last bit.
ESTIMATORS: Sequence[dict[str, Any]] = (
    {"estimator": "SGDRegressor"},
    {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [16]}},
    {"estimator": "SGDRegressor", "params": {"penalty": "l1", "average": True}},
    {"estimator": "PassiveAggressiveRegressor"},
)

# A row and its target, or a change of a parameter in place of a row.
Row = tuple[list[Any] | dict[str, Any], float]
CHANGE_EVERY = 50
# Of so many rows one is predicted first, and its target sent as a late label.
LATE_EVERY = 5


def recipe_of(number: int) -> dict[str, Any]:
    """Return the recipe of model `number`."""
    return {**ESTIMATORS[number % len(ESTIMATORS)], "features": FEATURES, "scaler": "StandardScaler"}


@dataclass(slots=True)
class TrackedModel:
    """One model under test: its rows, and the index of the row by accepted sequence."""

    number: int
    recipe: dict[str, Any]
    rows: list[Row]
    hash: str = ""
    accepted: dict[int, int] = field(default_factory=dict)
    # What was served for the rows that were predicted first.
    served: dict[int, Served] = field(default_factory=dict)

    @classmethod
    def of(cls, number: int, count: int) -> "TrackedModel":
        """Make `count` different rows for model `number`."""
        drawn = random.Random(number)
        rows: list[Row] = [
            # The weight encodes the number of the row, which makes the row unique.
            ([drawn.choice(MAKES), drawn.randrange(1990, 2020), 200.0 + i / 64 % 200], drawn.gauss(3.0, 1.0))
            for i in range(count)
        ]
        recipe = recipe_of(number)
        name = "C" if recipe["estimator"].startswith("PassiveAggressive") else "alpha"
        for i in range(CHANGE_EVERY // 2, count, CHANGE_EVERY):
            rows[i] = ({name: drawn.choice([0.1, 0.01, 0.001])}, 0.0)
        return cls(number, recipe, rows)

    def in_order(self) -> list[tuple[Row, Served | None]]:
        """Return the accepted rows, ordered by sequence, with what was served for those with a late label."""
        rows = [self.accepted[sequence] for sequence in sorted(self.accepted)]
        return [(self.rows[row], self.served.get(row)) for row in rows]


@dataclass(slots=True)
class ClientStats:
    """Counts of accepted rows, attempts and answers by status, and answers that are errors."""

    accepted: int = 0
    attempts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    first_answer: asyncio.Event = field(default_factory=asyncio.Event)
    answered_at_s: float = 0.0


class Clients:
    """All clients of a run: they send every row of every model, at `rate` rows per second, until it is accepted."""

    def __init__(self, urls: Sequence[str], models: Sequence[TrackedModel], clients: int, rate: float) -> None:
        self.stats = ClientStats()
        self._urls = urls
        self._models = models
        self._clients = clients
        # Interval between two rows of one client.
        self._every_s = clients * len(models) / rate

    async def register(self, session: aiohttp.ClientSession) -> None:
        """Create the models."""
        for model in self._models:
            await self.create(session, model)

    async def create(self, session: aiohttp.ClientSession, model: TrackedModel) -> None:
        """Create a model."""
        body = {"metadata": {"type": "faults", "number": model.number}, "recipe": model.recipe}
        # A long timeout: the first recipe makes a gateway load scikit-learn, which is slow on a busy machine.
        async with session.post(f"{self._urls[0]}/v1/models", json=body, timeout=REGISTER_TIMEOUT) as response:
            answer = await response.json()
            assert response.status == 201, answer
        model.hash = answer["hash"]

    async def send_all(self, session: aiohttp.ClientSession) -> None:
        """Send all rows."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for model in self._models:
                for client in range(self._clients):
                    group.create_task(self._send(session, model, client, started))

    async def _send(self, session: aiohttp.ClientSession, model: TrackedModel, client: int, started: float) -> None:
        phase = (client + model.number / len(self._models)) / self._clients
        for turn, row in enumerate(range(client, len(model.rows), self._clients)):
            due = started + (turn + phase) * self._every_s
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            sequence = await self._send_row(session, model, row)
            if sequence in model.accepted:
                self.stats.errors.append(f"sequence {sequence} of model {model.number} was assigned twice")
            model.accepted[sequence] = row
            self.stats.accepted += 1

    async def _send_row(self, session: aiohttp.ClientSession, model: TrackedModel, row: int) -> int:
        """Send one row until it is accepted; return its sequence."""
        X, y = model.rows[row]
        path, headers = f"/v1/models/{model.hash}", {"Idempotency-Key": f"row-{row}", "Prefer": "wait=0"}
        body: dict[str, Any]
        if isinstance(X, dict):
            answer = await self._request(session, row, "PATCH", path, {"params": X}, headers)
        elif row % LATE_EVERY == LATE_EVERY - 1:
            await self._predict(session, model, row)
            body = {"labels": [{"id": row, "y": y}]}
            answer = await self._request(session, row, "POST", f"{path}/labels", body, headers)
            if answer["accepted"] != 1:
                self.stats.errors.append(f"label {row} of model {model.number}: {answer}"[:300])
        else:
            body = {"X": [X], "y": [y]}
            answer = await self._request(session, row, "POST", f"{path}/partial_fit", body, headers)
        return int(answer["sequence"])

    async def _predict(self, session: aiohttp.ClientSession, model: TrackedModel, row: int) -> None:
        """Predict a row and have it kept until its label comes."""
        body = {"X": [model.rows[row][0]], "id": row}
        answer = await self._request(session, row, "POST", f"/v1/models/{model.hash}/predict", body, {}, 200)
        model.served[row] = Served(answer["version"], answer["rows_seen"], answer["predictions"][0])

    async def _request(
        self,
        session: aiohttp.ClientSession,
        row: int,
        method: str,
        path: str,
        body: dict[str, Any],
        headers: dict[str, str],
        success: int = 202,
    ) -> Any:
        """Send a request about a row until it succeeds; return the answer."""
        # A model that has learned nothing cannot predict.
        repeated = (429, 503, 504) if success == 202 else (409, 429, 503, 504)
        attempt = 0
        while True:
            url = self._urls[(row + attempt) % len(self._urls)] + path
            attempt += 1
            self.stats.attempts += 1
            status: int | str
            try:
                async with session.request(method, url, json=body, headers=headers) as response:
                    answer = await response.json()
                    status = response.status
            except (TimeoutError, aiohttp.ClientError) as error:
                status, answer = type(error).__name__, None
            self.stats.statuses[str(status)] += 1
            if status == success:
                self.stats.answered_at_s = time.monotonic()
                self.stats.first_answer.set()
                return answer
            if isinstance(status, int) and status not in repeated:
                self.stats.errors.append(f"{status}: {answer}"[:300])
                assert len(self.stats.errors) < 100, self.stats.errors[:5]
            await asyncio.sleep(RETRY_S)


def session() -> aiohttp.ClientSession:
    """Return an HTTP session for all clients."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=ATTEMPT_S_MAX), connector=aiohttp.TCPConnector(limit=0)
    )
