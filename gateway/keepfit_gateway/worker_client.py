"""Asking workers: questions go into the predict room, answers come back on this gateway's own list.

Owns the futures of requests that wait. Never polls: one blocking read brings every answer there is. Invariant: each
question ends in an answer, an error or its deadline; an answer nobody waits for any more is dropped.
"""

import asyncio
import itertools
import math
import time
import uuid
from collections.abc import Awaitable, Callable

import msgspec
import redis.asyncio
import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.batcher import Batcher
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import DeadlineError, KeepfitError, QueueFullError, UnavailableError
from keepfit.jobs import messages, run_queue
from keepfit.jobs.messages import Operation, RestoreOptions, WorkerReply, WorkerRequest
from keepfit.observability import request_id
from keepfit.observability.outage import Outage
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import inbox
from keepfit_gateway.job_enqueuer import JobEnqueuer
from keepfit_gateway.web.offload import run_in_thread_if_large

log = structlog.get_logger(__name__)

# Shorter than what a Redis is given to answer (`keepfit.backends.redis_clients`).
READ_BLOCK_S = 1
READ_COUNT = 256
RECONNECT_PAUSE_S = 0.2
# A worker that died is back within a second, or a few where the machine is busy: none is coming where none is alive
# after this long, and after as long again.
WORKER_GRACE_S = 2.0
# A Redis that is there says so within this, also while it syncs a large bundle.
LOOK_S = 5.0
# Rows larger than this are written beside the question, in pieces, so that Redis serves others in between.
INLINE_ROWS_MAX = 64 * 1024
RETRY_AFTER_S_MAX = 60
# Over how many seconds the pace of answers is averaged.
PACE_S = 2.0


class Waiting:
    """One question on its way, and the future of who asked."""

    __slots__ = ("alone", "asked_s", "future", "question", "sent", "timeout_s", "timer")

    def __init__(self, question: WorkerRequest, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.question = question
        self.timeout_s = timeout_s
        self.asked_s = loop.time()
        self.future: asyncio.Future[WorkerReply] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.sent = False
        self.alone = False

    def left_s(self, now_s: float) -> float:
        """Seconds for which the answer is still wanted, by the event loop's clock."""
        return self.asked_s + self.timeout_s - now_s

    def fail(self, error: KeepfitError) -> None:
        """End the wait with an error."""
        if not self.future.done():
            self.future.set_exception(error)


class WorkerClient:
    """One gateway's side of the predict room."""

    def __init__(
        self,
        queue: redis.asyncio.Redis,
        settings: Settings,
        bell: JobEnqueuer,
        ping_store: Callable[[], Awaitable[None]],
    ) -> None:
        self._queue = queue
        self._line = ScriptConnection(queue)
        self._settings = settings
        self._bell = bell
        self._name = uuid.uuid4().hex
        self._ids = itertools.count(1)
        self._waiting: dict[int, Waiting] = {}
        self._questions = Batcher(self._push)
        self._ping_store = ping_store
        self._looking: asyncio.Task[int] | None = None
        self._looks: set[asyncio.Task[None]] = set()
        self._lease = run_queue.new_lease()
        self._outage = Outage("queue", "no answers come from workers")
        self._pace = Pace()

    async def ask(
        self,
        model_hash: str,
        operation: Operation,
        generation: int = 0,
        rows: Rows | None = None,
        timeout_s: float | None = None,
        wish: RestoreOptions | None = None,
    ) -> WorkerReply:
        """Ask, and return the answer; raises what the worker met.

        Raises
        ------
        QueueFullError
            If as many questions wait as may.
        DeadlineError, UnavailableError
            If no answer came within `timeout_s` seconds (the setting's by default); the latter where no worker lives.
        """
        if len(self._waiting) >= self._settings.predict_entries_max:
            raise self._full(len(self._waiting))
        loop = asyncio.get_running_loop()
        timeout_s = self._settings.predict_timeout_s if timeout_s is None else timeout_s
        big = rows is not None and not rows.fits(INLINE_ROWS_MAX)
        key = redis_keys.asked_rows(uuid.uuid4().hex) if big else ""
        asked, sent = None if big else rows, request_id.sent.get()
        question = WorkerRequest(next(self._ids), self._name, model_hash, operation, generation, asked, key, sent, wish)
        waiting = self._waiting[question.id] = Waiting(question, timeout_s, loop)
        waiting.timer = loop.call_later(min(WORKER_GRACE_S, timeout_s), self._overdue, waiting)
        try:
            if big and rows is not None:
                ttl_s = timeout_s + self._settings.body_timeout_s
                await inbox.write_in_pieces(self._queue, key, rows, round(ttl_s * 1000))
                del rows
            waiting.sent = True
            self._questions.put(waiting)
            answer = await waiting.future
        except UnavailableError:
            raise
        except KeepfitError:
            if big:
                await redis_scripts.run_async(self._queue, ("UNLINK", key))
            raise
        finally:
            waiting.timer.cancel()
            del self._waiting[question.id]
        answer.raise_error()
        return answer

    async def _push(self, batch: list[Waiting]) -> None:
        """Put a batch of questions into the room."""
        # Kept until it is rung for: see `keepfit_gateway.learning.acceptor`.
        lease, now_s = self._lease, asyncio.get_running_loop().time()
        batch = [waiting for waiting in batch if not waiting.future.done()]
        entries = [
            run_queue.entry(w.question.hash, max(w.left_s(now_s), 0), messages.encode(w.question)) for w in batch
        ]
        settings = self._settings
        push = run_queue.push(run_queue.PREDICT, lease, settings.lease_ttl_s, entries, settings.predict_entries_max)
        try:
            ((rang, *refused),) = await self._line.run(push)
        except UnavailableError as away:
            for waiting in batch:
                waiting.fail(away)
            return
        except Exception:
            log.exception("asking_crashed")
            for waiting in batch:
                waiting.fail(KeepfitError("The question could not be asked; the gateway's log has the details."))
            return
        if rang:
            self._lease = run_queue.new_lease()
            self._bell.ring(run_queue.PREDICT, lease)
        for number in refused:
            batch[number - 1].fail(self._full(settings.predict_entries_max))

    def _full(self, waiting: int) -> QueueFullError:
        """Tell to come again when half of what waits is answered."""
        pace = self._pace.per_s(time.monotonic())
        seconds = math.ceil(waiting / 2 / pace) if pace else 1
        return QueueFullError(
            f"{waiting} requests wait to be answered; ask again when some are.",
            min(max(seconds, 1), RETRY_AFTER_S_MAX),
        )

    def _overdue(self, waiting: Waiting) -> None:
        """Nothing came for a while: look whether anybody is there to answer, and end the wait at its deadline."""
        look = asyncio.create_task(self._look(waiting))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _look(self, waiting: Waiting) -> None:
        loop = asyncio.get_running_loop()
        try:
            alive = await self._look_once()
        except UnavailableError as away:
            return waiting.fail(away)
        left_s = waiting.left_s(loop.time())
        if not alive and (waiting.alone or left_s <= 0):
            return waiting.fail(UnavailableError("No worker is alive: start some with `keepfit worker`."))
        if not alive:
            waiting.alone = True
            waiting.timer = loop.call_later(min(WORKER_GRACE_S, left_s), self._overdue, waiting)
            return None
        late = DeadlineError(
            f"No answer came within {waiting.timeout_s:g} s; the workers have more to do than they can."
        )
        if left_s > 0:
            waiting.timer = loop.call_later(left_s, waiting.fail, late)
        else:
            waiting.fail(late)
        return None

    async def _look_once(self) -> int:
        """Count the workers alive, for all who ask meanwhile; UnavailableError where a Redis is silent."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_at_both())
        return await asyncio.shield(self._looking)

    async def _look_at_both(self) -> int:
        try:
            async with asyncio.timeout(LOOK_S):
                alive, _ = await asyncio.gather(self.workers_alive(), self._ping_store())
        except TimeoutError:
            raise UnavailableError(f"Redis is away: it gave no sign of life for {LOOK_S:g} s.") from None
        return alive

    @property
    def waiting(self) -> int:
        """Questions that were asked and not answered yet."""
        return len(self._waiting)

    async def workers_alive(self) -> int:
        """Count the workers that RQ knows and that have shown a sign of life: a dead one's record expires."""
        (records,) = await redis_scripts.run_async(self._queue, ("SMEMBERS", redis_keys.RQ_WORKERS))
        if not records:
            return 0
        (count,) = await redis_scripts.run_async(self._queue, ("EXISTS", *records))
        return int(count)

    async def backlog(self) -> dict[str, int]:
        """Count what waits in the queue."""
        counts = await redis_scripts.run_async(self._queue, *run_queue.BACKLOG.values())
        return dict(zip(run_queue.BACKLOG, counts, strict=True))

    async def read_forever(self) -> None:
        """Hand answers to those who wait for them, until cancelled."""
        key = redis_keys.replies(self._name)
        broken, line = False, ScriptConnection(self._queue)
        while True:
            try:
                if broken:
                    await self._ask_again()
                    broken = False
                command = ("BLMPOP", READ_BLOCK_S, 1, key, "LEFT", "COUNT", READ_COUNT)
                (read,) = await line.run(command)
                self._outage.end()
                for batch in read[1] if read else ():
                    await self._hand_out(batch)
            except UnavailableError as error:
                self._outage.begin(error)
                broken = True
                await asyncio.sleep(RECONNECT_PAUSE_S)
            except Exception:
                # A gateway that lives and hears no answers is worse than a dead one, so it listens on in any case.
                log.exception("answers_unreadable")
                await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _ask_again(self) -> None:
        """Ask all that waits once more: Redis may have come back without it, and a second answer does no harm."""
        await redis_scripts.run_async(self._queue, ("PING",))
        for waiting in self._waiting.values():
            if waiting.sent:
                self._questions.put(waiting)

    async def _hand_out(self, batch: bytes) -> None:
        try:
            answers = await run_in_thread_if_large(len(batch), messages.decode_answers, batch)
        except msgspec.MsgspecError:
            log.exception("answers_unreadable")
            return
        self._pace.note(len(answers), time.monotonic())
        for answer in answers:
            waiting = self._waiting.get(answer.id)
            if waiting is not None and not waiting.future.done():
                waiting.future.set_result(answer)

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._questions.close()
        await self._line.close()


class Pace:
    """Answers a second, averaged with exponentially falling weight."""

    def __init__(self) -> None:
        self._count = 0.0
        self._at_s = 0.0

    def note(self, count: int, now_s: float) -> None:
        """Take in `count` answers that came at `now_s`."""
        self._count = self._count * math.exp((self._at_s - now_s) / PACE_S) + count
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        """Answers a second, as of `now_s`.

        >>> pace = Pace()
        >>> for tenth in range(200):
        ...     pace.note(5, tenth / 10)
        >>> 45 < pace.per_s(20.0) < 55
        True
        """
        return self._count * math.exp((self._at_s - now_s) / PACE_S) / PACE_S
