"""Generations given out: one trip to MongoDB for all that are wanted at the same time.

Owns the waiting for a trip that is under way; what comes meanwhile goes with the next one, so a lone request never
waits for company. Never counts itself: :class:`keepfit.history.Registry` does. Invariant: no two are given one number.
"""

import asyncio
from collections.abc import Sequence

from keepfit.history import Registry, RegistryEntry
from keepfit.history.lineage import Link

Waiting = tuple[RegistryEntry, Link | None, "asyncio.Future[int | None]"]

# A write that waits for MongoDB's journal takes some ten milliseconds, for one model as for many.
TRIP_MAX = 100


class Generations:
    """Next generations of models; to be used in one event loop."""

    def __init__(self, history: Registry) -> None:
        self._history = history
        self._waiting: list[Waiting] = []
        self._trips: asyncio.Task[None] | None = None

    async def next(self, registered: RegistryEntry, link: Link | None = None) -> int | None:
        """Give out the next generation of a model; None where it was deleted, or made again, since it was looked up.

        `link` tells how it begins, where that is to be known; its `origin` is 0 for the generation itself.

        Raises
        ------
        UnavailableError
            If MongoDB is away.
        """
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((registered, link, future))
        if self._trips is None or self._trips.done():
            self._trips = asyncio.create_task(self._make_trips())
        return await future

    async def _make_trips(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[:TRIP_MAX], self._waiting[TRIP_MAX:]
            try:
                given = await self._give([(registered, link) for registered, link, _ in some])
            except Exception as error:  # noqa: BLE001 - each who waits is told
                for *_, future in some:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (*_, future), one in zip(some, given, strict=True):
                if not future.done():
                    future.set_result(one)

    async def _give(self, some: Sequence[tuple[RegistryEntry, Link | None]]) -> Sequence[int | None]:
        links = [link and link.with_origin(registered.generation + 1) for registered, link in some]
        if await self._history.advance_generations([registered for registered, _ in some], links):
            return [registered.generation + 1 for registered, _ in some]
        # Somebody else was given one since they were looked up, or one is deleted; each finds out for itself.
        return await asyncio.gather(*(self._give_one(*each) for each in some))

    async def _give_one(self, registered: RegistryEntry, link: Link | None) -> int | None:
        generation = await self._history.next_generation(registered.hash, registered.born)
        if generation is not None and link is not None:
            await self._history.set_link(registered.hash, generation, link.with_origin(generation))
        return generation
