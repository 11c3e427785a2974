"""Run functions on large input in a thread.

Owns the size from which work on an input leaves the event loop. Never splits the work: a function runs whole, in the
caller or in a thread.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Parsing this much takes about a millisecond; larger input is processed in a thread.
INLINE_BYTES_MAX = 64 * 1024


async def run_in_thread_if_large(size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function`, in a thread if `size_bytes` of input would block the event loop."""
    if size_bytes <= INLINE_BYTES_MAX:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
