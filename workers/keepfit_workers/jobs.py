"""The RQ job: a lease on both run queues. It drains them, lingers and hands over.

Gateways enqueue it by one of two names (:mod:`keepfit.jobs.rq_jobs`), which tell what prompted it. Learning and
predicting are modules of their own.
"""

from collections.abc import Sequence

from keepfit.backends import redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import run_queue
from keepfit.model import recipe_check
from keepfit.model.bundle import Bundle
from keepfit.observability import failpoints
from keepfit.rows.shaping import shape
from keepfit_workers import context
from keepfit_workers.learning import learn
from keepfit_workers.lease import Lease
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
    """Answer the requests in the predict queue, and learn those of the models in the learn queue; return the number."""
    worker = context.current()
    ttl_s = worker.settings.lease_ttl_s

    def learn_all(models: Sequence[bytes]) -> Sequence[Command]:
        for model_hash in map(bytes.decode, models):
            if learn(worker, model_hash, lease):
                failpoints.reach("worker.unlocked")
                # To the end of the queue: the other models come first.
                never = run_queue.NEVER_MS
                run_queue.enqueue_lease(worker.queue, run_queue.LEARN, ttl_s, [model_hash], late_ms=never)
        return ()

    def answer(entries: Sequence[bytes]) -> Sequence[Command]:
        return answer_all(worker, entries)

    works = {run_queue.LEARN.name: learn_all, run_queue.PREDICT.name: answer}
    adopted = run_queue.adopt(worker.queue, lease, ttl_s)
    done = Lease(worker, lease, works).drain()
    if adopted:
        redis_scripts.run(worker.queue, *run_queue.forget(lease))
    return done


predict = partial_fit
