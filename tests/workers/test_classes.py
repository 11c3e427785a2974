"""Classes that turn up late, in worker processes: far too many of them, and another process for each."""

from typing import Any

import redis

from keepfit.backends import redis_keys
from keepfit.recipe.recipe import CLASSES_MAX
from keepfit.settings import Settings
from keepfit.store.models import Store
from keepfit_workers.context import WorkerContext
from tests.gateway.api_client import Twin
from tests.workers.test_learning import described, learn_all, make, send

RECIPE = {"estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "scaler": "StandardScaler"}
REQUESTS: list[tuple[list[list[float]], list[Any]]] = [
    ([[0.0, 9.0]], ["yes"]),
    ([[9.0, 0.0], [0.5, 8.0]], ["no", "yes"]),
    ([[9.0, 9.0], [8.5, 9.5]], [True, True]),
    ([[-9.0, 0.0], [0.0, -9.0]], [1, "1"]),
]


async def test_more_labels_than_there_may_be_are_put_aside_with_the_reason(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """A target of ever new labels is put aside and says why; the requests after it are learned, by the same classes."""
    model = await make(store, {"estimator": "Perceptron"})
    await send(store, model, [[0.0], [1.0]], ["a", "b"])
    await send(store, model, [[float(i)] for i in range(CLASSES_MAX)], list(range(CLASSES_MAX)))
    await send(store, model, [[2.0]], ["c"])
    learn_all(context, model.hash)
    ((_, kept),) = client.xrange(redis_keys.dead(model.hash))  # type: ignore[misc, union-attr]
    assert b"more than 10000 labels: is it a number to be predicted?" in kept[b"reason"]
    after = await described(store, model)
    assert (after.rows_seen, after.inbox) == (3, 0)
    held = context.bundles.cache.get(model.hash, after.digest)
    assert held is not None
    assert held.classes == ["a", "b", "c"]


async def test_a_new_class_is_learned_by_another_worker_than_the_old_ones(
    store: Store, context: WorkerContext, settings: Settings
) -> None:
    """What one process has grown and written, another one loads, and learns one class more."""
    model = await make(store, RECIPE)
    twin = Twin(RECIPE)
    other = WorkerContext(settings, "other")
    try:
        for place, (X, y) in enumerate(REQUESTS):
            await send(store, model, X, y)
            learn_all((context, other)[place % 2], model.hash)
            twin.learn(X, y)
        after = await described(store, model)
        held = other.bundles.cache.get(model.hash, after.digest)
    finally:
        other.close()
    assert held is not None
    assert held.estimator.coef_.tobytes() == twin.bundle.estimator.coef_.tobytes()
    assert held.estimator.intercept_.tobytes() == twin.bundle.estimator.intercept_.tobytes()
