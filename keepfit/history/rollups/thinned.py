"""Note which times retention has taken snapshots from: their roll-ups know more than the snapshots that are left.

Owns the collection ``thinned``, one document for each type. Invariants: a time is noted before a snapshot of this time
becomes invisible, and stays noted; a note covers whole blocks, so that their number stays small.
"""

import itertools
import math
from collections.abc import Iterable

from pymongo.errors import DuplicateKeyError

from keepfit.history.mongo import Collection, Document, unavailable
from keepfit.history.rollups.changes import Range, union
from keepfit.times import SECONDS_MIN

BLOCK_S = 3_600.0
# Ranges of one type; if there are more, those that are nearest to each other are joined.
RANGES_MAX = 2_000


class Thinned:
    """The times, by type, of which retention has deleted snapshots."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def note(self, documents: Iterable[Document]) -> None:
        """Note the times of snapshots (their ``type`` and ``timestamp``) that are about to be deleted."""
        blocks: dict[str, set[float]] = {}
        for document in documents:
            blocks.setdefault(document["type"], set()).add(math.floor(document["timestamp"] / BLOCK_S) * BLOCK_S)
        for type_, starts in blocks.items():
            await self._add(type_, [(start, start + BLOCK_S) for start in starts])

    async def ranges(self, type_: str) -> list[Range] | None:
        """Return the ranges of time (seconds; the ends excluded) noted for a type; None if nothing ever was."""
        with unavailable():
            found = await self._collection.find_one({"_id": type_})
        return None if found is None else [(first, last) for first, last in found["ranges"]]

    async def begin(self, type_: str, before: float) -> list[Range]:
        """Do :meth:`ranges`; if nothing ever was noted, note all times before `before`.

        Earlier versions noted nothing, and thinned out what was older.
        """
        found = await self.ranges(type_)
        if found is None and before > SECONDS_MIN:
            await self._add(type_, [(SECONDS_MIN, before)])
            found = await self.ranges(type_)
        return found or []

    async def _add(self, type_: str, new: list[Range]) -> None:
        while True:
            with unavailable():
                found = await self._collection.find_one({"_id": type_})
                known = [] if found is None else [(first, last) for first, last in found["ranges"]]
                ranges = _fewer(union([*known, *new]))
                if found is not None and ranges == known:
                    return
                if found is None:
                    try:
                        await self._collection.insert_one({"_id": type_, "ranges": ranges, "count": 1})
                    except DuplicateKeyError:
                        continue
                    return
                same = {"_id": type_, "count": found["count"]}
                change = {"$set": {"ranges": ranges}, "$inc": {"count": 1}}
                if (await self._collection.update_one(same, change)).matched_count:
                    return


def _fewer(ranges: list[Range]) -> list[Range]:
    """Return at most :data:`RANGES_MAX` ranges that contain these, which are disjoint and in order."""
    while len(ranges) > RANGES_MAX:
        gaps = sorted(after[0] - before[1] for before, after in itertools.pairwise(ranges))
        width = gaps[len(ranges) - RANGES_MAX - 1]
        joined = union([(first, last + width) for first, last in ranges])
        ranges = [(first, last - width) for first, last in joined]
    return ranges
