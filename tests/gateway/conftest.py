"""Fixtures of the gateway's tests: its API on the shared stack, and gateways in this process."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from keepfit.settings import Settings
from tests.conftest import Stack
from tests.gateway.api_client import CRASHES, Api, serving


@pytest.fixture
async def api(stack: Stack, http: aiohttp.ClientSession) -> AsyncIterator[Api]:
    """Return the API of the shared stack; no test may make its gateway crash, or bring a secret out of it."""
    before = stack.log("gateway")
    yield Api(http, secrets=(stack.environment()["KEEPFIT_SIGNING_KEYS"].partition(":")[2],))
    logged = stack.log("gateway")[len(before) :]
    assert not CRASHES.search(logged)
    assert "connection_failed" not in logged


@pytest.fixture
async def lonely(settings: Settings) -> AsyncIterator[Api]:
    """Return the API of a gateway in this process, with Redis and MongoDB and no worker."""
    async with serving(settings) as api:
        yield api
