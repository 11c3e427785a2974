"""Pauses between attempts to reach a server."""

from keepfit.backends.backoff import Backoff

FIRST_S, MAX_S = 0.25, 10.0


def test_pauses_double_up_to_the_maximum() -> None:
    """Each pause has half of its maximum at least; the maxima double, and thousands of failures change nothing more."""
    backoff = Backoff(FIRST_S, MAX_S)
    for failures in range(5000):
        longest_s = min(FIRST_S * 2 ** min(failures, 30), MAX_S)
        assert longest_s / 2 <= backoff.next_s() <= longest_s


def test_pauses_differ() -> None:
    """Two processes do not wait for the same time."""
    first, second = (Backoff(FIRST_S, MAX_S) for _ in range(2))
    assert [first.next_s() for _ in range(10)] != [second.next_s() for _ in range(10)]


def test_a_success_begins_again() -> None:
    """After a success the next failure is the first in a row."""
    backoff = Backoff(FIRST_S, MAX_S)
    for _ in range(20):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= FIRST_S
