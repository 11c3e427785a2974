"""Rates over several processes: how much they allow together, what they ask of Redis, and what they do without it."""

import asyncio
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from keepfit.errors import UnavailableError
from keepfit.rates.tokens import Taken
from keepfit.security.api_keys import READ, new_key
from keepfit.settings import Settings
from keepfit_gateway.auth.shared_rates import ALLOTMENT_OF_BURST, ALLOTMENT_S, PROBE_S, SharedBucket, Source
from tests import servers
from tests.gateway.api_client import Api, eventually, serving


class Redis:
    """The bucket in Redis as the script has it, on a clock that the test moves; it may be away."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self.rate_per_s, self.burst = rate_per_s, burst
        self.tokens, self.at_s, self.now_s = float(burst), 0.0, 0.0
        self.calls = 0
        self.away = False

    async def take(self, name: str, rate_per_s: float, burst: int, wanted: int) -> Taken:
        """Take tokens."""
        assert (name, rate_per_s, burst) == ("web", self.rate_per_s, self.burst)
        self.calls += 1
        if self.away:
            raise UnavailableError("Redis is unavailable.")
        self.tokens = min(burst, self.tokens + (self.now_s - self.at_s) * rate_per_s)
        self.at_s = self.now_s
        taken = min(wanted, int(self.tokens))
        self.tokens -= taken
        return Taken(taken, self.tokens)

    def processes(self, count: int) -> list[SharedBucket]:
        """Return the buckets of processes that share this one."""
        return [
            SharedBucket("web", self.rate_per_s, self.burst, Source(self.take, lambda: self.now_s))
            for _ in range(count)
        ]


async def allowed_at(redis: Redis, processes: list[SharedBucket], arrivals: Iterable[tuple[float, int]]) -> list[float]:
    """Send requests at these times to these processes; return the times of those that were allowed."""
    allowed = []
    for at_s, process in arrivals:
        redis.now_s = at_s
        if await processes[process].take():
            allowed.append(at_s)
        # What it asked for in the background.
        for _ in range(3):
            await asyncio.sleep(0)
    return allowed


def held_max(rate_per_s: float, burst: int) -> int:
    """Return how many tokens a process may hold, as docs/operations/security.md has it."""
    most = max(1, min(-(-rate_per_s * ALLOTMENT_S // 1), burst // 4))
    return 0 if most == 1 else int(most * 3 / 2)


@examples(max_examples=60, deadline=None)
@given(
    st.floats(0.5, 2000),
    st.integers(1, 400),
    st.lists(st.tuples(st.sampled_from([0.0, 0.0005, 0.003, 0.02, 0.3, 5.0]), st.integers(0, 3)), max_size=400),
)
def test_no_period_gets_more_than_the_rate(rate: float, burst: int, gaps: list[tuple[float, int]]) -> None:
    """All processes together allow, in any period, the burst, the refill, and what they held at its begin.

    From the beginning, when none holds any, exactly burst and refill are the limit.
    """
    redis, now, arrivals = Redis(rate, burst), 0.0, []
    for gap, process in gaps:
        now += gap
        arrivals.append((now, process))
    allowed = asyncio.run(allowed_at(redis, redis.processes(4), arrivals))
    slack = 4 * held_max(rate, burst)
    for last, until in enumerate(allowed):
        assert last + 1 <= burst + rate * until + 1e-6
        for first in range(0, last, 7):
            period = until - allowed[first]
            assert last - first + 1 <= burst + rate * period + slack + 1e-6


@pytest.mark.parametrize("weights", [(1, 1, 1), (20, 1, 1), (1, 0, 0)], ids=["even", "uneven", "one"])
@pytest.mark.parametrize(("rate", "burst"), [(50.0, 100), (1000.0, 2000), (5.0, 10), (1.0, 1), (200.0, 10)])
async def test_load_above_the_rate_gets_the_rate(rate: float, burst: int, weights: tuple[int, ...]) -> None:
    """However requests are spread over the processes, nearly all of burst and refill is allowed, with few calls."""
    seconds, redis = 20.0, Redis(rate, burst)
    step = 1 / (3 * rate)
    order = [process for process, weight in enumerate(weights) for _ in range(weight)]
    arrivals = [(n * step, order[n * 7 % len(order)]) for n in range(int(seconds / step))]
    allowed = await allowed_at(redis, redis.processes(len(weights)), arrivals)
    full = burst + rate * seconds
    assert 0.95 * full - 2 <= len(allowed) <= full + 1e-6
    # Some tens of calls in each second and process; one for each token and process if the rate, or the burst, is small.
    small_burst = burst < ALLOTMENT_OF_BURST * ALLOTMENT_S * rate
    assert redis.calls <= (full if small_burst else min(full, 60 * seconds)) * len(weights) + 10


async def test_load_below_the_rate_is_never_refused() -> None:
    """Requests at nine tenths of the rate, which move from process to process, are all allowed."""
    redis = Redis(100.0, 200)
    arrivals = [(n / 90, n // 45 % 4) for n in range(1800)]
    assert len(await allowed_at(redis, redis.processes(4), arrivals)) == 1800


async def test_a_request_waits_only_if_there_are_no_tokens() -> None:
    """In steady use the next allotment is there before the last is spent; without tokens no call is made."""
    redis = Redis(1000.0, 2000)
    (bucket,) = redis.processes(1)
    waited = 0
    for n in range(2000):
        redis.now_s = n / 500
        if bucket.take_held(redis.now_s) is None:
            waited += 1
            assert await bucket.take()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert waited <= 5
    redis.tokens = 0.0
    while await bucket.take():
        pass
    calls = redis.calls
    assert [bucket.take_held(redis.now_s) for _ in range(100)] == [False] * 100
    assert redis.calls == calls
    assert "r=0;" in bucket.fields()
    assert bucket.retry_after_s() == 1


async def test_concurrent_requests_share_a_call() -> None:
    """Requests that arrive while Redis is asked wait for one answer, and are allowed as far as the burst goes."""
    redis = Redis(0.01, 30)
    (bucket,) = redis.processes(1)
    assert sum(await asyncio.gather(*(bucket.take() for _ in range(50)))) == 30
    assert redis.calls <= 3


async def test_the_fields_tell_what_is_left() -> None:
    """The remaining quota counts tokens in Redis and held ones, and other processes' use as far as it is known."""
    redis = Redis(10.0, 20)
    first, second = redis.processes(2)
    for left in (19, 18, 17):
        assert await first.take()
        assert first.headers()[1] == ("RateLimit", f'"key";r={left};t=1')
    assert await second.take()
    assert first.headers()[0] == ("RateLimit-Policy", '"key";q=20;w=2')
    assert second.headers()[1] == ("RateLimit", '"key";r=16;t=1')
    redis.now_s = 100.0
    assert second.headers()[1] == ("RateLimit", '"key";r=20;t=0')


async def test_without_redis_a_process_counts_alone() -> None:
    """While Redis is away each process allows the rate, from what it knew, and asks again once in a while."""
    redis = Redis(8.0, 16)
    first, second = redis.processes(2)
    assert [await first.take() for _ in range(5)] == [True] * 5
    redis.away = True
    with structlog.testing.capture_logs() as logged:
        assert sum([await first.take() for _ in range(50)]) == 11
        assert first.retry_after_s() == 1
        assert "r=0;" in first.fields()
        # This process knows of nothing that was taken.
        assert sum([await second.take() for _ in range(50)]) == 16
        calls = redis.calls
        for n in range(1, 81):
            redis.now_s = n / 8
            assert await first.take()
            assert first.take_held(redis.now_s) is False
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert redis.calls - calls == pytest.approx(10 / PROBE_S, abs=2)
        redis.away, redis.tokens = False, 0.0
        redis.at_s = redis.now_s = 20.0
        first.take_held(20.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    events = ["dependency_unavailable", "dependency_unavailable", "dependency_recovered"]
    assert [line["event"] for line in logged] == events
    taken = sum([await first.take() for _ in range(50)])
    assert taken <= 1


async def test_an_answer_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that accepts the call and never answers delays a request by the limit once, then none."""
    monkeypatch.setattr("keepfit_gateway.auth.shared_rates.WAIT_S", 0.01)
    calls = 0

    async def hang(*_: object) -> Taken:
        nonlocal calls
        calls += 1
        await asyncio.Event().wait()
        raise AssertionError

    bucket = SharedBucket("web", 1.0, 3, Source(hang))
    assert [await bucket.take() for _ in range(4)] == [True, True, True, False]
    assert calls <= 2
    bucket.close()


# Gateways.


def bearer(token: str) -> dict[str, str]:
    """Return the header that sends a key."""
    return {"Authorization": f"Bearer {token}"}


async def statuses(apis: list[Api], token: str, count: int) -> list[int]:
    """Send requests to the gateways in turn; return the statuses."""
    return [(await apis[n % len(apis)].call("GET", "/nowhere", headers=bearer(token))).status for n in range(count)]


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for Redis: a busy machine is not one without it."""
    monkeypatch.setattr("keepfit_gateway.auth.shared_rates.WAIT_S", 20.0)


@pytest.mark.usefixtures("_patient")
async def test_gateways_share_the_rate_of_a_key(settings: Settings) -> None:
    """Three gateways on one Redis allow together what the key may send; each name has a bucket of its own."""
    (token, line), (renewed, again), (other, third) = (
        new_key(name, [READ], "0.0001/7") for name in ("web", "web", "b")
    )
    limited = Settings(**{**settings.model_dump(), "api_keys": f"{line},{again},{third}"})
    async with serving(limited) as one, serving(limited) as two, serving(limited) as three:
        apis = [one, two, three]
        first = await one.call("GET", "/nowhere", headers=bearer(token))
        assert first.headers["RateLimit"].startswith('"key";r=6;t=')
        second = await two.call("GET", "/nowhere", headers=bearer(renewed))
        assert second.headers["RateLimit"].startswith('"key";r=5;t=')
        assert await statuses(apis, token, 12) == [404] * 5 + [429] * 7
        for api in apis:
            refused = await api.call("GET", "/nowhere", headers=bearer(renewed))
            refused.problem(429)
            assert 1 <= int(refused.headers["Retry-After"]) <= 10_000
            assert refused.headers["RateLimit"].startswith('"key";r=0;t=')
        assert await statuses(apis, other, 8) == [404] * 7 + [429]


@pytest.mark.usefixtures("_patient")
async def test_a_gateway_without_its_redis_limits_requests_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the queue's Redis a key has its rate in each gateway; when it is there, they share the rate."""
    monkeypatch.setattr("keepfit_gateway.auth.shared_rates.PROBE_S", 0.05)
    token, line = new_key("web", [READ], "0.0001/4")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    away = Settings(**{**settings.model_dump(), "api_keys": line, "queue_url": f"redis://127.0.0.1:{port}/0"})
    async with serving(away) as one, serving(away) as two:
        for api in (one, two):
            assert await statuses([api], token, 6) == [404] * 4 + [429] * 2
        with servers.valkey(tmp_path / "queue", port=port):

            async def is_shared() -> bool:
                return (await one.call("GET", "/nowhere", headers=bearer(token))).status == 404

            await eventually(is_shared, "the full bucket of the new Redis")
            assert (await statuses([two, one], token, 20)).count(404) <= 3
