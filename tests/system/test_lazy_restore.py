"""Models that Redis lost are restored on their first use, through a real gateway and real workers."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from redis import Redis

from keepfit.backends import redis_keys
from keepfit_snapshotter.run import run_once
from tests.conftest import SHOES_RECIPE, Stack, start_stack, stop_stack

SHOES = [{"make": "nike", "year": 2001}, {"make": "adidas", "year": 2003}]


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a stack of this module only: its tests delete keys in Redis, which must not affect models of other tests."""
    running = start_stack(tmp_path_factory.mktemp("lazily") / "data")
    yield running
    assert stop_stack(running) == 0


@pytest.fixture
async def gateway(own_stack: Stack) -> AsyncIterator[aiohttp.ClientSession]:
    """Open an HTTP session on the stack's gateway."""
    async with aiohttp.ClientSession(own_stack.url) as session:
        yield session


@pytest.fixture
def store(own_stack: Stack) -> Iterator[Redis]:
    """Connect to the stack's Redis."""
    with Redis.from_url(own_stack.settings().store_url.get_secret_value()) as client:
        yield client


async def call(gateway: aiohttp.ClientSession, method: str, path: str, body: Any = None, wait: int = 0) -> Any:
    """Send an HTTP request that must succeed; return its JSON reply."""
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    async with gateway.request(method, path, json=body, headers=headers) as response:
        reply = await response.json()
        assert response.status in (200, 201, 202), reply
        return reply


async def saved_model(gateway: aiohttp.ClientSession, stack: Stack) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Create, train and save a model; return its path, its description and its predictions."""
    metadata = {"type": "shoes", "session": uuid.uuid4().hex}
    made = await call(gateway, "POST", "/v1/models", {"metadata": metadata, "recipe": SHOES_RECIPE})
    path = f"/v1/models/{made['hash']}"
    for sizes in ([4, 5], [3, 6]):
        await call(gateway, "POST", f"{path}/partial_fit", {"X": SHOES, "y": sizes}, wait=10)
    await run_once(stack.settings())
    description = await call(gateway, "GET", path)
    assert (description["version"], description["rows_seen"]) == (2, 4)
    assert description["snapshot"]["version"] == 2
    return path, description, await call(gateway, "POST", f"{path}/predict", {"X": SHOES})


def lose(store: Redis, model_hash: str) -> None:
    """Delete a model's keys, as a loss of Redis does."""
    names = [name(model_hash) for name in (redis_keys.state, redis_keys.bundle, redis_keys.inbox, redis_keys.lock)]
    assert store.delete(*names) >= 2
    assert store.exists(*names) == 0


async def test_get_of_a_lost_model_restores_it(own_stack: Stack, gateway: aiohttp.ClientSession, store: Redis) -> None:
    """GET of a model that exists only in a snapshot returns the same description as before the loss."""
    path, before, predicted = await saved_model(gateway, own_stack)
    lose(store, before["hash"])
    assert await call(gateway, "GET", path) == before
    assert await call(gateway, "POST", f"{path}/predict", {"X": SHOES}) == predicted


async def test_a_prediction_with_a_lost_model_restores_it(
    own_stack: Stack, gateway: aiohttp.ClientSession, store: Redis
) -> None:
    """A prediction with a model that exists only in a snapshot is the same as before, by the same version."""
    path, before, predicted = await saved_model(gateway, own_stack)
    lose(store, before["hash"])
    assert await call(gateway, "POST", f"{path}/predict", {"X": SHOES}) == predicted
    assert await call(gateway, "GET", path) == before


async def test_concurrent_requests_restore_a_lost_model_once(
    own_stack: Stack, gateway: aiohttp.ClientSession, store: Redis
) -> None:
    """Concurrent requests for a lost model get the same replies, and one restored model is live afterwards."""
    path, before, predicted = await saved_model(gateway, own_stack)
    lose(store, before["hash"])
    replies = await asyncio.gather(
        *(call(gateway, "POST", f"{path}/predict", {"X": SHOES}) for _ in range(20)),
        *(call(gateway, "GET", path) for _ in range(5)),
    )
    assert replies == [predicted] * 20 + [before] * 5


async def test_a_lost_model_learns_on_top_of_its_snapshot(
    own_stack: Stack, gateway: aiohttp.ClientSession, store: Redis
) -> None:
    """Rows for a model that exists only in a snapshot are learned on top of it, as by a model that was never lost."""
    path, before, _ = await saved_model(gateway, own_stack)
    intact, _, _ = await saved_model(gateway, own_stack)
    lose(store, before["hash"])
    accepted = await call(gateway, "POST", f"{path}/partial_fit", {"X": SHOES, "y": [1, 2]})
    assert (accepted["sequence"], accepted["generation"]) == (3, 2)
    learned = await call(gateway, "POST", f"{path}/partial_fit", {"X": SHOES, "y": [7, 8]}, wait=10)
    assert learned["rows_seen"] == 8
    for sizes in ([1, 2], [7, 8]):
        await call(gateway, "POST", f"{intact}/partial_fit", {"X": SHOES, "y": sizes}, wait=10)
    restored, never_lost = [await call(gateway, "POST", f"{each}/predict", {"X": SHOES}) for each in (path, intact)]
    assert restored["predictions"] == never_lost["predictions"]


async def test_a_deleted_model_is_not_restored(own_stack: Stack, gateway: aiohttp.ClientSession, store: Redis) -> None:
    """A request does not restore a deleted model, although its snapshots exist."""
    path, before, _ = await saved_model(gateway, own_stack)
    async with gateway.delete(path) as response:
        assert response.status == 204
    for method, url in (("GET", path), ("POST", f"{path}/predict")):
        async with gateway.request(method, url, json={"X": SHOES} if method == "POST" else None) as response:
            assert response.status == 404
    assert store.exists(redis_keys.state(before["hash"])) == 0
