"""Reminders of requests without a reply, on a clock that the test moves."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from keepfit_gateway import reminders
from keepfit_gateway.reminders import FIRST_S, Reminders


class Loop:
    """An event loop with timers only."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[Any] = []

    def time(self) -> float:
        """Return the time."""
        return self.now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> "Timer":
        """Set a timer."""
        timer = Timer(self, when_s, callback)
        self.timers.append(timer)
        return timer

    def run_until(self, when_s: float) -> None:
        """Run the timers that are due by then."""
        while due := [timer for timer in self.timers if timer.when() <= when_s]:
            first = min(due, key=Timer.when)
            self.now_s = max(self.now_s, first.when())
            first.cancel()
            first.callback()
        self.now_s = when_s


class Timer:
    """A timer of such a loop."""

    def __init__(self, loop: Loop, when_s: float, callback: Callable[[], None]) -> None:
        self.loop, self.when_s, self.callback = loop, when_s, callback

    def when(self) -> float:
        """Return when it is due."""
        return self.when_s

    def cancel(self) -> None:
        """Remove it."""
        self.loop.timers.remove(self)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Replace the running event loop."""
    found = Loop()
    fake = SimpleNamespace(get_running_loop=lambda: found, TimerHandle=asyncio.TimerHandle)
    monkeypatch.setattr(reminders, "asyncio", fake)
    return found


def test_quick_replies_need_no_reminder(loop: Loop) -> None:
    """However many requests there are: one timer, and no reminder, if each has its reply in time."""
    pending, reminded = set[int](), list[float]()
    watch = Reminders(pending, lambda: reminded.append(loop.now_s))
    for number in range(100):
        pending.add(number)
        watch.add([number])
        assert len(loop.timers) == 1
        loop.run_until(loop.now_s + FIRST_S / 2)
        pending.remove(number)
    loop.run_until(loop.now_s + 1)
    assert (reminded, loop.timers) == ([], [])


def test_reminders_of_one_request_come_less_and_less(loop: Loop) -> None:
    """After 15 ms, and each time after twice as long; they end with the reply."""
    pending, reminded = {1, 2}, list[float]()
    watch = Reminders(pending, lambda: reminded.append(loop.now_s))
    watch.add([1, 2])
    loop.run_until(FIRST_S * 20)
    pending.remove(1)
    assert reminded == pytest.approx([FIRST_S * number for number in (1, 3, 7, 15)])
    loop.run_until(FIRST_S * 40)
    assert len(reminded) == 5
    pending.clear()
    loop.run_until(FIRST_S * 100)
    assert (len(reminded), loop.timers) == (5, [])


def test_a_new_request_is_not_late_because_of_an_old_one(loop: Loop) -> None:
    """A request that waits long does not delay the reminder of the next; many share one."""
    pending, reminded = set(range(100)), list[float]()
    watch = Reminders(pending, lambda: reminded.append(loop.now_s))
    watch.add([0])
    loop.run_until(FIRST_S * 40)
    reminded.clear()
    for number in range(1, 100):
        watch.add([number])
        loop.run_until(loop.now_s + FIRST_S / 30)
    loop.run_until(FIRST_S * 44.5)
    assert reminded == pytest.approx([FIRST_S * number for number in (41, 42, 43, 44)])
    watch.close()
    assert loop.timers == []


def test_uvloop_reminds_of_requests_that_are_due_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of the gateway gives another handle for what is due at once: a next request must find its time too."""
    monkeypatch.setattr(reminders, "FIRST_S", 0.0)

    async def remind() -> int:
        reminded, pending = asyncio.Event(), {1, 2}
        watch = Reminders(pending, reminded.set)
        watch.add([1])
        watch.add([2])
        async with asyncio.timeout(30):
            await reminded.wait()
        watch.close()
        return len(pending)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(remind()) == 2
