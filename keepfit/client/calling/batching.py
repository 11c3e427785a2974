"""Predictions that are asked for at the same time, in one request: rows joined, answers split.

Owns the questions that wait. Never joins questions to different models, with different options or with rows of
different forms. Invariant: each question gets the answer or the error that it would get alone: what a joined request
is refused for, and rows without a prediction, are asked again alone. A lone question is sent in its own task, at
the end of the same turn of the event loop; while requests are out, the questions that arrive are sent together.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from copy import copy
from typing import Any, TypeAlias

from keepfit.client.transport.exchange import Ask
from keepfit.errors import (
    DeadlineError,
    ForbiddenError,
    InvalidError,
    KeepfitError,
    NotFoundError,
    OverloadedError,
    UnauthorizedError,
    UnavailableError,
)

# Requests of one kind that are out at a time.
SENT_MAX = 2
# A joined request stays on the fast path of the gateway.
ROWS_MAX, ROWS_BYTES_MAX = 256, 16 << 10
# Errors that do not depend on the rows.
OF_ALL = (DeadlineError, ForbiddenError, NotFoundError, OverloadedError, UnauthorizedError, UnavailableError)
BY_ROW = ("predictions", "probabilities", "scores")

Answer: TypeAlias = dict[str, Any]
# A question, its answer to come, and its deadline (monotonic).
Asked: TypeAlias = "tuple[Ask, asyncio.Future[Answer], float]"


class Batching:
    """The questions of one client; `alone` sends one."""

    def __init__(self, alone: Callable[[Ask], Coroutine[Any, Any, Any]]) -> None:
        self._alone = alone
        self._groups: dict[tuple[Any, ...], Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, question: Ask) -> Answer:
        """Return the answer to a question; raises the errors of predict."""
        kind = (question.target, question.options, question.rows[1:2], question.timeout_s)
        group = self._groups.get(kind)
        if group is None:
            group = self._groups[kind] = Group(kind)
        try:
            if not group.sent and not group.is_led:
                group.is_led = True
                try:
                    await asyncio.sleep(0)
                except BaseException:
                    group.is_led = False
                    self._send_waiting(group)
                    raise
                group.is_led = False
                if not group.waiting:
                    return await self._ask_alone(group, question)
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            group.waiting.append((question, future, time.monotonic() + question.timeout_s))
            if not group.is_led:
                self._send_waiting(group)
            return await future
        finally:
            self._forget_if_idle(group)

    async def close(self) -> None:
        """End the requests that are out; their questions are cancelled."""
        for task in self._tasks:
            task.cancel()
        for group in self._groups.values():
            for _, future, _ in group.waiting:
                future.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _forget_if_idle(self, group: "Group") -> None:
        if group.is_idle and self._groups.get(group.kind) is group:
            del self._groups[group.kind]

    async def _ask_alone(self, group: "Group", question: Ask) -> Answer:
        group.sent += 1
        try:
            answer: Answer = await self._alone(question)
        finally:
            group.sent -= 1
            self._send_waiting(group)
        return answer

    def _send_waiting(self, group: "Group") -> None:
        while group.sent < SENT_MAX and (batch := group.take()):
            group.sent += 1
            task = asyncio.get_running_loop().create_task(self._send(group, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, group: "Group", batch: list[Asked]) -> None:
        try:
            await self._answer(batch)
        except Exception as error:  # noqa: BLE001 - each call gets it
            for _, future, _ in batch:
                _fail(future, error)
        finally:
            group.sent -= 1
            for _, future, _ in batch:
                future.cancel()
            self._send_waiting(group)
            self._forget_if_idle(group)

    async def _answer(self, batch: list[Asked]) -> None:
        try:
            answer: Answer = await self._alone(_join(batch))
        except DeadlineError as error:
            # A joined request ends with the first deadline of its questions, or with that of the gateway.
            now = time.monotonic()
            late = [asked for asked in batch if asked[2] <= now] or batch
            for _, future, _ in late:
                _fail(future, copy(error))
            if in_time := [asked for asked in batch if asked not in late]:
                await self._answer(in_time)
            return
        except OF_ALL as error:
            for _, future, _ in batch:
                _fail(future, copy(error))
            return
        except KeepfitError as error:
            if len(batch) == 1:
                _fail(batch[0][1], error)
                return
            refused, others = _divide(batch, error)
            if others:
                await self._answer(others)
            await asyncio.gather(*(self._answer([one]) for one in refused))
            return
        first, again = 0, []
        for asked in batch:
            question, future, _ = asked
            part = _part(answer, first, first + question.count)
            first += question.count
            if len(batch) > 1 and None in part["predictions"]:
                again.append(asked)
            elif not future.done():
                future.set_result(part)
        await asyncio.gather(*(self._answer([one]) for one in again))


class Group:
    """Questions that may be joined: those that wait, and the number of requests that are out."""

    __slots__ = ("is_led", "kind", "sent", "waiting")

    def __init__(self, kind: tuple[Any, ...]) -> None:
        self.kind = kind
        self.waiting: deque[Asked] = deque()
        self.sent = 0
        # Whether a question waits for the end of the turn, so that others join it.
        self.is_led = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is out."""
        return not (self.sent or self.waiting or self.is_led)

    def take(self) -> list[Asked]:
        """Remove and return the questions of the next request; those that were cancelled are left out."""
        batch: list[Asked] = []
        rows = size = 0
        while self.waiting:
            question, future, _ = asked = self.waiting[0]
            rows, size = rows + question.count, size + len(question.rows)
            if batch and (rows > ROWS_MAX or size > ROWS_BYTES_MAX):
                break
            self.waiting.popleft()
            if not future.done():
                batch.append(asked)
        return batch


def _join(batch: list[Asked]) -> Ask:
    """Return one question with the rows of all, and the time that the first to end has left."""
    questions = [question for question, _, _ in batch]
    first, left_s = questions[0], min(deadline for _, _, deadline in batch) - time.monotonic()
    rows = b"[" + b",".join([question.rows[1:-1] for question in questions]) + b"]"
    return Ask(first.target, first.options, rows, sum(question.count for question in questions), left_s)


def _divide(batch: list[Asked], error: KeepfitError) -> tuple[list[Asked], list[Asked]]:
    """Return the questions that an error is about, and the others: all of them unless it names rows."""
    rows = {one.row for one in error.faults} if isinstance(error, InvalidError) else {None}
    refused: list[Asked] = []
    others: list[Asked] = []
    first = 0
    for asked in batch:
        question = asked[0]
        has_fault = any(row in rows for row in range(first, first + question.count))
        (refused if has_fault else others).append(asked)
        first += question.count
    return (refused, others) if refused and None not in rows else (batch, [])


def _part(answer: Answer, first: int, last: int) -> Answer:
    part = answer.copy()
    for name in BY_ROW:
        if part.get(name) is not None:
            part[name] = part[name][first:last]
    return part


def _fail(future: "asyncio.Future[Answer]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
