"""For how long work has waited in the learn queue.

Owns this one number. Never writes: `push` stores the time and `claim` removes it.
"""

from typing import Any

from keepfit.backends import redis_keys, redis_scripts
from keepfit.jobs import run_queue


async def unclaimed_s(queue: Any) -> float:
    """Return for how many seconds no lease has claimed the work in the learn queue; 0 if there was none.

    Raises
    ------
    UnavailableError
        If the queue's Redis is unavailable.
    """
    since, (seconds, micros) = await redis_scripts.run_async(
        queue, ("GET", redis_keys.waiting_since(run_queue.LEARN.name)), ("TIME",)
    )
    if since is None:
        return 0.0
    return max(0.0, round(int(seconds) + int(micros) / 1e6 - int(since) / 1000, 3))
