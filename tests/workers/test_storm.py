"""Workers are killed under load: every accepted row is learned once, in order."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import redis
from sklearn.linear_model import SGDRegressor
from sklearn.preprocessing import StandardScaler

from keepfit.backends import redis_keys
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import unseal
from keepfit.recipe.recipe import parse
from keepfit.security.envelope import Keyring
from tests.conftest import Stack, start_stack, stop_stack

ROWS, CLIENTS = 10_000, 20
KILL_EVERY_S = 0.5
MAKES = ["nike", "adidas", "puma", "reebok", "asics", "vans", "fila"]
RECIPE = {
    "estimator": "SGDRegressor",
    "features": {"make": "category", "year": "number", "weight": "number"},
    "scaler": "StandardScaler",
    # The loop that checks the result writes codes, of which 0 is that of infrequent labels.
    "encoding": "ordinal",
}

Row = tuple[str, float, float, float]
# Each client changes `alpha` once per CHANGE_EVERY rows.
CHANGE_EVERY, ALPHAS = 50, [0.1, 0.01, 0.001]


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """Run a stack of this test only, with two workers."""
    stack = start_stack(tmp_path / "data", workers=2)
    yield stack
    assert stop_stack(stack) == 0


def _rows() -> list[Row]:
    random = np.random.default_rng(20)
    years, weights = random.integers(1990, 2020, ROWS), random.normal(300.0, 50.0, ROWS)
    sizes = random.normal(3.0, 1.0, ROWS)
    makes = random.choice(MAKES, ROWS)
    return [(str(m), float(y), float(w), float(s)) for m, y, w, s in zip(makes, years, weights, sizes, strict=True)]


def _plain_loop(rows: list[Row | float]) -> tuple[StandardScaler, SGDRegressor, dict[str, int]]:
    """Learn these rows with scikit-learn, one by one in one process, with `alpha` changed in between."""
    scaler, estimator = StandardScaler(), SGDRegressor(shuffle=False, random_state=0)
    codes: dict[str, int] = {}
    for row in rows:
        if isinstance(row, float):
            estimator.set_params(alpha=row)
            continue
        make, year, weight, size = row
        codes.setdefault(make, len(codes))
        numbers = np.array([[year, weight]])
        scaled = scaler.partial_fit(numbers).transform(numbers)
        estimator.partial_fit(np.hstack([[[1 + codes[make]]], scaled]), [size])
    return scaler, estimator, codes


async def _change(session: aiohttp.ClientSession, path: str, alpha: float, accepted: dict[int, Row | float]) -> None:
    async with session.patch(path, json={"params": {"alpha": alpha}}, headers={"Prefer": "wait=0"}) as response:
        reply = await response.json()
        assert response.status == 202, reply
    accepted[reply["sequence"]] = alpha


async def _send(session: aiohttp.ClientSession, path: str, rows: list[Row], accepted: dict[int, Row | float]) -> None:
    for number, (make, year, weight, size) in enumerate(rows):
        if number % CHANGE_EVERY == 0:
            await _change(session, path, ALPHAS[number % len(ALPHAS)], accepted)
        body = {"X": [[make, year, weight]], "y": [size]}
        async with session.post(f"{path}/partial_fit", json=body) as response:
            reply = await response.json()
            assert response.status == 202, reply
        assert reply["sequence"] not in accepted
        accepted[reply["sequence"]] = (make, year, weight, size)


async def _kill_workers(stack: Stack, killed: list[int]) -> None:
    while True:
        await asyncio.sleep(KILL_EVERY_S)
        # The two workers alternate: after a kill the new worker is the last of the supervisor's children.
        pid = stack.workers()[0]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


async def _learned(session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with asyncio.timeout(120):
        while True:
            async with session.get(path) as response:
                model: dict[str, Any] = await response.json()
            if model["inbox"] == 0:
                return model
            await asyncio.sleep(0.05)


def _bundle(stack: Stack, model_hash: str) -> Bundle:
    settings = stack.settings()
    data = redis.Redis.from_url(settings.store_url.get_secret_value()).get(redis_keys.bundle(model_hash))
    assert isinstance(data, bytes)
    keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
    return unseal(data, keyring, parse(RECIPE), model_hash)[1]


@pytest.mark.timeout(300)
async def test_every_accepted_row_is_learned_once_in_order_while_workers_are_killed(own_stack: Stack) -> None:
    """10,000 rows, 200 changes, 20 clients, two kills a second: the bundle equals the plain loop's, bit for bit."""
    rows, accepted, killed = _rows(), dict[int, Row | float](), list[int]()
    async with aiohttp.ClientSession(own_stack.url) as session:
        async with session.post("/v1/models", json={"metadata": {"type": "storm"}, "recipe": RECIPE}) as response:
            model_hash = (await response.json())["hash"]
        path = f"/v1/models/{model_hash}"
        killer = asyncio.create_task(_kill_workers(own_stack, killed))
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(_send(session, path, rows[number::CLIENTS], accepted))
        model = await _learned(session, path)
        killer.cancel()

    assert len(killed) >= 5
    assert sorted(accepted) == list(range(1, ROWS + ROWS // CHANGE_EVERY + 1))
    assert model["rows_seen"] == ROWS
    bundle = _bundle(own_stack, model_hash)
    scaler, estimator, codes = _plain_loop([accepted[sequence] for sequence in sorted(accepted)])
    assert bundle.rows_seen == ROWS
    assert bundle.columns.labels == [codes]
    for name in ("mean_", "var_", "scale_", "n_samples_seen_"):
        np.testing.assert_array_equal(getattr(bundle.columns.scaler, name), getattr(scaler, name))
    for name in ("coef_", "intercept_", "t_"):
        np.testing.assert_array_equal(getattr(bundle.estimator, name), getattr(estimator, name))
