"""Run functions on large input in a thread.

Owns the size from which work on an input leaves the event loop. Never splits the work: a function runs whole, in the
caller or in a thread.
"""

import asyncio
import concurrent.futures
import threading
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


def run_in_daemon_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Call `function` in a thread of its own, which may hang: neither other threads nor the end of the process wait."""
    result: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - raised in the caller
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(result)
