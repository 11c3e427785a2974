"""The loop of a lease over both run queues, with work that a test counts."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import rq_jobs, run_queue
from keepfit.jobs.run_queue import LEARN, PREDICT
from keepfit_workers import lease
from keepfit_workers.context import WorkerContext
from keepfit_workers.lease import LEARN_PAUSE_QUESTIONS, LEARN_PAUSE_S, LEARN_S, Lease

TTL_S = 60.0
MODELS = tuple(f"{number:064x}" for number in range(12))


class Works:
    """Notes what a lease processes, in which order; each takes some time of a clock that only lingering moves, too."""

    def __init__(self, context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
        self.context = context
        self.now_s = 100.0
        self.done: list[str] = []
        self.seconds = {PREDICT.name: 0.0, LEARN.name: 0.0}
        self.after: Callable[[], None] = lambda: None
        monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        linger = self.linger = run_queue.linger

        def waste_time(woken: bytes, seconds: float) -> Command:
            self.now_s += seconds
            return linger(woken, 0.001)

        monkeypatch.setattr(run_queue, "linger", waste_time)

    def ask(self, model: str, count: int = 1) -> None:
        """Push questions."""
        entries = [run_queue.make_entry(model, 60, b"question") for _ in range(count)]
        self._push(run_queue.push(PREDICT, "lease", TTL_S, entries, 1000))

    def send(self, *models: str) -> None:
        """Push models with rows to learn."""
        self._push(run_queue.push(LEARN, "lease", TTL_S, models))

    def _push(self, command: Command) -> None:
        redis_scripts.run(self.context.queue, command)

    def drain(self) -> str:
        """Run the lease to its end; return what it processed: q for a round of questions, r for the rows of a model."""
        works = {queue.name: self._work(queue.name) for queue in run_queue.RUN_QUEUES}
        Lease(self.context, "lease", works).drain()
        return "".join(self.done)

    def _work(self, name: str) -> Callable[[Sequence[bytes]], Sequence[Command]]:
        def work(entries: Sequence[bytes]) -> Sequence[Command]:
            self.done.append("q" if name == PREDICT.name else "r")
            self.now_s += self.seconds[name]
            self.after()
            return ()

        return work


@pytest.fixture
def works(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> Works:
    """Return works for a lease of a worker, the only one."""
    context.queue.sadd(redis_keys.RQ_WORKERS, "one")
    return Works(context, monkeypatch)


def test_a_lease_serves_both_run_queues(works: Works, context: WorkerContext) -> None:
    """Questions first, then rows; it ends when both are empty, and leaves nothing registered."""
    works.send(*MODELS[:3])
    works.ask(MODELS[0])
    works.ask(MODELS[1])
    assert works.drain() == "qrrr"
    assert not context.queue.exists(redis_keys.LEASES, redis_keys.LEASE_HOLDERS)
    assert not rq_jobs.queue_of(context.queue).get_job_ids()


def test_work_that_comes_while_it_lingers_is_served(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work of either kind that comes after the claim which found none: the lease goes on, and does not end."""
    coming = [lambda: works.send(MODELS[0]), lambda: works.ask(MODELS[1]), lambda: works.send(MODELS[1])]

    def push_and_linger(woken: bytes, seconds: float) -> Command:
        if not coming:
            return works.linger(woken, 0.001)
        coming.pop(0)()
        return works.linger(woken, 60.0)

    monkeypatch.setattr(run_queue, "linger", push_and_linger)
    works.ask(MODELS[0])
    assert works.drain() == "qrqr"


def test_learning_is_done_in_slices(works: Works) -> None:
    """A slice ends after a while, if questions wait or not; with few questions the next one begins at once."""
    works.seconds[LEARN.name] = LEARN_S * 0.6
    works.send(*MODELS[:5])
    questions = [1, 1, 1]

    def ask() -> None:
        if questions and works.done[-1] == "r":
            works.ask(MODELS[0], questions.pop())

    works.after = ask
    assert works.drain() == "rrqrrqr"


def test_many_questions_get_most_of_the_time_and_learning_the_rest(works: Works) -> None:
    """Under a stream of questions that never ends, learning gets a slice after each pause."""
    works.seconds = {PREDICT.name: LEARN_PAUSE_S * 0.3, LEARN.name: LEARN_S * 1.1}
    works.send(*MODELS)
    works.ask(MODELS[0], LEARN_PAUSE_QUESTIONS)

    def ask() -> None:
        if works.done.count("r") < 4 and works.done[-1] == "q":
            works.ask(MODELS[0], LEARN_PAUSE_QUESTIONS)

    works.after = ask
    assert works.drain().startswith("qrqqqqrqqqqrqqqqr")


def test_late_work_that_a_claim_leaves_gets_another_lease(works: Works, context: WorkerContext) -> None:
    """Rows of several models that have waited too long: one more job, if there is a worker for it."""
    works.send(*MODELS[:3])
    context.queue.set(redis_keys.waiting_since(LEARN.name), 1)
    context.queue.sadd(redis_keys.RQ_WORKERS, "two")
    assert works.drain() == "rrr"
    (job,) = rq_jobs.queue_of(context.queue).get_job_ids()
    assert context.queue.zrange(redis_keys.LEASES, 0, -1) == [job.encode()]


def test_a_lease_that_hands_over_has_a_successor(works: Works, context: WorkerContext) -> None:
    """At the end of its time it leaves the rest to one lease, whichever kind of work is left."""
    for left in (LEARN, PREDICT):
        works.done.clear()
        works.ask(MODELS[0])

        def end(left: run_queue.RunQueue = left) -> None:
            works.now_s += context.settings.lease_slice_s + 1
            works.send(MODELS[0]) if left is LEARN else works.ask(MODELS[0])

        works.after = end
        assert works.drain() == "q"
        (job,) = rq_jobs.queue_of(context.queue).get_job_ids()
        assert context.queue.zrange(redis_keys.LEASES, 0, -1) == [job.encode()]
        context.queue.flushdb()
