"""Absences in the log: once when they begin, now and then while they last, once when they end."""

import structlog

from keepfit.observability.outage import REMIND_S, LogThrottle, Outage


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now_s


def test_an_absence_is_told_once_and_now_and_then() -> None:
    """A thousand failures within a minute are three lines, the return is one, and the next absence is told at once."""
    clock = Clock()
    outage = Outage("store", "nothing works", clock)
    with structlog.testing.capture_logs() as logged:
        assert not outage.end()
        for _ in range(1024):
            outage.begin("gone")
            clock.now_s += 2 * REMIND_S / 1024
        outage.begin("gone")
        assert outage.away
        assert outage.end()
        assert not outage.end()
        outage.begin("again")
    assert [entry["event"] for entry in logged] == [*["part_away"] * 3, "part_back", "part_away"]
    assert logged[3]["seconds"] == 2 * REMIND_S
    assert {entry["part"] for entry in logged} == {"store"}


def test_many_like_lines_become_one_a_second() -> None:
    """Of lines of one name one goes through each second, with the number of those kept back; names do not mix."""
    clock = Clock()
    seldom = LogThrottle(1.0, clock)
    assert [seldom.due("a") for _ in range(3)] == [0, None, None]
    assert seldom.due("b") == 0
    clock.now_s += 1.0
    assert [seldom.due("a"), seldom.due("a")] == [2, None]
