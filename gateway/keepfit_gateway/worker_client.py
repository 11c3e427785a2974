"""Sends worker requests through the predict queue and receives the replies on a list of this gateway's own.

Owns the futures of pending worker requests. Never polls: one blocking read returns every reply there is. Invariant: a
worker request ends with a reply, an error or its deadline; a reply without a pending request is dropped.
"""

import asyncio
import itertools
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import msgspec
import redis.asyncio
import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.backoff import Backoff
from keepfit.backends.batcher import Batcher
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import DeadlineError, KeepfitError, QueueFullError, UnavailableError, without_frames
from keepfit.jobs import messages, run_queue, worker_records
from keepfit.jobs.messages import (
    CurveOptions,
    DownloadOptions,
    Operation,
    PastVersion,
    RestoreOptions,
    UploadOptions,
    WorkerReply,
    WorkerRequest,
)
from keepfit.observability import request_id
from keepfit.observability.outage import Outage
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import staging
from keepfit_gateway.job_enqueuer import JobEnqueuer
from keepfit_gateway.reminders import Reminders
from keepfit_gateway.reply_rate import ReplyRate

log = structlog.get_logger(__name__)

# Shorter than the time in which a Redis must answer (`keepfit.backends.redis_clients`).
READ_BLOCK_S = 1
# Elements of the list, each of which has up to 32 MiB: they are in memory at the same time.
READ_COUNT = 8
# Not longer, because requests that take an earlier answer meanwhile get that instead of the current one.
RECONNECT_PAUSE_S, RECONNECT_PAUSE_S_MAX = 0.2, 0.5
# A dead worker is replaced within a second, or a few seconds on a busy machine. If two probes this far apart find no
# worker, none is coming.
WORKER_GRACE_S = 2.0
# A working Redis answers within this time, also while it syncs a large bundle.
PROBE_TIMEOUT_S = 5.0
# Larger rows are written to a key of their own, in pieces, so that Redis serves other clients in between.
INLINE_ROWS_MAX = 64 * 1024
RETRY_AFTER_S_MAX = 60
# After a failure that was at most this long ago, or during trials with this pause, workers count as away.
AWAY_S, TRIAL_PAUSE_S = 1.0, 0.5
# A request that ended earlier says nothing about the workers.
DEADLINE_S_MIN = 1.0
# The results of these operations are JSON text, which may be large.
PASSED_ON = ("predict", "proba", "past", "curve")


class Workers(NamedTuple):
    """Numbers of worker processes: `alive`, and among these `busy`, in a call longer than the time of a prediction."""

    alive: int
    busy: int


class PendingRequest:
    """A worker request without a reply, and the future of its caller."""

    __slots__ = ("created_s", "future", "request", "sent", "timeout_s", "timer", "without_worker")

    def __init__(self, request: WorkerRequest, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.timeout_s = timeout_s
        self.created_s = loop.time()
        self.future: asyncio.Future[WorkerReply] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.sent = False
        self.without_worker = False

    def left_s(self, now_s: float) -> float:
        """Return the seconds until the deadline, by the clock of the event loop."""
        return self.created_s + self.timeout_s - now_s

    def fail(self, error: KeepfitError) -> None:
        """End the wait with an error."""
        if not self.future.done():
            # Other requests may get the same error.
            self.future.set_exception(without_frames(error))


class WorkerClient:
    """The side of one gateway of the predict queue."""

    def __init__(
        self,
        queue: redis.asyncio.Redis,
        settings: Settings,
        enqueuer: JobEnqueuer,
        ping_store: Callable[[], Awaitable[None]],
        on_away: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue = queue
        self._connection = ScriptConnection(queue)
        self._settings = settings
        self._enqueuer = enqueuer
        self._name = uuid.uuid4().hex
        self._ids = itertools.count(1)
        self._pending: dict[int, PendingRequest] = {}
        # None only looks whether one more lease is needed.
        self._requests: Batcher[PendingRequest | None] = Batcher(self._push)
        self._reminders = Reminders(self._pending, partial(self._requests.put, None))
        self._ping_store, self._on_away = ping_store, on_away
        self._probe: asyncio.Task[int] | None = None
        self._checks: set[asyncio.Task[None]] = set()
        self._lease = run_queue.new_lease()
        self._outage = Outage("queue", "no replies come from workers")
        self._rate = ReplyRate()
        self._failure: UnavailableError | DeadlineError | None = None
        self._failed_s = self._replied_s = -math.inf
        self._trials: asyncio.Task[None] | None = None

    async def ask(
        self,
        model_hash: str,
        operation: Operation,
        generation: int = 0,
        rows: Rows | None = None,
        timeout_s: float | None = None,
        restore: RestoreOptions | None = None,
        scorer_bytes_max: int = 0,
        upload: UploadOptions | None = None,
        download: DownloadOptions | None = None,
        past: PastVersion | None = None,
        curve: CurveOptions | None = None,
    ) -> WorkerReply:
        """Send a worker request and return the reply. Raise the error that the worker reports.

        The result of a prediction or a curve is JSON text, as bytes. A scorer may have `scorer_bytes_max`; 0: none.

        Raises
        ------
        QueueFullError
            If the maximum number of worker requests is pending.
        TooLargeError
            If the rows have more bytes than a body may have.
        DeadlineError, UnavailableError
            If no reply came within `timeout_s` seconds (by default the setting's); the latter if no worker is alive.
        """
        if len(self._pending) >= self._settings.predict_entries_max:
            raise self._full(len(self._pending))
        loop = asyncio.get_running_loop()
        timeout_s = self._settings.predict_timeout_s if timeout_s is None else timeout_s
        large = rows is not None and not rows.fits(INLINE_ROWS_MAX)
        if large and rows is not None:
            rows.check_size(self._settings.body_bytes_max)
        key = redis_keys.request_rows(uuid.uuid4().hex) if large else ""
        request = WorkerRequest(
            next(self._ids),
            self._name,
            model_hash,
            operation,
            generation,
            rows=None if large else rows,
            rows_key=key,
            request_id=request_id.sent.get(),
            restore_options=restore,
            as_json=operation in PASSED_ON,
            scorer_bytes_max=scorer_bytes_max,
            upload_options=upload,
            download_options=download,
            past=past,
            curve=curve,
        )
        pending = self._pending[request.id] = PendingRequest(request, timeout_s, loop)
        pending.timer = loop.call_later(min(WORKER_GRACE_S, timeout_s), self._start_check, pending)
        try:
            if large and rows is not None:
                ttl_s = timeout_s + self._settings.body_timeout_s
                await staging.write_in_pieces(self._queue, key, rows, round(ttl_s * 1000))
                del rows
            pending.sent = True
            self._requests.put(pending)
            reply = await self._result(pending)
            # The worker has deleted the rows.
            key = ""
        finally:
            pending.timer.cancel()
            del self._pending[request.id]
            if key:
                await self._delete_rows(key)
        return reply

    async def _delete_rows(self, key: str) -> None:
        # If Redis is unavailable, they expire.
        with suppress(UnavailableError):
            await redis_scripts.run_async(self._queue, ("UNLINK", key))

    async def _result(self, pending: PendingRequest) -> WorkerReply:
        """Wait for a reply; raise its error. Note a failure that says that no worker can answer."""
        try:
            reply = await pending.future
            reply.raise_error()
        except (UnavailableError, DeadlineError) as error:
            now_s = asyncio.get_running_loop().time()
            silent = self._replied_s < pending.created_s and now_s >= pending.created_s + DEADLINE_S_MIN
            if silent or isinstance(error, UnavailableError):
                self._failure, self._failed_s = error, now_s
            raise
        return reply

    @property
    def away(self) -> UnavailableError | DeadlineError | None:
        """The error that a request would end with by all that is known; None if workers may answer it."""
        if self._failure is None:
            return None
        trying = self._trials is not None and not self._trials.done()
        return self._failure if trying or asyncio.get_running_loop().time() < self._failed_s + AWAY_S else None

    def ask_until_back(self, model_hash: str, operation: Operation, generation: int, rows: Rows) -> None:
        """While workers are away, ask for the prediction of the first row again and again, until one answers."""
        if self.away is not None and (self._trials is None or self._trials.done()):
            row = rows.part(0, 1)
            self._trials = asyncio.create_task(self._try_until_back(model_hash, operation, generation, row))

    async def _try_until_back(self, model_hash: str, operation: Operation, generation: int, row: Rows) -> None:
        while self._failure is not None:
            with suppress(KeepfitError):
                await self.ask(model_hash, operation, generation, row)
            if self._failure is not None:
                await asyncio.sleep(TRIAL_PAUSE_S)

    async def _push(self, items: list[PendingRequest | None]) -> None:
        """Push a batch of worker requests to the predict queue."""
        # Reused until its job is enqueued: see `keepfit_gateway.learning.acceptor`.
        lease, now_s = self._lease, asyncio.get_running_loop().time()
        batch = [pending for pending in items if pending is not None and not pending.future.done()]
        entries = [
            run_queue.make_entry(p.request.subject, max(p.left_s(now_s), 0), messages.encode(p.request)) for p in batch
        ]
        settings = self._settings
        push = run_queue.push(run_queue.PREDICT, lease, settings.lease_ttl_s, entries, settings.predict_entries_max)
        try:
            ((needs_job, *refused),) = await self._connection.run(push)
        except UnavailableError as error:
            for pending in batch:
                pending.fail(error)
            return
        except Exception:
            log.exception("ask_failed")
            for pending in batch:
                pending.fail(KeepfitError("The worker request could not be sent; the gateway's log has the details."))
            return
        if needs_job:
            self._lease = run_queue.new_lease()
            self._enqueuer.enqueue(run_queue.PREDICT, lease)
        for number in refused:
            batch[number - 1].fail(self._full(settings.predict_entries_max))
        if batch:
            self._reminders.add([pending.request.id for pending in batch])

    def _full(self, pending: int) -> QueueFullError:
        """Return the error of a full queue. Its retry time is the time in which half of the requests are answered."""
        rate_per_s = self._rate.per_s(time.monotonic())
        seconds = math.ceil(pending / 2 / rate_per_s) if rate_per_s else 1
        return QueueFullError(
            f"{pending} requests wait for an answer; retry when some are answered.",
            min(max(seconds, 1), RETRY_AFTER_S_MAX),
        )

    def _start_check(self, pending: PendingRequest) -> None:
        """Start a check of a request that has waited for a while."""
        check = asyncio.create_task(self._check(pending))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)

    async def _check(self, pending: PendingRequest) -> None:
        """Fail a request if no worker is alive or its deadline is over. Otherwise set the next timer."""
        loop = asyncio.get_running_loop()
        try:
            alive = await self._probe_shared()
        except UnavailableError as error:
            return pending.fail(error)
        left_s = pending.left_s(loop.time())
        if not alive and (pending.without_worker or left_s <= 0):
            return pending.fail(UnavailableError("No worker is alive: start some with `keepfit worker`."))
        if not alive:
            pending.without_worker = True
            pending.timer = loop.call_later(min(WORKER_GRACE_S, left_s), self._start_check, pending)
            return None
        late = DeadlineError(f"No answer came within {round(pending.timeout_s, 3):g} s; the workers are overloaded.")
        if left_s > 0:
            pending.timer = loop.call_later(left_s, pending.fail, late)
        else:
            pending.fail(late)
        return None

    async def _probe_shared(self) -> int:
        """Return the number of workers alive. Concurrent callers share one probe; raise UnavailableError as it does."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._probe_servers())
        return await asyncio.shield(self._probe)

    async def _probe_servers(self) -> int:
        """Count the workers alive, and check that both Redis servers answer."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                workers, _ = await asyncio.gather(self.workers(), self._ping_store())
        except TimeoutError:
            raise UnavailableError(f"Redis is unavailable: it did not answer for {PROBE_TIMEOUT_S:g} s.") from None
        return workers.alive

    @property
    def pending(self) -> int:
        """Number of worker requests without a reply."""
        return len(self._pending)

    async def workers(self) -> Workers:
        """Count the workers that RQ knows and whose record exists: a record expires without heartbeats."""
        found = await self.worker_records()
        return Workers(len(found), sum(worker.state == "long_call" for worker in found))

    async def worker_records(self) -> list[worker_records.WorkerRecord]:
        """Return the record of each worker alive."""
        return await worker_records.read_all(self._queue, self._settings.predict_timeout_s)

    async def read_forever(self) -> None:
        """Deliver replies to pending requests until cancelled."""
        key = redis_keys.replies(self._name)
        interrupted, connection = False, ScriptConnection(self._queue)
        backoff = Backoff(RECONNECT_PAUSE_S, RECONNECT_PAUSE_S_MAX)
        while True:
            try:
                if interrupted:
                    await self._resend()
                    interrupted = False
                command = ("BLMPOP", READ_BLOCK_S, 1, key, "LEFT", "COUNT", READ_COUNT)
                (read,) = await connection.run(command)
                self._outage.end()
                for batch in read[1] if read else ():
                    self._deliver(batch)
                backoff.reset()
            except UnavailableError as error:
                self._outage.begin(error)
                self._failure, self._failed_s = without_frames(error), asyncio.get_running_loop().time()
                interrupted = True
                self._on_away()
                await asyncio.sleep(backoff.next_s())
            except Exception:
                # A gateway that runs without receiving replies is worse than a dead one, so reading goes on.
                log.exception("replies_unreadable")
                await asyncio.sleep(backoff.next_s())

    def fail_all(self, error: UnavailableError) -> None:
        """End the wait of all requests with an error: another server can be asked."""
        for pending in self._pending.values():
            pending.fail(error)

    async def _resend(self) -> None:
        """Send all pending requests again: Redis may have lost them, and a second reply is harmless."""
        await redis_scripts.run_async(self._queue, ("PING",))
        for pending in self._pending.values():
            if pending.sent:
                self._requests.put(pending)

    def _deliver(self, batch: bytes) -> None:
        try:
            replies = messages.decode_replies(batch)
        except msgspec.MsgspecError:
            log.exception("replies_unreadable")
            return
        self._rate.record(len(replies), time.monotonic())
        if any(reply.error is None or reply.error[0] != UnavailableError.__name__ for reply in replies):
            self._failure, self._replied_s = None, asyncio.get_running_loop().time()
        for reply in replies:
            pending = self._pending.get(reply.id)
            if pending is not None and not pending.future.done():
                pending.future.set_result(reply)

    async def close(self) -> None:
        """Finish what is being sent, and close the connection."""
        self._reminders.close()
        if self._trials is not None:
            self._trials.cancel()
            await asyncio.wait([self._trials])
        await self._requests.close()
        await self._connection.close()
