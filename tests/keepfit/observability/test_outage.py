"""Outages in the log: one line at the begin, reminders while they last, one line at the end."""

import structlog

from keepfit.observability.outage import REMIND_S, LogThrottle, Outage


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now_s


def test_an_outage_is_logged_once_with_reminders() -> None:
    """A thousand failures within a minute are three lines, the recovery is one, the next outage is logged at once."""
    clock = Clock()
    outage = Outage("store", "nothing works", clock)
    with structlog.testing.capture_logs() as logged:
        assert not outage.end()
        for _ in range(1024):
            outage.begin("gone")
            clock.now_s += 2 * REMIND_S / 1024
        outage.begin("gone")
        assert outage.active
        assert outage.end()
        assert not outage.end()
        outage.begin("again")
    events = [*["dependency_unavailable"] * 3, "dependency_recovered", "dependency_unavailable"]
    assert [entry["event"] for entry in logged] == events
    assert logged[3]["seconds"] == 2 * REMIND_S
    assert {entry["dependency"] for entry in logged} == {"store"}


def test_repeated_lines_are_throttled() -> None:
    """One line of each name passes per second, with the number of suppressed ones; names are independent."""
    clock = Clock()
    throttle = LogThrottle(1.0, clock)
    assert [throttle.due("a") for _ in range(3)] == [0, None, None]
    assert throttle.due("b") == 0
    clock.now_s += 1.0
    assert [throttle.due("a"), throttle.due("a")] == [2, None]
