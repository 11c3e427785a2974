"""Progress of roll-ups: up to which time each has rolled up, and which earlier times it has to roll up again.

Owns the collection ``rollups``, one document for each roll-up; :mod:`keepfit.history.rollup_changes` has the marks of
changed times. Invariants: one process at a time holds the lease of a roll-up, and the number of its run is greater than
that of every run before; what a run takes over is pending until it has finished, so that a run that was interrupted is
repeated.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pymongo.errors import DuplicateKeyError

from keepfit.errors import UnavailableError
from keepfit.history.mongo import Collection, Document, unavailable
from keepfit.history.rollup_changes import Mark, Range, RollupChanges
from keepfit.times import SECONDS_MAX, SECONDS_MIN

# A run that is not heard of for this long has died, and its roll-up is taken over.
LEASE_S = 30.0
# Version of the form of roll-up documents; documents of a roll-up with another one are written again.
FORM = 2


@dataclass(slots=True)
class Run:
    """What the run of a roll-up with this `number` does: the `ranges` of time (seconds) to roll up.

    Intervals before `frozen_before` keep the roll-up that they have: their documents may be gone. `marks` are what it
    has found changed.
    """

    number: int
    ranges: Sequence[Range]
    frozen_before: float
    marks: Sequence[Mark] = ()
    lost: bool = field(default=False)


class RollupProgress:
    """Reads and writes the progress of roll-ups."""

    def __init__(self, collection: Collection, changes: RollupChanges) -> None:
        self._collection = collection
        self._changes = changes

    async def find(self, id_: str) -> Document | None:
        """Return the progress of a roll-up; None if it has never run."""
        with unavailable():
            return await self._collection.find_one({"_id": id_})

    async def describe(self, id_: str) -> Document:
        """Return up to which time (``until``, None: not yet) a roll-up has rolled up, and its ``state``.

        The state is ``new``, ``running or interrupted``, ``has late documents``, or ``up to date``.
        """
        found = await self.find(id_) or {}
        state = "up to date" if found.get("form") == FORM else "new"
        if any(mark.new and mark.first < found.get("until", SECONDS_MIN) for mark in await self._changes.find(id_)):
            state = "has late documents"
        if "pending" in found:
            state = "running or interrupted"
        return {"until": found.get("until"), "state": state}

    @asynccontextmanager
    async def run(self, id_: str, type_: str, stop: float) -> AsyncIterator[Run | None]:
        """Hold the lease of the roll-up of documents of a type while the block rolls up to `stop` (seconds).

        Yields None if there is nothing to do, or another process does it. If the block raises, or the lease was lost,
        the next run does it again.
        """
        run = await self._begin(id_, type_, stop)
        if run is None:
            yield None
            return
        renewal = asyncio.create_task(self._renew_often(id_, run))
        try:
            yield run
        except BaseException:
            with contextlib.suppress(UnavailableError):
                await self._release(id_, run, {})
            raise
        finally:
            renewal.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewal
        if await self._release(id_, run, {"$unset": {"pending": ""}}):
            await self._changes.finish(run.marks)

    async def _begin(self, id_: str, type_: str, stop: float) -> Run | None:
        while True:
            found = await self.find(id_)
            # Version 0.1 wrote no form. All is rolled up again, but not what may have expired since.
            known: Document = found if found is not None and found.get("form") == FORM else {}
            if known.get("lease", 0.0) > time.time():
                return None
            marks = [mark for mark in await self._changes.find(id_) if mark.first < stop]
            ranges = [(first, last) for first, last in known.get("pending", ())]
            ranges += [(mark.first, mark.last) for mark in marks]
            before_s = SECONDS_MIN if found is None else float(found.get("until", SECONDS_MIN))
            if not known or known["until"] < stop:
                ranges.append((before_s if known else SECONDS_MIN, stop))
            if not ranges:
                return None
            frozen = float((found or {}).get("frozen_before", SECONDS_MIN if known else before_s))
            number = (found or {}).get("run", 0) + 1
            change = {
                "type": type_, "form": FORM, "until": max(before_s, stop), "frozen_before": frozen, "run": number,
                "pending": union(ranges), "lease": time.time() + LEASE_S,
            }  # fmt: skip
            if await self._set(id_, found, change):
                return Run(number, union(ranges), frozen, marks)

    async def _set(self, id_: str, found: Document | None, change: Document) -> bool:
        """Change the progress of a roll-up; return False if another run has begun since it was read."""
        with unavailable():
            if found is None:
                try:
                    await self._collection.insert_one({"_id": id_, **change})
                except DuplicateKeyError:
                    return False
                return True
            same = {"_id": id_, "run": found.get("run", {"$exists": False})}
            result = await self._collection.update_one(same, {"$set": change})
        return bool(result.matched_count)

    async def _renew_often(self, id_: str, run: Run) -> None:
        while not run.lost:
            await asyncio.sleep(LEASE_S / 3)
            with contextlib.suppress(UnavailableError):
                await self.renew(id_, run)

    async def renew(self, id_: str, run: Run) -> bool:
        """Renew the lease of a run; return whether it still holds it."""
        with unavailable():
            change = {"$set": {"lease": time.time() + LEASE_S}}
            result = await self._collection.update_one({"_id": id_, "run": run.number}, change)
        run.lost = not result.matched_count
        return not run.lost

    async def _release(self, id_: str, run: Run, change: Document) -> bool:
        with unavailable():
            released = {**change, "$set": {"lease": 0.0}}
            result = await self._collection.update_one({"_id": id_, "run": run.number}, released)
        return bool(result.matched_count)

    async def expire(self, type_: str | None, but: Sequence[str], stop: float) -> None:
        """Note that documents of a type (None: all but those in `but`) before `stop` (seconds) are deleted.

        Call it before they are deleted.
        """
        where = {"type": {"$nin": list(but)} if type_ is None else type_}
        with unavailable():
            await self._collection.update_many(where, {"$max": {"frozen_before": stop}})

    async def mark_all(self, id_: str, *, force: bool = False) -> None:
        """Mark all times of one roll-up; with `force` also forget that documents may be gone."""
        await self._changes.mark(id_, SECONDS_MIN, SECONDS_MAX)
        if force:
            with unavailable():
                await self._collection.update_one({"_id": id_}, {"$set": {"frozen_before": SECONDS_MIN}})


def union(ranges: Iterable[Range]) -> list[Range]:
    """Return the union of ranges, in order.

    >>> union([(5.0, 9.0), (1.0, 2.0), (8.0, 10.0)])
    [(1.0, 2.0), (5.0, 10.0)]
    """
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found
