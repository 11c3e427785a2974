"""One worker at a time restores or repairs a model; others leave its work in the run queue, and serve other models."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from keepfit.backends import redis_keys, redis_scripts
from keepfit.jobs import run_queue
from keepfit.jobs.messages import Operation, WorkerReply, WorkerRequest
from keepfit.jobs.run_queue import LEARN
from keepfit.rows.shaping import shape
from keepfit_workers import restoring
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from tests.factories import SHOES, Workshop
from tests.workers.two_leases import FIRST, SECOND, TTL_S, answer, claim, leased, push, replies_of


class Gate:
    """Holds up whatever restores or repairs until it is opened, and counts it."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self.began, self.opened, self.calls = threading.Event(), threading.Event(), 0
        self._act = act

    def __call__(self, *given: Any) -> Any:
        """Do the work once the gate is open."""
        self.calls += 1
        self.began.set()
        assert self.opened.wait(60)
        return self._act(*given)


def ask_about(context: WorkerContext, number: int, model_hash: str, operation: Operation, **more: Any) -> None:
    """Push a question about a model."""
    push(context, WorkerRequest(number, "g", model_hash, operation, **more))


async def two_workers(
    first: WorkerContext, second: WorkerContext, gate: Gate, hashes: tuple[str, str], ask: Callable[[int, str], None]
) -> dict[int, WorkerReply]:
    """Let two workers claim a question about the same model while the first is at the gate; return the replies.

    In between, the second one must answer a question about another model, and claim nothing of this one.
    """
    model_hash, other = hashes
    with leased(first, FIRST), leased(second, SECOND):
        ask(1, model_hash)
        (entry,) = claim(first, FIRST)
        # Claimed before the model is marked.
        ask(2, model_hash)
        (late,) = claim(second, SECOND)
        restoring_first = asyncio.create_task(asyncio.to_thread(answer, first, [entry]))
        assert await asyncio.to_thread(gate.began.wait, 60)
        assert await asyncio.to_thread(answer, second, [late]) == {}
        ask(3, model_hash)
        assert claim(second, SECOND) == []
        ask(4, other)
        (quick,) = claim(second, SECOND)
        answered = await asyncio.to_thread(answer, second, [quick])
        assert {number: reply.error for number, reply in answered.items()} == {4: None}
        assert not restoring_first.done()
        gate.opened.set()
        await restoring_first
        # One claim takes the share of this worker.
        while left := claim(second, SECOND):
            await asyncio.to_thread(answer, second, left)
        return replies_of(first)


async def test_one_worker_restores_a_lost_model(
    shop: Workshop, context: WorkerContext, other_worker: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions of a second worker wait in the run queue until the first has restored the model, and succeed then."""
    lost, other = await shop.learned(), await shop.learned()
    await shop.snapshotter.run_pass()
    shop.lose(lost)
    gate = Gate(restoring.restore_lost)
    monkeypatch.setattr(restoring, "restore_lost", gate)

    def ask(number: int, model_hash: str) -> None:
        if model_hash == lost:
            ask_about(context, number, model_hash, "restore")
        else:
            ask_about(context, number, model_hash, "predict", generation=model.generation, rows=rows)

    model = await shop.model(other)
    rows = shape(model.recipe, SHOES, learning=False)

    answered = await two_workers(context, other_worker, gate, (lost, other), ask)
    assert {number: reply.error for number, reply in answered.items()} == dict.fromkeys((1, 2, 3, 4))
    # The second call found it live.
    assert (await shop.model(lost)).generation == 2
    assert context.queue.hlen(redis_keys.RESTORES) == 0


async def test_one_worker_repairs_a_damaged_model(
    shop: Workshop, context: WorkerContext, other_worker: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions of a second worker wait in the run queue until the first has repaired the model."""
    damaged, other = await shop.learned(), await shop.learned()
    models = {each: await shop.model(each) for each in (damaged, other)}
    shop.redis.delete(redis_keys.bundle(damaged))
    gate = Gate(restoring.repair)
    monkeypatch.setattr(restoring, "repair", gate)

    def ask(number: int, model_hash: str) -> None:
        model = models[model_hash]
        rows = shape(model.recipe, SHOES, learning=False)
        ask_about(context, number, model_hash, "predict", generation=model.generation, rows=rows)

    answered = await two_workers(context, other_worker, gate, (damaged, other), ask)
    # A repair begins a generation, so clients ask again.
    assert {number: reply.error and reply.error[0] for number, reply in answered.items()} == {
        1: "StaleModelError", 2: "StaleModelError", 3: "StaleModelError", 4: None,
    }  # fmt: skip
    assert (gate.calls, (await shop.model(damaged)).generation) == (1, 2)


async def test_rows_wait_for_the_repair_of_another_worker(
    shop: Workshop, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that learns does not repair what another one does, and learns the rows once that is done."""
    model_hash = await shop.learned()
    await shop.accept(model_hash)
    shop.redis.delete(redis_keys.bundle(model_hash))
    context.queue.zadd(redis_keys.LEASES, {FIRST: 9e12})
    assert run_queue.mark_restores(context.queue, FIRST, [model_hash]) == [model_hash]
    with monkeypatch.context() as patch:
        patch.setattr(restoring.repairs, "repair", None)
        assert await asyncio.to_thread(learn, context, model_hash, SECOND)
    assert not shop.redis.exists(redis_keys.lock(model_hash))

    context.queue.zadd(redis_keys.LEASES, {SECOND: 9e12})
    redis_scripts.run(context.queue, run_queue.push(LEARN, SECOND, TTL_S, [model_hash]))
    assert claim(context, SECOND, LEARN) == []

    # The mark of a lease that has ended is none.
    context.queue.zrem(redis_keys.LEASES, FIRST)
    assert claim(context, SECOND, LEARN) == [model_hash.encode()]
    assert await asyncio.to_thread(learn, context, model_hash, SECOND)
    assert not await asyncio.to_thread(learn, context, model_hash, SECOND)
    assert (await shop.model(model_hash)).inbox == 0
