"""Hints for the learn queue of one queue server: models that have pending requests.

Owns the pushes into that run queue, and the look whether a lease has come to them. Never accepts a request. Invariant:
no request waits for a hint, because a lost one only delays work until the workers' next sweep.
"""

import asyncio
from collections.abc import Callable

import redis.asyncio
import structlog

from keepfit.backends.batcher import Batcher
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import UnavailableError
from keepfit.jobs import run_queue
from keepfit.observability import failpoints
from keepfit.observability.outage import Outage
from keepfit.settings import Settings
from keepfit_gateway.job_enqueuer import JobEnqueuer

log = structlog.get_logger(__name__)

# So long after a hint, another push finds whether a lease has come to it: one timer for all.
LOOK_AGAIN_S = 0.07


class LearnHints:
    """The hints of one gateway for one server; `on_lost` gets those that it did not take."""

    def __init__(
        self,
        queue: redis.asyncio.Redis,
        settings: Settings,
        enqueuer: JobEnqueuer,
        on_lost: Callable[[list[str]], None] = lambda models: None,
    ) -> None:
        self._connection = ScriptConnection(queue)
        self._settings = settings
        self._enqueuer = enqueuer
        self._on_lost = on_lost
        # None only looks whether one more lease is needed.
        self._hints: Batcher[str | None] = Batcher(self._push)
        self._look_again: asyncio.TimerHandle | None = None
        self._lease = run_queue.new_lease()
        self._outage = Outage("queue", "workers are notified late of pending requests")

    def put(self, model_hash: str) -> None:
        """Notify the learn queue of a model that has pending requests."""
        self._hints.put(model_hash)

    async def _push(self, items: list[str | None]) -> None:
        """Push models into the learn queue, and enqueue a lease if none drains it, or not in time."""
        failpoints.reach("hint.begun")
        # The name of the lease changes only after its job is enqueued. If the answer of a push that registered the
        # lease is lost, the next push finds the same lease, and none stays registered without a job until its deadline.
        lease, models = self._lease, [model_hash for model_hash in dict.fromkeys(items) if model_hash is not None]
        if models and self._look_again is None:
            self._look_again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look)
        try:
            push = run_queue.push(run_queue.LEARN, lease, self._settings.lease_ttl_s, models)
            ((registered, *_),) = await self._connection.run(push)
        except UnavailableError as error:
            self._outage.begin(error)
            self._on_lost(models)
            return
        except Exception:
            log.exception("run_queue_push_failed")
            return
        self._outage.end()
        if registered:
            failpoints.reach("hint.pushed")
            self._lease = run_queue.new_lease()
            self._enqueuer.enqueue(run_queue.LEARN, lease)

    def _look(self) -> None:
        self._look_again = None
        self._hints.put(None)

    async def close(self) -> None:
        """Finish the current round trip and close the connection."""
        if self._look_again is not None:
            self._look_again.cancel()
        await self._hints.close()
        await self._connection.close()
