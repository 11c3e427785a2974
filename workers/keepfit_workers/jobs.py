"""The two RQ jobs. Each is a lease on a waiting room: it drains, lingers and hands over, instead of doing one request.

Gateways enqueue them by name (:mod:`keepfit.jobs.rq_jobs`). Owns nothing but the two loops; learning and predicting are
in modules of their own.
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
    """Load all that learning and predicting will need, once and before the fork; the first use costs a second."""
    features = {"a": "category", "b": "number"}
    recipe = recipe_check.check({"estimator": "SGDRegressor", "features": features, "scaler": "StandardScaler"})
    bundle = Bundle.new(recipe)
    for _ in range(2):
        bundle.partial_fit(shape(recipe, [["x", 1], ["y", 2]], [1, 2], learning=True))
    bundle.score(shape(recipe, [["x", 1], ["y", 2]], [1, 2], learning=True))


def partial_fit(lease: str) -> int:
    """Learn what waits for models in the learn room; return the number of turns."""
    here = context.current()

    def learn_all(models: Sequence[bytes]) -> Sequence[Command]:
        for model_hash in map(bytes.decode, models):
            if learn(here, model_hash, lease):
                failpoints.reach("worker.unlocked")
                # Back to the end of the room: others come first.
                run_queue.ring(here.queue, run_queue.LEARN, here.settings.lease_ttl_s, [model_hash])
        return ()

    return drain(here, run_queue.LEARN, lease, learn_all)


def predict(lease: str) -> int:
    """Answer what waits in the predict room; return the number of questions."""
    here = context.current()
    return drain(here, run_queue.PREDICT, lease, lambda entries: answer_all(here, entries))
