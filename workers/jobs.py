"""The two RQ jobs. Each is a lease on a waiting room: it drains, lingers and hands over, instead of doing one request.

Gateways enqueue them by name (:mod:`keepfit.queue`). Owns nothing but the two loops; learning and predicting are in
modules of their own.
"""

from keepfit import rooms
from keepfit.bundle import Bundle
from keepfit.recipe import parse
from keepfit.rows import shape
from workers import process
from workers.learning import learn
from workers.lease import batches, ended_on_error
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
    here, turns = process.current(), 0
    with ended_on_error(here, rooms.LEARN, lease):
        for batch in batches(here, rooms.LEARN, lease):
            for entry in batch:
                model_hash = entry.decode()
                if learn(here, model_hash, lease):
                    # Back to the end of the room: others come first.
                    rooms.ring(here.queue, rooms.LEARN, here.settings.lease_ttl_s, [model_hash])
                turns += 1
    return turns


def predict(lease: str) -> int:
    """Answer what waits in the predict room; return the number of questions."""
    here, answered = process.current(), 0
    with ended_on_error(here, rooms.PREDICT, lease):
        for batch in batches(here, rooms.PREDICT, lease):
            answer_all(here, batch)
            answered += len(batch)
    return answered
