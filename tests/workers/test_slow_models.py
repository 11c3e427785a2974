"""A very slow model does not take the last worker: others are answered while its calls run."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from keepfit.backends import redis_clients, redis_keys
from keepfit.security.envelope import UPLOAD_KEYS
from tests.conftest import Stack
from tests.factories import dump_local
from tests.gateway.api_client import REGRESSOR, Api, eventually

SOURCE = """class Gated:
    def partial_fit(self, X, y): pass
    def predict(self, X):
        import pathlib, time
        if X[0, 0] > 0:
            end = time.monotonic() + 60
            time.sleep(0.3)
            while not pathlib.Path(GATE).exists() and time.monotonic() < end: time.sleep(0.05)
        return [0.0] * len(X)
"""


async def test_other_models_are_answered_while_a_very_slow_one_is_computed(
    stack: Stack, http: aiohttp.ClientSession, metadata: dict[str, Any], tmp_path: Path
) -> None:
    """Of two workers one computes six questions about a very slow model; the other one answers the other models."""
    api, gate = Api(http), tmp_path / "gate"
    text = dump_local(SOURCE.replace("GATE", repr(str(gate))), stack.environment()[UPLOAD_KEYS])
    slow = await api.make(metadata, {"object": text})
    quick = await api.make({**metadata, "quick": True}, REGRESSOR)
    for path in (slow, quick):
        await api.learn(path, [[0.0]], [1.0])
    gate.touch()
    await api.predict(slow, [[1.0]])
    gate.unlink()
    questions = [
        asyncio.create_task(api.post(f"{slow}/predict?timeout=120", {"X": [[float(number)]]})) for number in range(2, 8)
    ]

    async def is_computed() -> bool:
        with redis_clients.queue_sync(stack.settings()) as queue:
            holders = queue.hvals(redis_keys.LEASE_HOLDERS)
        return any(slow.rpartition("/")[2].encode() in holder for holder in holders)

    await eventually(is_computed, "a worker at the slow model")
    for number in range(20):
        assert len((await api.predict(quick, [[float(number)]]))["predictions"]) == 1
    assert not any(question.done() for question in questions)
    gate.touch()
    assert [reply.status for reply in await asyncio.gather(*questions)] == [200] * 6
