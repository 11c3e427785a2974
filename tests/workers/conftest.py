"""Fixtures of the workers' tests: what a worker process has, and the gateway's side of the store."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from keepfit import connections
from keepfit.settings import Settings
from keepfit.store import Store
from workers.process import Process


@pytest.fixture
def process(settings: Settings) -> Iterator[Process]:
    """Return the context of a worker process."""
    opened = Process(settings, "test")
    yield opened
    opened.close()


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    """Return a plain connection to Redis."""
    return connections.store_sync(settings)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Return the gateway's side of the store."""
    opened = connections.store_async(settings)
    yield Store(opened)
    await opened.aclose()
