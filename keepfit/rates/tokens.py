"""Tokens of an API key's rate, in the bucket that all gateways share.

Owns the script call and its answer. Invariant: in any period, the tokens taken from a bucket are at most its burst and
the refill of that period by the clock of Redis. A call that is repeated takes tokens twice, which only loses them.
"""

from typing import NamedTuple

import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts


class Taken(NamedTuple):
    """How many tokens were taken, and how many are left in the bucket."""

    number: int
    left: float


async def take(client: redis.asyncio.Redis, name: str, rate_per_s: float, burst: int, wanted: int) -> Taken:
    """Take up to `wanted` tokens of the keys with this name.

    Raises
    ------
    UnavailableError
        If Redis is unavailable. Tokens may have been taken.
    """
    call = redis_scripts.call("take_tokens", [redis_keys.tokens(name)], [f"{rate_per_s:.17g}", burst, wanted])
    ((number, left),) = await redis_scripts.run_async(client, call)
    return Taken(number, float(left))
