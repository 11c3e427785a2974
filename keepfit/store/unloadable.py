"""Bundles that no worker can load, because each worker that tries to dies, or never comes to an end.

Owns the deaths that are counted for a bundle, and the marks of unloadable ones. Supervisors count, workers look before
they load a bundle, gateways report. Never reads a bundle. Invariants: a mark names one bundle of one model (generation
and digest), so it has no effect once another bundle is live; it ends after :data:`RETRY_S`, because its cause may have
been mended since; there are at most :data:`MARKS_MAX`.
"""

import redis.asyncio
from redis import Redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command

# Deaths of workers in the loading of one bundle that make it unloadable: a single death may have any cause.
DEATHS_MAX = 3
# Time for which they count, and for which an unloadable bundle is not tried again.
RETRY_S = 3600
MARKS_MAX = 1000
# Commands whose answers :func:`current` reads.
READ_MARKS: tuple[Command, ...] = (("ZRANGE", redis_keys.UNLOADABLE, 0, -1, "WITHSCORES"), ("TIME",))


def mark_of(model_hash: str, generation: int, digest: str) -> str:
    """Return the name of a bundle among the marks; `digest` is '' for the new bundle of a recipe."""
    return f"{model_hash} {generation} {digest}"


def note_death(
    store: Redis, model_hash: str, generation: int, digest: str, worker: str, *, certain: bool = False
) -> bool:
    """Count the death of a worker that was loading a bundle; return whether the bundle is unloadable now.

    It is after :data:`DEATHS_MAX` deaths, or at once if it is `certain` that the same would happen again. Calls that
    repeat the death of the same `worker` count it once.

    Raises
    ------
    UnavailableError
        If Redis is unavailable.
    """
    deaths = redis_keys.load_deaths(model_hash, generation, digest)
    _, _, count, (seconds, _) = redis_scripts.run(
        store, ("SADD", deaths, worker), ("EXPIRE", deaths, RETRY_S), ("SCARD", deaths), ("TIME",)
    )
    if count < DEATHS_MAX and not certain:
        return False
    until_s = int(seconds) + RETRY_S
    redis_scripts.run(
        store,
        ("ZADD", redis_keys.UNLOADABLE, until_s, mark_of(model_hash, generation, digest)),
        ("ZREMRANGEBYSCORE", redis_keys.UNLOADABLE, "-inf", int(seconds)),
        ("ZREMRANGEBYRANK", redis_keys.UNLOADABLE, 0, -MARKS_MAX - 1),
        ("EXPIRE", redis_keys.UNLOADABLE, RETRY_S),
    )
    return True


def seconds_left(store: Redis, model_hash: str, generation: int, digest: str) -> int:
    """Return for how many seconds a bundle must not be loaded; 0 if it may be."""
    mark = mark_of(model_hash, generation, digest)
    until_s, (seconds, _) = redis_scripts.run(store, ("ZSCORE", redis_keys.UNLOADABLE, mark), ("TIME",))
    return max(int(until_s or 0) - int(seconds), 0)


def current(marks: list[tuple[bytes, float]], time: list[bytes]) -> frozenset[str]:
    """Return the marks that have not ended, from the answers to :data:`READ_MARKS`.

    >>> sorted(current([(b"aa 1 ", 99.0), (b"bb 2 77", 101.0)], [b"100", b"0"]))
    ['bb 2 77']
    """
    return frozenset(mark.decode() for mark, until_s in marks if until_s > int(time[0]))


async def count_models(store: redis.asyncio.Redis) -> int:
    """Return how many live models have a bundle that no worker can load."""
    marks = current(*await redis_scripts.run_async(store, *READ_MARKS))
    hashes = sorted({mark.partition(" ")[0] for mark in marks})
    if not hashes:
        return 0
    states = (("HMGET", redis_keys.state(h), "generation", "digest") for h in hashes)
    live = zip(hashes, await redis_scripts.run_async(store, *states), strict=True)
    return sum(bool(state[0]) and mark_of(h, int(state[0]), (state[1] or b"").decode()) in marks for h, state in live)
