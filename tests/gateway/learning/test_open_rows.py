"""Open rows of a gateway whose register of all models is damaged: nothing waits for the counts."""

import asyncio

import pytest

from keepfit.backends import redis_keys
from keepfit.settings import Settings
from keepfit.store import open_rows as open_rows_store
from keepfit_gateway.learning import open_rows
from tests.factories import workshop
from tests.gateway.api_client import REGRESSOR, eventually, serving


async def test_labels_are_accepted_and_rows_expire_after_errors_of_the_register(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that come during the failed round trip go with the next one; the pass is made again."""
    monkeypatch.setattr(open_rows, "EXPIRE_S", 0.01)
    monkeypatch.setattr(open_rows_store, "EXPIRY_LOCK_MS", 1)
    async with workshop(settings) as shop:
        model_hash = await shop.make(REGRESSOR)
        await shop.learn(model_hash, [[1.0, 2.0]], [1.0])
        await shop.keep(model_hash, ["a", "b", "c", "late"])
        shop.redis.set(redis_keys.OPEN_ROWS, "damaged")
        async with serving(settings) as api:
            path = f"/v1/models/{model_hash}"
            calls = ({"labels": [{"id": name, "y": 1.0}]} for name in "abc")
            replies = await asyncio.gather(*(api.post(f"{path}/labels", call) for call in calls))
            assert [reply.of(202)["accepted"] for reply in replies] == [1, 1, 1]
            shop.redis.zadd(redis_keys.open_row_ends(model_hash), {"late": 1})
            shop.redis.delete(redis_keys.OPEN_ROWS)
            await shop.keep(model_hash, ["new"])

            async def expired() -> bool:
                return (await shop.model(model_hash)).open_rows == 1

            await eventually(expired, "the end of a row")
