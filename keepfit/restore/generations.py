"""Allocate generations: one command to MongoDB for all that are requested at the same time.

Owns the batching. Never counts: :class:`keepfit.history.Registry` does. Invariant: a generation is given to one caller
only.
"""

import asyncio
from collections.abc import Sequence

from keepfit.backends.batcher import Batcher
from keepfit.errors import without_frames
from keepfit.history import Registry, RegistryEntry
from keepfit.history.registry.lineage import Link

# A caller that waits for its generation; the future's result is None if the model was deleted or created again.
Waiter = tuple[RegistryEntry, Link | None, "asyncio.Future[int | None]"]

# A write that waits for MongoDB's journal takes about ten milliseconds, for one model or for many.
BATCH_MAX = 100


class Generations:
    """Next generations of models; for use in one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._batcher: Batcher[Waiter] = Batcher(self._allocate_batch, BATCH_MAX)

    async def allocate(self, registered: RegistryEntry, link: Link | None = None) -> int | None:
        """Return the next generation of a model; None if the model was deleted or created again since it was read.

        `link` says how the generation begins, if that is recorded; its `origin` is 0 for the new generation itself.

        Raises
        ------
        UnavailableError
            If MongoDB is unavailable.
        """
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._batcher.put((registered, link, future))
        return await future

    async def _allocate_batch(self, waiters: list[Waiter]) -> None:
        try:
            generations = await self._advance([(registered, link) for registered, link, _ in waiters])
        except Exception as error:  # noqa: BLE001 - every waiter gets it
            for *_, future in waiters:
                if not future.done():
                    future.set_exception(without_frames(error))
            return
        for (*_, future), generation in zip(waiters, generations, strict=True):
            if not future.done():
                future.set_result(generation)

    async def _advance(self, entries: Sequence[tuple[RegistryEntry, Link | None]]) -> Sequence[int | None]:
        links = [link and link.with_origin(registered.generation + 1) for registered, link in entries]
        if await self._registry.advance_generations([registered for registered, _ in entries], links):
            return [registered.generation + 1 for registered, _ in entries]
        # Another process took a generation of one of them, or one was deleted, since they were read: go one by one.
        return await asyncio.gather(*(self._advance_one(*each) for each in entries))

    async def _advance_one(self, registered: RegistryEntry, link: Link | None) -> int | None:
        generation = await self._registry.next_generation(registered.hash, registered.born)
        if generation is not None and link is not None:
            await self._registry.set_link(registered.hash, generation, link.with_origin(generation))
        return generation
