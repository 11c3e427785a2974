"""Accepting learning requests: all requests that arrive during one round trip to Redis go with the next one.

Owns the futures of requests that are being accepted, and says which models have some
(:mod:`keepfit_gateway.learning.hints`). Invariant: a request is answered only after it is in Redis, and in the row log
if there is one (:mod:`keepfit_gateway.learning.recorder`).
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import redis.asyncio
import structlog

from keepfit.backends.batcher import Batcher
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.observability import failpoints
from keepfit.rowlog.row_log import Call
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import inbox, staging
from keepfit.store.inbox import Accepted, LearnRequest
from keepfit.store.models import Model
from keepfit_gateway.learning.recorder import Recorder
from keepfit_gateway.learning.waiters import Waiter, put

log = structlog.get_logger(__name__)

RequestWaiter = Waiter[LearnRequest, Accepted]


def _resolve_recorded(accepted: list[tuple[RequestWaiter, inbox.Outcome]], error: KeepfitError | None) -> None:
    """Resolve the requests of one call after the row log stored it, or failed with `error`."""
    for waiter, outcome in accepted:
        waiter.resolve(error or outcome)


class Acceptor:
    """Writes the requests of one gateway into inboxes, and into the row log if there is a `recorder`.

    `notify` notifies the learn queue that a model has pending requests.
    """

    def __init__(
        self,
        store: redis.asyncio.Redis,
        settings: Settings,
        notify: Callable[[str], None],
        recorder: Recorder | None = None,
    ) -> None:
        self._store = store
        self._store_connection = ScriptConnection(store)
        self._settings = settings
        self.notify = notify
        self._recorder = recorder
        self._requests: Batcher[RequestWaiter] = Batcher(self._accept)

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
            self.notify(model_hash)

    async def close(self) -> None:
        """Finish the current round trips and close the connections."""
        await self._requests.close()
        if self._recorder is not None:
            await self._recorder.close()
        await self._store_connection.close()
