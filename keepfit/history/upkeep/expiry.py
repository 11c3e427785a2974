"""Expiry: delete old documents of a type that has roll-ups, which keep them.

Owns the collection ``rollup_expiries``, one document for each type: the number of its last expiry and its stage. An
expiry marks the documents that are about to go (``marking``), has each roll-up merge exactly these into the bases of
its documents (``merging``), then deletes exactly these (``deleting``). A document that is stored meanwhile, or later,
with a time that has expired is not marked: its roll-up adds it to the base, and the next expiry takes it.

Invariants: a document is deleted only after each roll-up has it in a base, and it is in each base once, whatever dies
in between: no document is marked for an expiry once its roll-ups merge, and a base has the number of the expiry that it
contains.
"""

from collections.abc import Awaitable, Callable

from keepfit.history.holds import Hold, Holds, is_held
from keepfit.history.mongo import UPKEEP_TIMEOUT_S, Document, long_call
from keepfit.history.queries import reading
from keepfit.history.queries.filters import Filter
from keepfit.history.timeline import Timeline
from keepfit.history.upkeep.rollups import Absorption
from keepfit.history.writing.stored import BATCH_DOCUMENTS

MARKING, MERGING, DELETING, DONE = "marking", "merging", "deleting", "done"
# Has all roll-ups of a type absorb the documents of an expiry; returns whether they have.
Absorb = Callable[[Absorption], Awaitable[bool]]
WINDOW_S = 86_400.0
WINDOW_DOCUMENTS = 10_000


async def expire(timeline: Timeline, type_: str, stop: float, absorb: Absorb) -> int:
    """Delete stored documents of a type before `stop` (seconds), once its roll-ups have them; return their number.

    Goes on with an expiry that was interrupted. If another process does the same at the moment, nothing is done.

    Raises
    ------
    UnavailableError
        If MongoDB is unavailable. The call can be repeated.
    """
    holds = Holds(timeline.rollup_expiries)
    found = await holds.find(type_)
    if found is not None and is_held(found):
        return 0
    number, stage = (0, DONE) if found is None else (int(found["number"]), found["stage"])
    if stage == DONE and not await _has_any(timeline, type_, stop):
        return 0
    if stage in (MERGING, DELETING) and found is not None:
        stop = float(found["stop"])
    else:
        # Also for one that was interrupted while it marked: what its marks are on is not deleted.
        number, stage = number + 1, MARKING
    hold = await holds.take(type_, found, {"number": number, "stage": stage, "stop": stop})
    if hold is None:
        return 0
    expiry = _Expiry(timeline, holds, hold, type_, Absorption(number, stop))
    async with holds.held(hold):
        deleted = await expiry.run(stage, absorb)
    await holds.release(hold)
    return deleted


class _Expiry:
    def __init__(self, timeline: Timeline, holds: Holds, hold: Hold, type_: str, what: Absorption) -> None:
        self._timeline = timeline
        self._holds = holds
        self._hold = hold
        self._type = type_
        self._what = what

    async def run(self, stage: str, absorb: Absorb) -> int:
        """Do the stages from this one on; return the number of documents deleted."""
        if stage == MARKING:
            await self._mark()
            if not await self._advance(MERGING):
                return 0
            stage = MERGING
        if stage == MERGING and not (await absorb(self._what) and await self._advance(DELETING)):
            return 0
        deleted = await self._delete()
        await self._advance(DONE)
        return deleted

    async def _advance(self, stage: str) -> bool:
        return await self._holds.change(self._hold, {"$set": {"stage": stage}})

    async def _mark(self) -> None:
        stored = self._timeline.stored

        async def mark(low: float | None, high: float | None) -> int:
            if self._hold.lost:
                return 0
            # The range alone: a server may use no index for a condition with more.
            where = stored.source.match_stages(Filter(self._type), low, high)[0]["$match"]
            async with long_call(stored.database, UPKEEP_TIMEOUT_S):
                change = {"$set": {"expiring": self._what.expiry}}
                result = await stored.source.collection.update_many(where, change)
            return int(result.matched_count)

        await self._for_windows(mark)

    async def _delete(self) -> int:
        stored, deleted = self._timeline.stored, 0
        marked: Document = {"expiring": self._what.expiry}

        async def delete(low: float | None, high: float | None) -> int:
            nonlocal deleted
            if self._hold.lost:
                return 0
            stages = stored.source.match_stages(Filter(self._type), low, high)
            async with long_call(stored.database, UPKEEP_TIMEOUT_S):
                found = stored.source.collection.aggregate([*stages, {"$match": marked}, {"$project": {"_id": 1}}])
                ids = [each["_id"] async for each in found]
                for first in range(0, len(ids), BATCH_DOCUMENTS):
                    # Not those that were replaced since: what replaced them is not in a base.
                    some: Document = {"_id": {"$in": ids[first : first + BATCH_DOCUMENTS]}}
                    result = await stored.source.collection.delete_many({**some, **marked})
                    deleted += int(result.deleted_count)
            return len(ids)

        await self._for_windows(delete)
        return deleted

    async def _for_windows(self, fetch: Callable[[float | None, float | None], Awaitable[int]]) -> None:
        stop = self._what.stop
        async for _ in reading.fetch_windows(fetch, None, stop, stop, WINDOW_S, WINDOW_DOCUMENTS):
            pass


async def _has_any(timeline: Timeline, type_: str, stop: float) -> bool:
    """Return whether there is a stored document of a type before `stop`."""
    source = timeline.stored.source
    for age_s in (WINDOW_S, 30 * WINDOW_S, None):
        start = None if age_s is None else stop - age_s
        async with long_call(timeline.stored.database):
            pipeline = [*source.match_stages(Filter(type_), start, stop), {"$limit": 1}, {"$project": {"_id": 1}}]
            if await source.collection.aggregate(pipeline).to_list(1):
                return True
    return False
