"""The two RQ jobs. Each is a lease on a waiting room: it drains, lingers and hands over, instead of doing one request.

Gateways enqueue them by name (:mod:`keepfit.queue`). Owns nothing but the two loops; learning and predicting are in
modules of their own.
"""

from collections.abc import Sequence

from keepfit import faults, rooms
from keepfit.bundle import Bundle
from keepfit.recipe import parse
from keepfit.rows import shape
from keepfit.scripts import Command
from workers import process
from workers.learning import learn
from workers.lease import drain
from workers.predicting import answer_all


def warm_up() -> None:
    """Load all that learning and predicting will need, once and before the fork; the first use costs a second."""
    features = {"a": "category", "b": "number"}
    recipe = parse({"estimator": "SGDRegressor", "features": features, "scaler": "StandardScaler"})
    bundle = Bundle.new(recipe)
    for _ in range(2):
        bundle.partial_fit(shape(recipe, [["x", 1], ["y", 2]], [1, 2], learning=True))
    bundle.score(shape(recipe, [["x", 1], ["y", 2]], [1, 2], learning=True))


def partial_fit(lease: str) -> int:
    """Learn what waits for models in the learn room; return the number of turns."""
    here = process.current()

    def learn_all(models: Sequence[bytes]) -> Sequence[Command]:
        for model_hash in map(bytes.decode, models):
            if learn(here, model_hash, lease):
                faults.reach("worker.unlocked")
                # Back to the end of the room: others come first.
                rooms.ring(here.queue, rooms.LEARN, here.settings.lease_ttl_s, [model_hash])
        return ()

    return drain(here, rooms.LEARN, lease, learn_all)


def predict(lease: str) -> int:
    """Answer what waits in the predict room; return the number of questions."""
    here = process.current()
    return drain(here, rooms.PREDICT, lease, lambda entries: answer_all(here, entries))
