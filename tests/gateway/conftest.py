"""Fixtures of the gateway's tests: the API of the shared stack, and of gateways in this process."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from keepfit.settings import Settings
from keepfit_gateway import health
from tests.conftest import Stack
from tests.gateway.api_client import CRASHES, Api, serving


@pytest.fixture(autouse=True)
def _patient_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gateways in this process wait longer for their dependencies: a busy machine is not a failed one."""
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 20.0)


@pytest.fixture
async def api(stack: Stack, http: aiohttp.ClientSession) -> AsyncIterator[Api]:
    """Return the API of the shared stack; check that the test causes no crash and no answer contains a secret."""
    before = stack.log("gateway")
    yield Api(http, secrets=(stack.environment()["KEEPFIT_SIGNING_KEYS"].partition(":")[2],))
    logged = stack.log("gateway")[len(before) :]
    assert not CRASHES.search(logged)
    assert "connection_failed" not in logged


@pytest.fixture
async def workerless(settings: Settings) -> AsyncIterator[Api]:
    """Return the API of a gateway in this process, with Redis and MongoDB and no worker."""
    async with serving(settings) as api:
        yield api
