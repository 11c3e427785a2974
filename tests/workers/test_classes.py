"""Late classes in worker processes: more than allowed, and learned by alternating processes."""

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


async def test_a_request_with_too_many_labels_becomes_a_dead_letter(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """Its reason names the limit; the requests after it are learned, and the classes stay the same."""
    model = await make(store, {"estimator": "Perceptron"})
    await send(store, model, [[0.0], [1.0]], ["a", "b"])
    await send(store, model, [[float(i)] for i in range(CLASSES_MAX)], list(range(CLASSES_MAX)))
    await send(store, model, [[2.0]], ["c"])
    learn_all(context, model.hash)
    ((_, dead),) = client.xrange(redis_keys.dead(model.hash))  # type: ignore[misc, union-attr]
    assert b"more than 10000 labels: is it a number to be predicted?" in dead[b"reason"]
    after = await described(store, model)
    assert (after.rows_seen, after.inbox) == (3, 0)
    cached = context.bundles.cache.get(model.hash, after.digest)
    assert cached is not None
    assert cached.classes == ["a", "b", "c"]


async def test_another_worker_learns_a_new_class(store: Store, context: WorkerContext, settings: Settings) -> None:
    """A process loads the estimator that another process has extended and committed, and adds a class to it."""
    model = await make(store, RECIPE)
    twin = Twin(RECIPE)
    other = WorkerContext(settings, "other")
    try:
        for number, (X, y) in enumerate(REQUESTS):
            await send(store, model, X, y)
            learn_all((context, other)[number % 2], model.hash)
            twin.learn(X, y)
        after = await described(store, model)
        cached = other.bundles.cache.get(model.hash, after.digest)
    finally:
        other.close()
    assert cached is not None
    assert cached.estimator.coef_.tobytes() == twin.bundle.estimator.coef_.tobytes()
    assert cached.estimator.intercept_.tobytes() == twin.bundle.estimator.intercept_.tobytes()
