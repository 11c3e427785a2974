"""Changing the signing key under a model that goes on learning."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
import structlog

from keepfit.backends import redis_keys
from keepfit.rows.shaping import shape
from keepfit.security.envelope import MAGIC
from keepfit.settings import Settings
from keepfit.store.models import Model, Store
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from tests.factories import accept
from tests.workers.test_learning import described, make

OLD, NEW = "old:" + "01" * 32, "new:" + "02" * 32


@contextmanager
def worker(settings: Settings, signing_keys: str) -> Iterator[WorkerContext]:
    """Context of a worker process that was started with these keys."""
    context = WorkerContext(Settings(**{**settings.model_dump(), "signing_keys": signing_keys}), "rotation")
    try:
        yield context
    finally:
        context.close()


async def learned(store: Store, settings: Settings, model: Model, signing_keys: str) -> int:
    """Send a row, have a worker with these keys learn what waits; return how many rows the model has seen."""
    await accept(store, model, shape(model.recipe, [[1.0]], [1.0], learning=True))
    with worker(settings, signing_keys) as context:
        learn(context, model.hash, "lease")
    return (await described(store, model)).rows_seen


async def test_a_model_goes_from_key_to_key(store: Store, settings: Settings, client: redis.Redis) -> None:
    """A bundle of the old key is read by who has both, signed anew by the first of them, and needs the old no more."""

    def signed_with() -> str:
        data = client.get(redis_keys.bundle(model.hash))
        assert isinstance(data, bytes)
        length = data[len(MAGIC)]
        return data[len(MAGIC) + 1 :][:length].decode()

    model = await make(store, {"estimator": "SGDRegressor"})
    seen = []
    for signing_keys, signer in (
        (OLD, "old"),
        # First all learn to verify with the new key, then it signs, then the old one goes.
        (f"{OLD},{NEW}", "old"),
        (f"{NEW},{OLD}", "new"),
        (NEW, "new"),
    ):
        seen.append(await learned(store, settings, model, signing_keys))
        assert signed_with() == signer
    assert seen == [1, 2, 3, 4]


async def test_a_worker_without_the_key_loses_nothing(store: Store, settings: Settings) -> None:
    """Who cannot verify a bundle leaves it and its rows alone and says so; who can learns them all."""
    model = await make(store, {"estimator": "SGDRegressor"})
    assert await learned(store, settings, model, NEW) == 1
    with structlog.testing.capture_logs() as logged:
        assert await learned(store, settings, model, OLD) == 1
    assert [line["event"] for line in logged] == ["bundle_unreadable"]
    assert await learned(store, settings, model, f"{OLD},{NEW}") == 3
