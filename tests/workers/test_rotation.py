"""Rotation of the signing key while a model continues to learn."""

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
    """Open the context of a worker process with these signing keys."""
    context = WorkerContext(Settings(**{**settings.model_dump(), "signing_keys": signing_keys}), "rotation")
    try:
        yield context
    finally:
        context.close()


async def learn_row(store: Store, settings: Settings, model: Model, signing_keys: str) -> int:
    """Accept a row and let a worker with these keys learn the pending rows; return the model's rows seen."""
    await accept(store, model, shape(model.recipe, [[1.0]], [1.0], learning=True))
    with worker(settings, signing_keys) as context:
        learn(context, model.hash, "lease")
    return (await described(store, model)).rows_seen


async def test_a_model_moves_from_the_old_key_to_the_new_one(
    store: Store, settings: Settings, client: redis.Redis
) -> None:
    """A worker with both keys reads a bundle of the old key and signs with its first key; then the old key can go."""

    def signed_with() -> str:
        data = client.get(redis_keys.bundle(model.hash))
        assert isinstance(data, bytes)
        length = data[len(MAGIC)]
        return data[len(MAGIC) + 1 :][:length].decode()

    model = await make(store, {"estimator": "SGDRegressor"})
    seen = []
    for signing_keys, signer in (
        (OLD, "old"),
        # First every worker gets the new key for verification, then it signs, then the old one is removed.
        (f"{OLD},{NEW}", "old"),
        (f"{NEW},{OLD}", "new"),
        (NEW, "new"),
    ):
        seen.append(await learn_row(store, settings, model, signing_keys))
        assert signed_with() == signer
    assert seen == [1, 2, 3, 4]


async def test_a_worker_without_the_key_loses_nothing(store: Store, settings: Settings) -> None:
    """A worker that cannot verify a bundle logs that and leaves bundle and rows alone; one that can learns all rows."""
    model = await make(store, {"estimator": "SGDRegressor"})
    assert await learn_row(store, settings, model, NEW) == 1
    with structlog.testing.capture_logs() as logged:
        assert await learn_row(store, settings, model, OLD) == 1
    assert [line["event"] for line in logged] == ["bundle_unreadable"]
    assert await learn_row(store, settings, model, f"{OLD},{NEW}") == 3
