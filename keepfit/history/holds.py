"""Holds: one process at a time works on a document of MongoDB, and another one takes over if it dies.

Owns the fields ``run`` and ``held_until`` of these documents. Invariants: each holder has a greater run number than all
before it, and changes the document only while that number is there; a holder that is not heard of for :data:`HOLD_S`
has lost its hold.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pymongo.errors import DuplicateKeyError

from keepfit.errors import UnavailableError
from keepfit.history.mongo import Collection, Document, unavailable

HOLD_S = 30.0


@dataclass(slots=True)
class Hold:
    """A hold on the document with this `id`, and whether it is known to be lost."""

    id: str
    number: int
    lost: bool = False


class Holds:
    """Holds on the documents of a collection."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def find(self, id_: str) -> Document | None:
        """Return a document; None if there is none."""
        with unavailable():
            return await self._collection.find_one({"_id": id_})

    async def take(self, id_: str, found: Document | None, change: Document) -> Hold | None:
        """Take a hold on a document and set fields of it; None if another process took it since it was `found`."""
        number = (found or {}).get("run", 0) + 1
        fields = {**change, "run": number, "held_until": time.time() + HOLD_S}
        with unavailable():
            if found is None:
                try:
                    await self._collection.insert_one({"_id": id_, **fields})
                except DuplicateKeyError:
                    return None
                return Hold(id_, number)
            same = {"_id": id_, "run": found.get("run", {"$exists": False})}
            result = await self._collection.update_one(same, {"$set": fields})
        return Hold(id_, number) if result.matched_count else None

    @asynccontextmanager
    async def held(self, hold: Hold) -> AsyncIterator[None]:
        """Renew a hold while the block works; if the block raises, release it."""
        renewal = asyncio.create_task(self._renew_often(hold))
        try:
            yield
        except BaseException:
            with contextlib.suppress(UnavailableError):
                await self.release(hold)
            raise
        finally:
            renewal.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewal

    async def _renew_often(self, hold: Hold) -> None:
        while not hold.lost:
            await asyncio.sleep(HOLD_S / 3)
            with contextlib.suppress(UnavailableError):
                await self.change(hold, {"$set": {"held_until": time.time() + HOLD_S}})

    async def change(self, hold: Hold, change: Document) -> bool:
        """Change the document; return False, and change nothing, if the hold is lost."""
        with unavailable():
            result = await self._collection.update_one({"_id": hold.id, "run": hold.number}, change)
        hold.lost = not result.matched_count
        return not hold.lost

    async def release(self, hold: Hold, change: Document | None = None) -> bool:
        """Release a hold, with a last change of the document; return whether it was still held."""
        last = change or {}
        return await self.change(hold, {**last, "$set": {**last.get("$set", {}), "held_until": 0.0}})


def is_held(document: Document) -> bool:
    """Return whether a process holds a document."""
    return bool(document.get("held_until", 0.0) > time.time())
