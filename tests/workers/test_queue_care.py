"""One of several servers of the queue is away: what its workers hold in the store is renewed and released."""

import pytest
from pydantic import SecretStr

from keepfit.backends import redis_clients, redis_keys
from keepfit.errors import UnavailableError
from keepfit.local.servers import free_port
from keepfit.settings import Settings
from keepfit_workers.activity import Doing
from keepfit_workers.context import WorkerContext
from keepfit_workers.heartbeat import Beat
from keepfit_workers.queue_care import QueueCare
from keepfit_workers.sweep import Death

DEAD, ALIVE = "a" * 64, "b" * 64


@pytest.fixture
def away(settings: Settings) -> Settings:
    """Return settings of a server of the queue that does not run."""
    return settings.model_copy(update={"queue_url": SecretStr(f"redis://127.0.0.1:{free_port()}/0")})


def test_locks_are_renewed_and_released_while_the_server_is_away(context: WorkerContext, away: Settings) -> None:
    """A living worker keeps its model; that of a dead one is free at once, and its death is reaped later."""
    care = QueueCare(away, is_alone=False)
    care.probe()
    assert not care.is_up
    for model_hash in (DEAD, ALIVE):
        context.store.set(redis_keys.lock(model_hash), "lease", px=1_000)
    care.dead.append(Death("worker", doing=Doing("lease", locked=DEAD, locked_by="lease")))
    queue = care.client()
    beats = [Beat("other", Doing("lease", locked=ALIVE, locked_by="lease"))]
    care.beat_if_due(context.store, queue, lambda now_s: beats)
    care.release_locks(context.store)
    assert not context.store.exists(redis_keys.lock(DEAD))
    assert context.store.pttl(redis_keys.lock(ALIVE)) > 1_000
    assert len(care.dead) == 1
    with pytest.raises(UnavailableError):
        care.reap(context.store, queue, {}, lambda: None)


def test_a_server_alone_is_not_probed(away: Settings) -> None:
    """Its outage is noticed by what fails, as without several servers."""
    care = QueueCare(away, is_alone=True)
    care.probe()
    assert care.is_up


def test_a_turn_ends_if_its_server_is_away(
    context: WorkerContext, away: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is released instead of kept until it expires: another server may have the model's next rows."""
    with redis_clients.queue_sync(away) as queue:
        monkeypatch.setattr(context, "queue", queue)
        assert context.has_waiting_work()


def test_a_server_alone_gets_the_models_with_pending_requests(context: WorkerContext, settings: Settings) -> None:
    """Its sweep finds a model whose hint was lost."""
    context.store.hset(redis_keys.state(ALIVE), mapping={"accepted": 1, "learned": 0})
    assert QueueCare(settings, is_alone=True).sweep_if_due(context.store, context.queue, lambda: None)
    assert context.queue.lrange(redis_keys.queued_models("learn"), 0, -1) == [ALIVE.encode()]
