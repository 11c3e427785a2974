"""The loops of a gateway that try again while a server is unavailable."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import pytest
import structlog
from pydantic import SecretStr

from keepfit.backends import redis_clients
from keepfit.backends.backoff import Backoff
from keepfit.jobs import run_queue
from keepfit.local.servers import free_port
from keepfit.settings import Settings
from keepfit.store.models import Store
from keepfit_gateway.job_enqueuer import JobEnqueuer
from keepfit_gateway.learning.commit_feed import CommitFeed
from keepfit_gateway.worker_client import WorkerClient

Loop = Callable[[], Awaitable[None]]


class EndedError(Exception):
    """Enough pauses were recorded."""


@pytest.fixture
async def loops(settings: Settings) -> AsyncIterator[dict[str, Loop]]:
    """Return the loops, with a Redis that refuses connections."""
    away = SecretStr(f"redis://127.0.0.1:{free_port()}")
    settings = settings.model_copy(update={"store_url": away, "queue_url": None, "lease_ttl_s": math.inf})
    client = redis_clients.store_async(settings, prompt=True)
    store, enqueuer = Store(client), JobEnqueuer(settings)
    observer = SimpleNamespace(invalidate_all=lambda: None)
    yield {
        "replies": WorkerClient(client, settings, enqueuer, store.ping).read_forever,
        "commits": CommitFeed(client, store, lambda _: None, observer, 1.0).read_forever,  # type: ignore[arg-type]
        "leases": lambda: enqueuer._enqueue(run_queue.PREDICT, "lease"),
    }
    await client.aclose()
    await enqueuer.close()


@pytest.mark.parametrize("name", ["replies", "commits", "leases"])
async def test_pauses_grow_and_one_line_is_logged(
    loops: dict[str, Loop], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """While Redis is unavailable, pauses between attempts grow to half a second; the log says once what fails."""
    pauses: list[float] = []
    next_s = Backoff.next_s

    def noted(backoff: Backoff) -> float:
        if len(pauses) == 12:
            raise EndedError
        pauses.append(next_s(backoff))
        return 0

    monkeypatch.setattr(Backoff, "next_s", noted)
    with structlog.testing.capture_logs() as logged, pytest.raises(EndedError):
        await loops[name]()
    assert pauses[0] <= 0.2
    assert 0.25 <= min(pauses[6:]) <= max(pauses) <= 0.5
    assert [line["event"] for line in logged] == ["dependency_unavailable"]
