"""Run functions on large input in a thread.

Owns the size from which work on an input leaves the event loop, and the threads that compute. Never splits the work: a
function runs whole, in the caller or in a thread. Invariant: on large input two threads compute at most, because they
and the event loop share Python's global lock; functions that wait for files have threads of their own.
"""

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Parsing this much takes about a millisecond; larger input is processed in a thread.
INLINE_BYTES_MAX = 64 * 1024
# Input from this size on is computed in a thread of its own: what is only large does not wait for it.
HUGE_BYTES_MIN = 8 << 20

_large = concurrent.futures.ThreadPoolExecutor(1, "large")
_huge = concurrent.futures.ThreadPoolExecutor(1, "huge")


async def compute(size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function`, which computes, in a thread if `size_bytes` of input would block the event loop."""
    if size_bytes <= INLINE_BYTES_MAX:
        return function(*args, **kwargs)
    return await compute_in_thread(size_bytes, function, *args, **kwargs)


async def compute_in_thread(size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function`, which computes, in a thread: for large input in that of its size, after earlier calls."""
    if size_bytes <= INLINE_BYTES_MAX:
        return await asyncio.to_thread(function, *args, **kwargs)
    context, threads = contextvars.copy_context(), _huge if size_bytes >= HUGE_BYTES_MIN else _large
    call = partial(context.run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(threads, call)


async def run_in_thread_if_large(size_bytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function`, which waits for a file or releases the lock, in a thread if `size_bytes` of input are large."""
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
