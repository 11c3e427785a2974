"""Workers die while they replace the code of an object: it is replaced once, at its place among the rows."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.history import RegistryEntry
from keepfit.history.registry.lineage import Position
from keepfit.jobs import run_queue
from keepfit.model.serialization import unseal
from keepfit.recipe import uploads
from keepfit.recipe.recipe import Recipe, parse
from keepfit.restore.replay import Replayer
from keepfit.restore.replay_source import LoggedRequest
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store import changes, inbox
from keepfit.store.commit import Harm
from keepfit_workers import sweep
from tests.factories import Workshop, dump_local
from tests.faults import acts
from tests.faults.conftest import UPLOAD_KEYS
from tests.faults.test_points import KILLED, LEARNING, LEASE, learned, push, recover

SOURCE = """import numpy as np
class Walk:
    def __init__(self): self.steps, self.factor = [], FACTOR
    def partial_fit(self, X, y): self.steps.append(float(y[-1]) * FACTOR + np.random.random())
    def predict(self, X): return [sum(self.steps)] * len(X)
    def __setstate__(self, state):
        vars(self).update(state)
        if self.factor != FACTOR:
            self.steps, self.factor = [*self.steps, FACTOR + np.random.random()], FACTOR
"""
OLD, NEW = f"FACTOR = 1.0\n{SOURCE}", f"FACTOR = 100.0\n{SOURCE}"


def expected(rows_before: int, targets: list[float]) -> list[float]:
    """Return the steps of a loop that replaces the code after some rows, with the seeds that the guide names."""
    steps: list[float] = []
    for number, target in enumerate(targets):
        factor = 1.0 if number < rows_before else 100.0
        if number == rows_before:
            np.random.seed(number)
            steps.append(100.0 + np.random.random())
        np.random.seed(number)
        steps.append(target * factor + np.random.random())
    return steps


@pytest.fixture
def recipe() -> Recipe:
    """Return the recipe of an object with the old code."""
    return parse({"object": dump_local(OLD, UPLOAD_KEYS)}, uploads.upload_keyring(UPLOAD_KEYS))


async def accept_code(shop: Workshop, settings: Settings, model_hash: str, text: str) -> None:
    """Accept new code for a model."""
    model = await shop.model(model_hash)
    connection = ScriptConnection(shop.store.client)
    request = inbox.make_change(model_hash, model.generation, {"object": text, "state": "keep"})
    ((outcome,), _) = await inbox.accept(connection, settings, [request])
    await connection.close()
    assert isinstance(outcome, inbox.Accepted)


@pytest.mark.parametrize("point", [point for point in LEARNING if not point.startswith("lease")])
async def test_a_worker_can_die_while_it_replaces_code(
    deployment: Settings, shop: Workshop, recipe: Recipe, point: str
) -> None:
    """After the death of a worker at any step, code and rows are as in a loop, to the bit."""
    model_hash, new = await shop.make(recipe), dump_local(NEW, UPLOAD_KEYS)
    for target in (1.0, 2.0):
        await shop.accept(model_hash, [[0.0]], [target])
    await accept_code(shop, deployment, model_hash, new)
    for target in (3.0, 4.0):
        await shop.accept(model_hash, [[0.0]], [target])
    push(shop, run_queue.LEARN, model_hash)
    assert acts.exit_code_of(f"{point}:1:kill", acts.learn, deployment, LEASE) == KILLED
    recover(deployment, partial(learned, shop, model_hash))
    bundle: Any = unseal(shop.data(model_hash), shop.keyring, recipe, model_hash)[1]
    assert bundle.estimator.steps == expected(2, [1.0, 2.0, 3.0, 4.0])
    model = await shop.model(model_hash)
    assert (model.rows_seen, model.learned, model.changed) == (4, 5, bundle.changed)
    assert uploads.header_of(model.changed["object"]).code == uploads.NewCode(
        uploads.digest_of(new), len(uploads.decode(new))
    )


async def test_code_that_ends_its_process_is_put_aside(deployment: Settings, shop: Workshop, recipe: Recipe) -> None:
    """Code of which workers die is a dead letter, and the rows around it are learned with the old code."""
    model_hash = await shop.make(recipe)
    deadly = NEW.replace("vars(self).update(state)", "import os; os._exit(9)")
    await shop.accept(model_hash, [[0.0]], [1.0])
    await accept_code(shop, deployment, model_hash, dump_local(deadly, UPLOAD_KEYS))
    await shop.accept(model_hash, [[0.0]], [2.0])
    deaths = 0
    while not learned(shop, model_hash):
        push(shop, run_queue.LEARN, model_hash)
        deaths += acts.exit_code_of("", acts.learn, deployment, LEASE) == 9
        sweep.end_lease(shop.redis, shop.redis, LEASE, Harm.DEATH)
        assert deaths < 20
    bundle: Any = unseal(shop.data(model_hash), shop.keyring, recipe, model_hash)[1]
    assert (bundle.estimator.steps, bundle.changed) == (expected(2, [1.0, 2.0]), {})
    ((_, letter),) = shop.redis.xrange(redis_keys.dead(model_hash))  # type: ignore[misc]
    assert b"died" in letter[b"reason"]


async def test_a_replay_replaces_the_code_at_its_place(shop: Workshop, recipe: Recipe) -> None:
    """Logged requests with a change of code give the bundle of the loop."""
    code = changes.encode({"object": dump_local(NEW, UPLOAD_KEYS), "state": "keep"})
    rows = [shape(recipe, [[0.0]], [target], learning=True).encode() for target in (1.0, 2.0, 3.0)]
    payloads = [rows[0], rows[1], code, rows[2]]
    requests = [LoggedRequest(1, 1, number, 0.0, payload) for number, payload in enumerate(payloads, start=1)]
    replayer = Replayer(shop.keyring, uploads.upload_keyring(UPLOAD_KEYS), 60.0)
    try:
        registered = RegistryEntry("ab" * 32, "{}", recipe.text(), 1, 1, {})
        replayed = await replayer.learn(registered, None, Position(1, 1, 0), requests)
    finally:
        replayer.close()
    assert replayed.bundle is not None
    bundle: Any = unseal(replayed.bundle.data, shop.keyring, recipe, "ab" * 32)[1]
    assert bundle.estimator.steps == expected(2, [1.0, 2.0, 3.0])
    assert (replayed.skipped, replayed.rows, replayed.bundle.changed) == ([], 3, bundle.changed)
