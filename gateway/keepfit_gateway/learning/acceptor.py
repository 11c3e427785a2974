"""Accepting learning requests: all requests that arrive during one round trip to Redis go with the next one.

Owns the futures of requests that are being accepted, and notifies the learn queue. Invariant: a request is answered
only after it is in Redis, and in the row log if there is one (:mod:`keepfit_gateway.learning.recorder`). The run-queue
push is asynchronous: no request waits for it, because a lost hint only delays work until the workers' next sweep.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import redis.asyncio
import structlog

from keepfit.backends.batcher import Batcher
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.jobs import run_queue
from keepfit.observability import failpoints
from keepfit.observability.outage import Outage
from keepfit.rowlog.row_log import Call
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import inbox, staging
from keepfit.store.inbox import Accepted, LearnRequest
from keepfit.store.models import Model
from keepfit_gateway.job_enqueuer import JobEnqueuer
from keepfit_gateway.learning.recorder import Recorder
from keepfit_gateway.learning.waiters import Waiter, put

log = structlog.get_logger(__name__)

# So long after a hint, another push finds whether a lease has come to it: one timer for all.
LOOK_AGAIN_S = 0.07

RequestWaiter = Waiter[LearnRequest, Accepted]


def _resolve_recorded(accepted: list[tuple[RequestWaiter, inbox.Outcome]], error: KeepfitError | None) -> None:
    """Resolve the requests of one call after the row log stored it, or failed with `error`."""
    for waiter, outcome in accepted:
        waiter.resolve(error or outcome)


class Acceptor:
    """Writes the requests of one gateway into inboxes, and into the row log if there is a `recorder`."""

    def __init__(
        self,
        store: redis.asyncio.Redis,
        queue: redis.asyncio.Redis,
        settings: Settings,
        enqueuer: JobEnqueuer,
        recorder: Recorder | None = None,
    ) -> None:
        self._store = store
        self._store_connection = ScriptConnection(store)
        self._queue_connection = ScriptConnection(queue)
        self._settings = settings
        self._enqueuer = enqueuer
        self._recorder = recorder
        self._requests: Batcher[RequestWaiter] = Batcher(self._accept)
        # None only looks whether one more lease is needed.
        self._hints: Batcher[str | None] = Batcher(self._push)
        self._look_again: asyncio.TimerHandle | None = None
        self._lease = run_queue.new_lease()
        self._outage = Outage("queue", "workers are notified late of pending requests")

    async def accept(self, model: Model, rows: Rows, key: str | None) -> Accepted:
        """Accept rows, shaped for `model`, durably; `key` is the client's Idempotency-Key.

        Raises
        ------
        NotFoundError, StaleModelError
            If the model was deleted or has another generation by now.
        IdempotencyError
            If the key was used before with other rows.
        InboxFullError
            If too many requests are pending.
        InvalidError
            If the rows have another width than the model's.
        TooLargeError
            If the rows, as float64 numbers and text, have more bytes than a body may have.
        UnavailableError
            If Redis or the row log is unavailable.
        """
        width = inbox.width_of(model.recipe, rows)
        request = inbox.make_small_request(model.hash, model.generation, rows, key, width=width)
        if request is None:
            return await self._accept_large(model, rows, key, width)
        return await put(self._requests, request)

    async def _accept_large(self, model: Model, rows: Rows, key: str | None, width: int) -> Accepted:
        """Accept rows that are staged first, so that the requests of the batch do not wait for them."""
        logged, target = self._recorder is not None, (model.hash, model.generation)
        digest = "" if key is None else await asyncio.to_thread(staging.digest_of, rows)
        earlier = await inbox.ask(self._store, self._settings, *target, rows, key, width=width, digest=digest)
        # The row log may lack an earlier call.
        if earlier is not None and not logged:
            return earlier
        bytes_max = self._settings.body_bytes_max
        request = await inbox.make_request(
            self._store, *target, rows, key, width=width, logged=logged, bytes_max=bytes_max, digest=digest
        )
        del rows
        accepted = False
        try:
            answer = await put(self._requests, request)
            accepted = key is None
        finally:
            if not accepted:
                await staging.unstage(self._store, request.large_key)
        return answer

    async def accept_change(
        self, model_hash: str, generation: int, params: Mapping[str, Any], key: str | None
    ) -> Accepted:
        """Accept a change, checked for the model at `generation`, durably; raises as :meth:`accept`."""
        return await put(self._requests, inbox.make_change(model_hash, generation, params, key))

    def notify(self, model_hash: str) -> None:
        """Notify the learn queue that a model has pending requests that this acceptor did not accept."""
        self._hints.put(model_hash)

    @property
    def pending(self) -> int:
        """Number of requests that arrived during the current round trip and go with the next one."""
        return len(self._requests)

    async def _accept(self, batch: list[RequestWaiter]) -> None:
        to_notify: list[str] = []
        logged: list[tuple[Call, list[int]]] = []
        outcomes: list[inbox.Outcome] | list[UnavailableError] | list[KeepfitError]
        requests = [waiter.request for waiter in batch]
        failpoints.reach("accept.begun")
        try:
            if self._recorder is None:
                outcomes, to_notify = await inbox.accept(self._store_connection, self._settings, requests)
            else:
                # Check first: a client without a key that is refused by the log and sends again would be learned twice.
                await self._recorder.check()
                outcomes, to_notify, logged = await inbox.accept_logged(
                    self._store_connection, self._settings, requests
                )
        except UnavailableError as unavailable:
            outcomes = [unavailable] * len(batch)
        except Exception:
            log.exception("accept_failed")
            error = KeepfitError("The request could not be accepted; the gateway's log has the details.")
            outcomes = [error] * len(batch)
        failpoints.reach("accept.done")
        if self._recorder is not None:
            for call, positions in logged:
                self._recorder.put(call, partial(_resolve_recorded, [(batch[i], outcomes[i]) for i in positions]))
            later = {i for _, positions in logged for i in positions}
            batch = [waiter for i, waiter in enumerate(batch) if i not in later]
            outcomes = [outcome for i, outcome in enumerate(outcomes) if i not in later]
        for waiter, outcome in zip(batch, outcomes, strict=True):
            waiter.resolve(outcome)
        for model_hash in to_notify:
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
            ((registered, *_),) = await self._queue_connection.run(push)
        except UnavailableError as error:
            self._outage.begin(error)
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
        """Finish the current round trips and close the connections."""
        if self._look_again is not None:
            self._look_again.cancel()
        await self._requests.close()
        if self._recorder is not None:
            await self._recorder.close()
        await self._hints.close()
        await self._store_connection.close()
        await self._queue_connection.close()
