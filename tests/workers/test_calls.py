"""The time that a call may take, and what the death of a worker says about its requests."""

import asyncio
import multiprocessing as mp
import time

import pytest

from keepfit.backends import redis_clients
from keepfit.settings import Settings
from keepfit.store.commit import Harm
from keepfit_workers import heartbeat, resources
from keepfit_workers.activity import BATCH, CALL, LOAD, RESTORE, Activity
from keepfit_workers.queue_care import QueueCare
from keepfit_workers.resources import LazyResources
from keepfit_workers.supervisor import EARLY_DEATH_S, LATE_S, Child

HASH = "a" * 64


@pytest.fixture
def child() -> Child:
    """Return a worker that has not been started."""
    care = QueueCare(Settings(), is_alone=True)
    return Child("worker", 0, mp.get_context("fork").Process(), Activity(), care)


def silent_s(child: Child, *passed_s: float) -> float:
    """Return for how long a worker has been silent, if it is looked at so many seconds after the call began."""
    since_s = child.activity.read().since_s
    return [child.silent_s(since_s + passed) for passed in passed_s][-1]


def test_a_call_is_timed_from_its_begin(child: Child) -> None:
    """Each call has its own time, also if no one looked at the worker between two; between calls there is none."""
    assert silent_s(child, 1.0) == 0.0
    child.activity.begin(CALL, HASH)
    assert silent_s(child, *map(float, range(1, 101))) == pytest.approx(100)
    child.activity.begin(CALL, HASH)
    assert silent_s(child, 5.0) == pytest.approx(5)
    child.activity.end()
    assert silent_s(child, 6.0) == 0.0


def test_the_time_of_a_stopped_worker_does_not_count(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that a signal has stopped cannot end its call; once it runs again, its time goes on."""
    child.activity.begin(CALL, HASH)
    assert silent_s(child, 1.0, 2.0) == pytest.approx(2)
    monkeypatch.setattr(heartbeat, "is_stopped", lambda pid: True)
    assert silent_s(child, *map(float, range(3, 1000))) == pytest.approx(2)
    monkeypatch.undo()
    assert silent_s(child, 1000.0) == pytest.approx(3)


def test_the_time_of_a_stopped_machine_does_not_count(child: Child) -> None:
    """A supervisor that looks too late has been stopped itself, and its workers with it."""
    child.activity.begin(CALL, HASH)
    assert silent_s(child, 1.0, 1000.0) == pytest.approx(1 + LATE_S)


def test_only_a_worker_that_did_nothing_failed_to_start(child: Child) -> None:
    """A worker that dies at once is replaced after a pause, unless it had begun work: the work may be the cause."""
    assert child.failed_to_start(child.started_s + EARLY_DEATH_S / 2)
    assert not child.failed_to_start(child.started_s + EARLY_DEATH_S)
    with child.activity.holding_lease("a lease"):
        assert not child.failed_to_start(child.started_s)
        child.activity.begin(BATCH)
    assert not child.failed_to_start(child.started_s)


def test_a_restore_that_goes_on_is_not_silent(
    child: Child, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its event loop runs a restore shows progress; the record keeps the moment at which it began."""
    monkeypatch.setattr(resources, "PROGRESS_S", 0.001)
    monkeypatch.setattr(LazyResources, "_open", lambda self: None)
    opened = LazyResources(settings, redis_clients.store_sync(settings), child.activity)

    async def restore(restorer: object) -> tuple[float, float]:
        doing = began = child.activity.read()
        while doing.progress_s <= began.since_s:
            await asyncio.sleep(0.001)
            doing = child.activity.read()
        assert (doing.step, doing.since_s) == (RESTORE, began.since_s)
        now_s = time.monotonic()
        return doing.silent_s(now_s), doing.call_s(now_s)

    silent, whole = opened.run(restore)
    opened.close()
    assert silent < whole
    assert child.activity.read().step == BATCH


@pytest.mark.parametrize(
    ("step", "model", "harm"),
    [
        (CALL, HASH, Harm.DEATH),
        (BATCH, "", Harm.DEATH),
        (LOAD, HASH, None),
        # A repair of the bundle of this model, and a restore of models that Redis lost.
        (RESTORE, HASH, None),
        (RESTORE, "", Harm.DEATH),
    ],
)
def test_requests_that_were_not_tried_have_killed_no_worker(
    child: Child, step: str, model: str, harm: Harm | None
) -> None:
    """The death of a worker counts for the requests that it was learning or answering, a death before that does not."""
    with child.activity.holding_lease("lease"):
        child.activity.begin(step, model)
        assert child.death(-9).harm_of_requests is harm
        child.is_overdue = True
        assert child.death(-9).harm_of_requests is (harm and Harm.TIME)
        assert child.death(0).harm_of_requests is None
