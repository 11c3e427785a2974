"""Fixtures for the tests of workers: contexts of workers, a workshop, a Redis client and the gateway's store."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from keepfit.backends import redis_clients
from keepfit.settings import Settings
from keepfit.store.models import Store
from keepfit_workers.context import WorkerContext
from tests.factories import Workshop, workshop


@pytest.fixture
def context(settings: Settings) -> Iterator[WorkerContext]:
    """Return the context of a worker process."""
    opened = WorkerContext(settings, "test")
    yield opened
    opened.close()


@pytest.fixture
def other_worker(settings: Settings) -> Iterator[WorkerContext]:
    """Return the context of a second worker."""
    opened = WorkerContext(settings, "second")
    yield opened
    opened.close()


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    """Return a plain client of the store's Redis."""
    return redis_clients.store_sync(settings)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Return the store as a gateway uses it."""
    opened = redis_clients.store_async(settings)
    yield Store(opened)
    await opened.aclose()
