"""Accepting learning requests: all that come during one trip to Redis are accepted by the next.

Owns who waits for which outcome, and telling the learn room. Invariant: a request is answered only after Redis has it,
and the row log where there is one (:mod:`keepfit_gateway.learning.recorder`); the learn room is told in nobody's time,
because a hint that is lost is only late (the workers' sweep).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
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
from keepfit.store import inbox
from keepfit.store.inbox import Accepted, Learn
from keepfit_gateway.job_enqueuer import JobEnqueuer
from keepfit_gateway.learning.recorder import Recorder

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Learn
    outcome: asyncio.Future[Accepted]


def _settle(waiting: _Waiting, outcome: inbox.Outcome) -> None:
    if waiting.outcome.done():
        return
    if isinstance(outcome, Accepted):
        waiting.outcome.set_result(outcome)
    else:
        waiting.outcome.set_exception(outcome)


def _recorded(accepted: list[tuple[_Waiting, inbox.Outcome]], error: KeepfitError | None) -> None:
    """Tell those whose requests one call accepted what came of it in the row log."""
    for waiting, outcome in accepted:
        _settle(waiting, error or outcome)


class Acceptor:
    """One gateway's way into the inboxes; what it accepts goes to a `recorder` too, where there is one."""

    def __init__(
        self,
        store: redis.asyncio.Redis,
        queue: redis.asyncio.Redis,
        settings: Settings,
        enqueuer: JobEnqueuer,
        recorder: Recorder | None = None,
    ) -> None:
        self._store = store
        self._store_line = ScriptConnection(store)
        self._queue_line = ScriptConnection(queue)
        self._settings = settings
        self._enqueuer = enqueuer
        self._recorder = recorder
        self._requests = Batcher(self._accept)
        self._hints = Batcher(self._tell)
        self._lease = run_queue.new_lease()
        self._outage = Outage("queue", "workers hear late of what there is to learn")

    async def accept(self, model_hash: str, generation: int, rows: Rows, key: str | None) -> Accepted:
        """Accept rows, shaped for the model at `generation`, for good; `key` is the client's Idempotency-Key.

        Raises
        ------
        NotFoundError, StaleModelError
            If the model is not (or no longer) the one that the request was shaped for.
        IdempotencyError
            If its key came before with other rows.
        InboxFullError, InvalidError, UnavailableError
            If too much waits, the rows have another width than the model's, Redis is away.
        """
        # Before it takes its place among the others, who shall not wait for it.
        request = inbox.small_request(model_hash, generation, rows, key)
        if request is None:
            logged = self._recorder is not None
            request = await inbox.request(self._store, model_hash, generation, rows, key, logged=logged)
        del rows
        return await self._accepted(request)

    async def accept_change(
        self, model_hash: str, generation: int, params: Mapping[str, Any], key: str | None
    ) -> Accepted:
        """Accept a change of parameters, checked for the model at `generation`, for good; errors as in `accept`."""
        return await self._accepted(inbox.change(model_hash, generation, params, key))

    def _accepted(self, request: Learn) -> asyncio.Future[Accepted]:
        outcome: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._requests.put(_Waiting(request, outcome))
        return outcome

    def tell(self, model_hash: str) -> None:
        """Tell the learn room that a model has mail which did not come this way."""
        self._hints.put(model_hash)

    @property
    def waiting(self) -> int:
        """Requests that came during the trip under way, and go with the next."""
        return len(self._requests)

    async def _accept(self, batch: list[_Waiting]) -> None:
        alone: list[str] = []
        logged: list[tuple[Call, list[int]]] = []
        outcomes: list[inbox.Outcome] | list[UnavailableError] | list[KeepfitError]
        requests = [waiting.request for waiting in batch]
        failpoints.reach("accept.begun")
        try:
            if self._recorder is None:
                outcomes, alone = await inbox.put(self._store_line, self._settings, requests)
            else:
                # A client without a key that heard of no log and sent again and again would be learned as often.
                await self._recorder.check()
                outcomes, alone, logged = await inbox.put_to_log(self._store_line, self._settings, requests)
        except UnavailableError as away:
            outcomes = [away] * len(batch)
        except Exception:
            log.exception("accepting_crashed")
            outcomes = [KeepfitError("The request could not be accepted; the gateway's log has the details.")] * len(
                batch
            )
        failpoints.reach("accept.done")
        if self._recorder is not None:
            for call, positions in logged:
                self._recorder.put(call, partial(_recorded, [(batch[i], outcomes[i]) for i in positions]))
            later = {i for _, positions in logged for i in positions}
            batch = [waiting for i, waiting in enumerate(batch) if i not in later]
            outcomes = [outcome for i, outcome in enumerate(outcomes) if i not in later]
        for waiting, outcome in zip(batch, outcomes, strict=True):
            _settle(waiting, outcome)
        for model_hash in alone:
            self._hints.put(model_hash)

    async def _tell(self, models: list[str]) -> None:
        failpoints.reach("hint.begun")
        # The name of a lease is kept until it is rung for: one that was registered by a push whose answer was lost is
        # found again by the next, and does not stand empty until its deadline.
        lease = self._lease
        try:
            push = run_queue.push(run_queue.LEARN, lease, self._settings.lease_ttl_s, dict.fromkeys(models))
            ((rang, *_),) = await self._queue_line.run(push)
        except UnavailableError as error:
            self._outage.begin(error)
            return
        except Exception:
            log.exception("telling_crashed")
            return
        self._outage.end()
        if rang:
            failpoints.reach("hint.pushed")
            self._lease = run_queue.new_lease()
            self._enqueuer.enqueue(run_queue.LEARN, lease)

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._requests.close()
        if self._recorder is not None:
            await self._recorder.close()
        await self._hints.close()
        await self._store_line.close()
        await self._queue_line.close()
