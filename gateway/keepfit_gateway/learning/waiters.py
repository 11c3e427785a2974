"""Clients that wait until their request has gone to Redis with others, each with a future of its outcome.

Owns how an outcome reaches its client. Never sends anything: a :class:`~keepfit.backends.batcher.Batcher` does.
Invariant: the outcome of a client that is gone is dropped; an error may be that of several clients.
"""

import asyncio
from dataclasses import dataclass
from typing import Generic, TypeVar

from keepfit.backends.batcher import Batcher
from keepfit.errors import KeepfitError, without_frames

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Waiter(Generic[R, T]):
    """A request of type `R`, and the future of its outcome, which is a `T` or an error."""

    request: R
    future: asyncio.Future[T]

    def resolve(self, outcome: T | KeepfitError) -> None:
        """Set the outcome, or raise it for the client if it is an error."""
        if self.future.done():
            return
        if isinstance(outcome, KeepfitError):
            self.future.set_exception(without_frames(outcome))
        else:
            self.future.set_result(outcome)


def put(batcher: Batcher[Waiter[R, T]], request: R) -> asyncio.Future[T]:
    """Add a request to the next batch; return the future of its outcome."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    batcher.put(Waiter(request, future))
    return future
