"""The token bucket: which requests it allows, and its header fields."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfit_gateway.auth.rate_limit import TokenBucket

ITEM = r'"key"(;[a-z]=\d+)+'


@given(
    st.floats(0.1, 1000),
    st.integers(1, 100),
    st.lists(st.floats(0, 10), max_size=200),
)
def test_no_period_gets_more_than_burst_and_refill(rate: float, burst: int, pauses: list[float]) -> None:
    """In any period at most the burst and the refill of that period is allowed."""
    bucket, now, taken = TokenBucket(rate, burst, 0.0), 0.0, []
    for pause in pauses:
        now += pause
        if bucket.take(now):
            taken.append(now)
    for i, start in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= burst + (taken[j] - start) * rate + 1e-6


@given(st.floats(0.1, 1000), st.integers(1, 100))
def test_a_client_that_waits_for_retry_after_is_allowed(rate: float, burst: int) -> None:
    """After `retry_after_s` one more request is allowed."""
    bucket = TokenBucket(rate, burst, 0.0)
    while bucket.take(0.0):
        pass
    assert bucket.take(float(bucket.retry_after_s()))


def test_a_stopped_clock_refills_nothing() -> None:
    """A clock that stands still or goes backwards does not refill the bucket."""
    bucket = TokenBucket(1.0, 1, 100.0)
    assert bucket.take(100.0)
    assert not bucket.take(100.0)
    assert not bucket.take(50.0)


@pytest.mark.parametrize(("rate", "burst"), [(0.1, 1), (50.0, 100), (3.3, 7)])
def test_fields_are_structured_fields(rate: float, burst: int) -> None:
    """Both fields are lists of one string with whole numbers, and the remaining quota is right."""
    bucket = TokenBucket(rate, burst, 0.0)
    for left in range(burst, 0, -1):
        assert bucket.take(0.0)
        (policy_name, policy), (name, limit) = bucket.headers()
        assert (policy_name, name) == ("RateLimit-Policy", "RateLimit")
        assert re.fullmatch(ITEM, policy)
        assert re.fullmatch(ITEM, limit)
        assert f";q={burst};" in policy
        assert f";r={left - 1};" in limit
        assert int(policy.rpartition("=")[2]) >= 1
