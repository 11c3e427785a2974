"""The script of API keys' rates against a plain bucket: what is taken, what is left, and when the bucket expires.

Owns the rules. Time passes where a rule moves the time that the bucket was stored at; the milliseconds that pass by
themselves are read from the bucket.
"""

from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from keepfit.backends import redis_keys, redis_scripts
from tests.scripts.bench import Bench

SECOND_US = 1_000_000
names = st.sampled_from(("web", "app"))
rates, bursts = st.sampled_from((0.5, 3.0, 1000.0)), st.sampled_from((1, 5, 60))


class TokenMachine(RuleBasedStateMachine):
    """Two buckets of three sizes and rates."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.bench.empty()

    def _stored(self, name: str) -> tuple[float, int] | None:
        stored = self.bench.client.get(redis_keys.tokens(name))
        if stored is None:
            return None
        tokens, at = stored.split()
        return float(tokens), int(at)

    @rule(
        name=names,
        rate=st.sampled_from((0.5, 3.0, 1000.0)),
        burst=st.sampled_from((1, 5, 60)),
        wanted=st.integers(0, 9),
    )
    def take(self, name: str, rate: float, burst: int, wanted: int) -> None:
        """Take tokens: what was left, refilled at the rate up to the burst, in whole numbers."""
        before = self._stored(name)
        call = redis_scripts.call("take_tokens", [redis_keys.tokens(name)], [f"{rate:.17g}", burst, wanted])
        seconds, micros = self.bench.client.time()
        ((taken, left),) = redis_scripts.run(self.bench.client, call)
        after = self._stored(name)
        assert after is not None
        assert 0 <= after[1] - (seconds * SECOND_US + micros) < 60 * SECOND_US
        tokens = float(burst)
        if before is not None:
            tokens = min(burst, before[0] + max(0, after[1] - before[1]) * rate / SECOND_US)
        assert taken == min(wanted, int(tokens))
        assert float(left) == after[0] == pytest.approx(tokens - taken, abs=1e-9)
        # It lives until it is full again, and a second longer.
        full_ms = (burst - after[0]) / rate * 1000
        assert full_ms < self.bench.client.pttl(redis_keys.tokens(name)) + 500 < full_ms + 1600

    @rule(name=names, passed_s=st.sampled_from((-60.0, 0.4, 1.5, 10.0)))
    def move_time(self, name: str, passed_s: float) -> None:
        """Let seconds pass, or set the clock back by a minute."""
        stored = self._stored(name)
        if stored is not None:
            at = stored[1] - round(passed_s * SECOND_US)
            self.bench.client.set(redis_keys.tokens(name), f"{stored[0]:.17g} {at}", keepttl=True)
