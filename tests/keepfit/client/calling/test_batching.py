"""Questions that share a request: each gets its own answer or error, in few requests, and nothing is left behind."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from keepfit.client.calling import batching
from keepfit.client.calling.batching import Batching
from keepfit.client.transport.exchange import Ask
from keepfit.errors import DeadlineError, Fault, InvalidError, OverloadedError


class Gateway:
    """Answers each number with itself, and refuses texts with a fault for each."""

    def __init__(self, answer: Callable[[list[Any]], Any] | None = None) -> None:
        self.requests: list[int] = []
        self._answer = answer

    async def alone(self, question: Ask) -> Any:
        """Answer one request."""
        await asyncio.sleep(0)
        rows = json.loads(question.rows)
        self.requests.append(len(rows))
        if self._answer is not None:
            return self._answer(rows)
        faults = [Fault("text", at, 0) for at, row in enumerate(rows) if isinstance(row[0], str)]
        if faults:
            raise InvalidError("wrong", faults)
        return {"version": 1, "predictions": [row[0] for row in rows]}


def questions(values: list[Any]) -> list[Ask]:
    """Return a question of one row for each value."""
    return [Ask("/v1/predict", b"", json.dumps([[value]]).encode(), 1, 60) for value in values]


async def ask_all(gateway: Gateway, values: list[Any]) -> list[Any]:
    """Ask for all values at once; return the predictions and errors in their order."""
    shared = Batching(gateway.alone)
    found = await asyncio.gather(*map(shared.ask, questions(values)), return_exceptions=True)
    assert not shared._groups
    return [one if isinstance(one, BaseException) else one["predictions"][0] for one in found]


async def test_rows_with_faults_do_not_send_the_others_one_by_one() -> None:
    """Only the questions that the error names are asked alone; their errors name their own rows."""
    gateway = Gateway()
    found = await ask_all(gateway, [*range(100), "a", *range(100), "b"])
    assert [one for one in found if not isinstance(one, InvalidError)] == [*range(100), *range(100)]
    errors = [found[100], found[201]]
    assert [[fault.row for fault in error.faults] for error in errors] == [[0], [0]]
    assert len(gateway.requests) < 8


async def test_an_error_of_the_request_is_that_of_each_question() -> None:
    """A refusal without a row is asked for each question alone."""

    def refuse(rows: list[Any]) -> Any:
        if len(rows) > 1 or rows == [[2]]:
            raise InvalidError("no probabilities")
        return {"predictions": [rows[0][0]]}

    found = await ask_all(Gateway(refuse), [1, 2, 3])
    assert [found[0], type(found[1]), found[2]] == [1, InvalidError, 3]


async def test_an_error_of_all_keeps_what_it_says() -> None:
    """Each question gets an error of its own, with the time after which to try again and the notes."""
    full = OverloadedError("full", 9)
    full.add_note("X-Request-ID: r-7")

    def refuse(_: list[Any]) -> Any:
        raise full

    found = await ask_all(Gateway(refuse), [1, 2, 3])
    assert len({id(error) for error in found}) == 3
    assert all((error.retry_after_s, error.__notes__) == (9, ["X-Request-ID: r-7"]) for error in found)


async def test_waiting_counts_against_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions that waited for others get the rest of their time, and only those whose time is over are late."""
    clock = [1000.0]
    monkeypatch.setattr(batching.time, "monotonic", lambda: clock[0])
    limits: list[float] = []
    may_answer = asyncio.Event()

    async def alone(question: Ask) -> Any:
        limits.append(question.timeout_s)
        rows = json.loads(question.rows)
        if len(limits) == 2:
            await may_answer.wait()
            clock[0] += 50
        elif len(limits) == 3:
            clock[0] += question.timeout_s
            raise DeadlineError("late")
        return {"predictions": [row[0] for row in rows]}

    shared = Batching(alone)
    monkeypatch.setattr(batching, "SENT_MAX", 1)
    await shared.ask(questions([0])[0])
    first = asyncio.create_task(shared.ask(questions([1])[0]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(shared.ask(questions([2])[0]))
    await asyncio.sleep(0)
    clock[0] += 5
    third = asyncio.create_task(shared.ask(questions([3])[0]))
    await asyncio.sleep(0)
    may_answer.set()
    found = await asyncio.gather(first, second, third, return_exceptions=True)
    # The second one waited for 55 of its 60 seconds, the third one for 50.
    assert limits == [60, 60, 5, 5]
    assert found[0] == {"predictions": [1]}
    assert isinstance(found[1], DeadlineError)
    assert found[2] == {"predictions": [3]}


async def test_a_late_gateway_is_late_for_all_questions() -> None:
    """A 504 of the gateway is the answer to each question; none is asked again."""

    def refuse(_: list[Any]) -> Any:
        raise DeadlineError("late")

    gateway = Gateway(refuse)
    assert [type(one) for one in await ask_all(gateway, [1, 2, 3])] == [DeadlineError] * 3
    assert sum(gateway.requests) == 3


async def test_an_unexpected_answer_is_an_error_and_no_cancellation() -> None:
    """A program that was not cancelled must not see that it was."""
    found = await ask_all(Gateway(lambda _: {"unexpected": 1}), [1, 2, 3])
    assert [type(one) for one in found] == [KeyError] * 3


async def test_cancelled_questions_leave_nothing_behind() -> None:
    """When a request ends whose questions were all cancelled, its kind is forgotten."""
    batching = Batching(Gateway().alone)
    tasks = [asyncio.create_task(batching.ask(question)) for question in questions([1, 2, 3])]
    for _ in range(2):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*batching._tasks)
    assert not batching._groups


@pytest.mark.parametrize("values", [[1], [1, 2]])
async def test_a_request_that_was_answered_is_forgotten(values: list[int]) -> None:
    """A client that asks many models keeps nothing of those that do not ask."""
    assert await ask_all(Gateway(), values) == values
