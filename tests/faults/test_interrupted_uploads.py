"""A gateway dies in the middle of an upload: nothing is left that does not expire or is not collected."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import numpy as np
import pytest
import skops.io
from sklearn.linear_model import SGDRegressor

from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.settings import Settings
from keepfit.snapshots import garbage
from keepfit.snapshots.garbage import HASH_END
from keepfit.snapshots.retention import DAY_S, Rules
from keepfit.store.staged_file import PIECE_BYTES
from keepfit_gateway.file_transfer import WORKER_TIMEOUT_S
from tests.factories import Workshop, workshop
from tests.faults import acts
from tests.faults.test_points import recover
from tests.gateway.api_client import connected, eventually

# Several pieces.
LEARNER = SGDRegressor().partial_fit(np.ones((1, 9000)), [1.0])
LEARNER.pad_ = np.arange(PIECE_BYTES // 3, dtype=np.float64)
FILE = skops.io.dumps(LEARNER)


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only, with leases that expire soon."""
    async with workshop(settings.model_copy(update={"lease_ttl_s": 0.3, "port": 0})) as opened:
        yield opened


@contextmanager
def gateway(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Run a gateway in a child; yield its URL and process."""
    receiver, sender = acts.pipe()
    with acts.child("", acts.serve, settings, sender) as process:
        assert receiver.poll(60), "the gateway does not listen"
        yield receiver.recv(), process


async def upload_until(shop: Workshop, metadata: dict[str, Any], sent: int, key: str) -> None:
    """Send the first bytes of a file to a gateway, and kill it once Redis has a key that matches `key`."""
    query = quote(json.dumps(metadata))
    with gateway(shop.settings) as (url, process):
        async with connected(url) as (_, writer):
            head = f"POST /v1/estimator?metadata={query} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
            head += f"Content-Type: application/octet-stream\r\nContent-Length: {len(FILE)}\r\n\r\n"
            writer.write(head.encode() + FILE[:sent])

            async def is_there() -> bool:
                return bool(shop.redis.keys(key))

            await eventually(is_there, key)
            process.kill()
            process.join()


def lasting(shop: Workshop) -> list[bytes]:
    """Return the keys that stay for ever, without the events, the records of gateways and those of the run queues."""
    others = (b"kf:room:", b"kf:events", redis_keys.GATEWAYS.encode())
    names = [name for name in shop.redis.scan_iter("kf:*") if not name.startswith(others)]
    return [name for name in names if shop.redis.pttl(name) == -1]


async def test_a_body_that_ends_with_its_gateway(shop: Workshop, metadata: dict[str, Any]) -> None:
    """Killed while the body arrives, a gateway leaves a part of a file that expires, and nothing else."""
    await upload_until(shop, metadata, len(FILE) - 1000, redis_keys.staged_file("*"))
    (key,) = shop.redis.keys(redis_keys.staged_file("*"))
    assert 0 < shop.redis.pttl(key) <= 1000 * (WORKER_TIMEOUT_S + shop.settings.body_timeout_s)
    assert lasting(shop) == []
    assert await shop.registry.find(identity.hash_of(metadata)) is None
    assert list(shop.storage.list("", HASH_END)) == []


@pytest.mark.parametrize("expired", [False, True])
async def test_a_gateway_dies_while_a_worker_is_to_load_the_file(
    shop: Workshop, metadata: dict[str, Any], expired: bool
) -> None:
    """Killed after the worker was asked, a gateway leaves the model, or nothing if its file has expired by then."""
    model_hash = identity.hash_of(metadata)
    await upload_until(shop, metadata, len(FILE), redis_keys.worker_requests("predict"))
    (key,) = shop.redis.keys(redis_keys.staged_file("*"))
    assert shop.redis.pttl(key) > 0
    if expired:
        shop.redis.delete(key)
    replied = redis_keys.replies("*")
    await asyncio.to_thread(recover, shop.settings, lambda: bool(shop.redis.keys(replied)))
    registered = await shop.registry.find(model_hash)
    assert (registered is None) == expired
    left = [name for name in lasting(shop) if model_hash.encode() not in name]
    assert left == []
    await garbage.collect(shop.registry, shop.storage, "", HASH_END, Rules(grace_s=-1), time.time() + 40 * DAY_S)
    assert len(list(shop.storage.list("", HASH_END))) == (not expired)
    with gateway(shop.settings) as (url, _):
        async with (
            aiohttp.ClientSession(url) as http,
            http.get(f"/v1/models/{model_hash}") as described,
        ):
            assert described.status == (404 if expired else 200)
