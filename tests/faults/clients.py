"""Clients that never give up, and what they were promised.

Owns the rows, each unique, and the record of what was accepted under which sequence. Never believes anything but a 202.
Invariant: every attempt at a row carries the same Idempotency-Key, so however often it is sent, it counts once.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# A gateway that was killed does not close a connection that hangs elsewhere; a row is sent again after this long.
ATTEMPT_S_MAX = 5.0
RETRY_S = 0.05
REGISTER_TIMEOUT = aiohttp.ClientTimeout(total=60.0)
MAKES = ["nike", "adidas", "puma", "reebok", "asics", "vans", "fila"]
FEATURES = {"make": "category", "year": "number", "weight": "number"}
# Four estimators for which the order of rows shows in the last bit of what they learned.
ESTIMATORS: Sequence[dict[str, Any]] = (
    {"estimator": "SGDRegressor"},
    {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [16]}},
    {"estimator": "SGDRegressor", "params": {"penalty": "l1", "average": True}},
    {"estimator": "PassiveAggressiveRegressor"},
)

# Or, now and then, a change of a parameter in place of a row.
Row = tuple[list[Any] | dict[str, Any], float]
CHANGE_EVERY = 50


def recipe_of(number: int) -> dict[str, Any]:
    """Recipe of the harness's model `number`."""
    return {**ESTIMATORS[number % len(ESTIMATORS)], "features": FEATURES, "scaler": "StandardScaler"}


@dataclass(slots=True)
class Learner:
    """One model under test: its rows, and the sequence each was accepted under."""

    number: int
    recipe: dict[str, Any]
    rows: list[Row]
    hash: str = ""
    accepted: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, number: int, count: int) -> "Learner":
        """Make `count` rows for model `number`, no two alike."""
        drawn = random.Random(number)
        rows: list[Row] = [
            # The weight names the row: its number is in it.
            ([drawn.choice(MAKES), drawn.randrange(1990, 2020), 200.0 + i / 64 % 200], drawn.gauss(3.0, 1.0))
            for i in range(count)
        ]
        recipe = recipe_of(number)
        name = "C" if recipe["estimator"].startswith("PassiveAggressive") else "alpha"
        for i in range(CHANGE_EVERY // 2, count, CHANGE_EVERY):
            rows[i] = ({name: drawn.choice([0.1, 0.01, 0.001])}, 0.0)
        return cls(number, recipe, rows)

    def in_order(self) -> list[Row]:
        """Accepted rows by sequence."""
        return [self.rows[self.accepted[sequence]] for sequence in sorted(self.accepted)]


@dataclass(slots=True)
class Tally:
    """What the clients have seen: rows accepted, attempts, answers by status, and answers that none may give."""

    accepted: int = 0
    attempts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first_answer: asyncio.Event = field(default_factory=asyncio.Event)
    answered_at_s: float = 0.0


class Crowd:
    """All clients of a run: they send every row of every model, at `rate` rows a second, until each is accepted."""

    def __init__(self, urls: Sequence[str], learners: Sequence[Learner], clients: int, rate: float) -> None:
        self.tally = Tally()
        self._urls = urls
        self._learners = learners
        self._clients = clients
        # Between two rows of one client.
        self._every_s = clients * len(learners) / rate

    async def register(self, session: aiohttp.ClientSession) -> None:
        """Make the models."""
        for learner in self._learners:
            body = {"metadata": {"type": "faults", "number": learner.number}, "recipe": learner.recipe}
            # No row yet: a first recipe has a gateway load scikit-learn, and a busy machine takes its time for that.
            async with session.post(f"{self._urls[0]}/v1/models", json=body, timeout=REGISTER_TIMEOUT) as response:
                answer = await response.json()
                assert response.status == 201, answer
            learner.hash = answer["hash"]

    async def send_all(self, session: aiohttp.ClientSession) -> None:
        """Send all rows."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for learner in self._learners:
                for client in range(self._clients):
                    group.create_task(self._send(session, learner, client, started))

    async def _send(self, session: aiohttp.ClientSession, learner: Learner, client: int, started: float) -> None:
        phase = (client + learner.number / len(self._learners)) / self._clients
        for turn, row in enumerate(range(client, len(learner.rows), self._clients)):
            due = started + (turn + phase) * self._every_s
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            sequence = await self._send_row(session, learner, row)
            if sequence in learner.accepted:
                self.tally.wrong.append(f"sequence {sequence} of model {learner.number} was given out twice")
            learner.accepted[sequence] = row
            self.tally.accepted += 1

    async def _send_row(self, session: aiohttp.ClientSession, learner: Learner, row: int) -> int:
        """Send one row until it is accepted; return its sequence."""
        X, y = learner.rows[row]
        path, headers = f"/v1/models/{learner.hash}", {"Idempotency-Key": f"row-{row}", "Prefer": "wait=0"}
        method, body = ("PATCH", {"params": X}) if isinstance(X, dict) else ("POST", {"X": [X], "y": [y]})
        if method == "POST":
            path += "/partial_fit"
        attempt = 0
        while True:
            url = self._urls[(row + attempt) % len(self._urls)] + path
            attempt += 1
            self.tally.attempts += 1
            status: int | str
            try:
                async with session.request(method, url, json=body, headers=headers) as response:
                    answer = await response.json()
                    status = response.status
            except (TimeoutError, aiohttp.ClientError) as error:
                status, answer = type(error).__name__, None
            self.tally.statuses[str(status)] += 1
            if status == 202:
                self.tally.answered_at_s = time.monotonic()
                self.tally.first_answer.set()
                return int(answer["sequence"])
            if isinstance(status, int) and status not in (429, 503, 504):
                self.tally.wrong.append(f"{status}: {answer}"[:300])
                assert len(self.tally.wrong) < 100, self.tally.wrong[:5]
            await asyncio.sleep(RETRY_S)


def session() -> aiohttp.ClientSession:
    """HTTP session for a crowd."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=ATTEMPT_S_MAX), connector=aiohttp.TCPConnector(limit=0)
    )
