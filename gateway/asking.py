"""Asking workers: questions go into the predict room, answers come back on this gateway's own list.

Owns the futures of requests that wait. Never polls: one blocking read brings every answer there is. Invariant: each
question ends in an answer, an error or its deadline; an answer nobody waits for any more is dropped.
"""

import asyncio
import itertools
import time
import uuid

import msgspec
import redis.asyncio
import structlog

from gateway.bell import Bell
from keepfit import keys, questions, rooms, scripts
from keepfit.errors import DeadlineError, UnavailableError
from keepfit.questions import Answer, Operation, Question
from keepfit.rows import Rows
from keepfit.settings import Settings

log = structlog.get_logger(__name__)

READ_BLOCK_S = 5
READ_COUNT = 256
RECONNECT_PAUSE_S = 0.2
# A worker that died is back within a second; after this long without any, none is coming.
WORKER_GRACE_S = 2.0


class Asker:
    """One gateway's side of the predict room."""

    def __init__(self, queue: redis.asyncio.Redis, settings: Settings, bell: Bell) -> None:
        self._queue = queue
        self._settings = settings
        self._bell = bell
        self._name = uuid.uuid4().hex
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    async def ask(self, model_hash: str, operation: Operation, generation: int = 0, rows: Rows | None = None) -> Answer:
        """Ask, and return the answer; raises what the worker met.

        Raises
        ------
        DeadlineError, UnavailableError
            If no answer came in time; the latter where no worker is alive.
        """
        timeout_s = self._settings.predict_timeout_s
        question = Question(
            next(self._ids), self._name, model_hash, operation, time.time() + timeout_s, generation, rows
        )
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[question.id] = future
        try:
            lease = rooms.new_lease()
            (rang,) = await scripts.run_async(
                self._queue,
                rooms.push(rooms.PREDICT, lease, self._settings.lease_ttl_s, [questions.encode(question)]),
            )
            if rang:
                self._bell.ring(rooms.PREDICT, lease)
            answer = await self._answer(future, timeout_s)
        finally:
            self._waiting.pop(question.id, None)
        answer.raise_error()
        return answer

    async def _answer(self, future: asyncio.Future[Answer], timeout_s: float) -> Answer:
        grace_s = min(WORKER_GRACE_S, timeout_s)
        done, _ = await asyncio.wait([future], timeout=grace_s)
        if not done and not await self.workers_alive():
            raise UnavailableError("No worker is alive: start some with `keepfit worker`.")
        if not done:
            done, _ = await asyncio.wait([future], timeout=timeout_s - grace_s)
        if not done:
            raise DeadlineError(f"No answer came within {timeout_s:g} s; the workers have more to do than they can.")
        return future.result()

    async def workers_alive(self) -> int:
        """Count the workers that RQ knows and that have shown a sign of life: a dead one's record expires."""
        (records,) = await scripts.run_async(self._queue, ("SMEMBERS", keys.RQ_WORKERS))
        if not records:
            return 0
        (count,) = await scripts.run_async(self._queue, ("EXISTS", *records))
        return int(count)

    async def read_forever(self) -> None:
        """Hand answers to those who wait for them, until cancelled."""
        key = keys.replies(self._name)
        while True:
            try:
                command = ("BLMPOP", READ_BLOCK_S, 1, key, "LEFT", "COUNT", READ_COUNT)
                (read,) = await scripts.run_async(self._queue, command)
            except UnavailableError as error:
                log.warning("answers_unreachable", reason=str(error))
                await asyncio.sleep(RECONNECT_PAUSE_S)
                continue
            except Exception:
                # A gateway that lives and hears no answers is worse than a dead one, so it listens on in any case.
                log.exception("answers_unreadable")
                await asyncio.sleep(RECONNECT_PAUSE_S)
                continue
            for batch in read[1] if read else ():
                self._hand_out(batch)

    def _hand_out(self, batch: bytes) -> None:
        try:
            answers = questions.decode_answers(batch)
        except msgspec.MsgspecError:
            log.exception("answers_unreadable")
            return
        for answer in answers:
            future = self._waiting.get(answer.id)
            if future is not None and not future.done():
                future.set_result(answer)
