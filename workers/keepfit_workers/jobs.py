"""The two RQ jobs. Each is a lease on a run queue: it drains the queue, lingers and hands over.

Gateways enqueue them by name (:mod:`keepfit.jobs.rq_jobs`). Owns the two loops; learning and predicting are modules of
their own.
"""

from collections.abc import Sequence

from keepfit.backends.redis_scripts import Command
from keepfit.jobs import run_queue
from keepfit.model import recipe_check
from keepfit.model.bundle import Bundle
from keepfit.observability import failpoints
from keepfit.rows.shaping import shape
from keepfit_workers import context
from keepfit_workers.learning import learn
from keepfit_workers.lease import drain
from keepfit_workers.predicting import answer_all


def warm_up() -> None:
    """Import everything that learning and predicting need, once and before the fork; the first use takes a second."""
    features = {"a": "category", "b": "number"}
    recipe = recipe_check.check({"estimator": "SGDRegressor", "features": features, "scaler": "StandardScaler"})
    bundle = Bundle.new(recipe)
    for _ in range(2):
        bundle.partial_fit(shape(recipe, [["x", 1], ["y", 2]], [1, 2], learning=True))
    bundle.score(shape(recipe, [["x", 1], ["y", 2]], [1, 2], learning=True))


def partial_fit(lease: str) -> int:
    """Learn the pending requests of the models in the learn queue; return the number of turns."""
    worker = context.current()

    def learn_all(models: Sequence[bytes]) -> Sequence[Command]:
        for model_hash in map(bytes.decode, models):
            if learn(worker, model_hash, lease):
                failpoints.reach("worker.unlocked")
                # To the end of the queue: the other models come first.
                run_queue.enqueue_lease(worker.queue, run_queue.LEARN, worker.settings.lease_ttl_s, [model_hash])
        return ()

    return drain(worker, run_queue.LEARN, lease, learn_all)


def predict(lease: str) -> int:
    """Answer the requests in the predict queue; return their number."""
    worker = context.current()
    return drain(worker, run_queue.PREDICT, lease, lambda entries: answer_all(worker, entries))
