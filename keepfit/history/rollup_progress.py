"""Progress of roll-ups: up to which time each has rolled up, and which earlier times it has to roll up again.

Owns the collection ``rollups``, one document for each roll-up. Calls that store or delete documents mark the times of
these afterwards; a mark of times that a roll-up has passed makes its next run do them again. Invariants: a run sets its
end before it reads, so that documents which are stored meanwhile are marked; what a run takes over is pending until it
has finished, so that a run that was interrupted is repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pymongo.errors import DuplicateKeyError

from keepfit.history.mongo import Collection, Document, unavailable
from keepfit.times import SECONDS_MAX, SECONDS_MIN

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Run:
    """What the run of a roll-up with this `number` does: the `ranges` of time (seconds) to roll up.

    Documents before `expired_before` may have been deleted since they were rolled up.
    """

    number: int
    ranges: Sequence[Range]
    expired_before: float


class RollupProgress:
    """Reads and writes the progress of roll-ups."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def _find(self, id_: str) -> Document | None:
        with unavailable():
            return await self._collection.find_one({"_id": id_})

    async def describe(self, id_: str) -> Document:
        """Return up to which time (``until``, None: not yet) a roll-up has rolled up, and its ``state``.

        The state is ``new``, ``running or interrupted``, ``has late documents``, or ``up to date``.
        """
        found = await self._find(id_) or {}
        state = "up to date" if "type" in found else "new"
        if "late_from" in found:
            state = "has late documents"
        if "pending" in found:
            state = "running or interrupted"
        return {"until": found.get("until"), "state": state}

    async def begin(self, id_: str, type_: str, stop: float, expired_before: float) -> Run | None:
        """Begin a run of the roll-up of documents of a type, up to `stop`; return None if there is nothing to do."""
        while True:
            found = await self._find(id_)
            # Version 0.1 wrote neither type nor marks. All is rolled up again, but not what may have expired since.
            known: Document = found if found is not None and "type" in found else {}
            ranges = [(first, last) for first, last in known.get("pending", ())]
            if "late_from" in known:
                ranges.append((known["late_from"], known["late_to"]))
            if not known or known["until"] < stop:
                ranges.append((known.get("until", SECONDS_MIN), stop))
            if not ranges:
                return None
            before_s = SECONDS_MIN if found is None else float(found["until"])
            least = SECONDS_MIN if known else before_s
            expired = max(expired_before, float((found or {}).get("expired_before", least)))
            number = known.get("marks", 0) + 1
            change = {
                "type": type_, "until": max(before_s, stop), "expired_before": expired, "marks": number, "run": number,
                "pending": _union(ranges),
            }  # fmt: skip
            if await self._set(id_, found, change):
                return Run(number, ranges, expired)

    async def _set(self, id_: str, found: Document | None, change: Document) -> bool:
        """Change the progress of a roll-up; return False if it has changed since it was read."""
        with unavailable():
            if found is None:
                try:
                    await self._collection.insert_one({"_id": id_, **change})
                except DuplicateKeyError:
                    return False
                return True
            same = {"_id": id_, "marks": found.get("marks", {"$exists": False})}
            late = {"late_from": "", "late_to": ""}
            result = await self._collection.update_one(same, {"$set": change, "$unset": late})
        return bool(result.matched_count)

    async def finish(self, id_: str, run: Run) -> None:
        """Note that a run is complete, unless another one has begun, which does the same again."""
        with unavailable():
            await self._collection.update_one({"_id": id_, "run": run.number}, {"$unset": {"pending": ""}})

    async def mark(self, type_: str | None, first: float, last: float) -> None:
        """Mark that documents of a type (None: any) from `first` to `last` (seconds) were stored or deleted."""
        await self._mark({} if type_ is None else {"type": type_}, first, last)

    async def mark_documents(self, documents: Sequence[Document]) -> None:
        """Mark the times of documents that were stored."""
        times: dict[str, list[float]] = {}
        for document in documents:
            times.setdefault(document["type"], []).append(document["timestamp"])
        for type_, some in times.items():
            await self.mark(type_, min(some), max(some))

    async def mark_all(self, id_: str, *, force: bool = False) -> None:
        """Mark all times of one roll-up; with `force` also forget that documents may have expired."""
        await self._mark({"_id": id_}, SECONDS_MIN, SECONDS_MAX)
        if force:
            with unavailable():
                await self._collection.update_one({"_id": id_}, {"$set": {"expired_before": SECONDS_MIN}})

    async def _mark(self, where: dict[str, Any], first: float, last: float) -> None:
        change = {"$min": {"late_from": first}, "$max": {"late_to": last}, "$inc": {"marks": 1}}
        with unavailable():
            await self._collection.update_many({**where, "until": {"$gt": first}}, change)

    async def expire(self, type_: str | None, but: Sequence[str], stop: float) -> None:
        """Note that documents of a type (None: all but those in `but`) before `stop` (seconds) are deleted.

        Call it before they are deleted.
        """
        where = {"type": {"$nin": list(but)} if type_ is None else type_}
        with unavailable():
            await self._collection.update_many(where, {"$max": {"expired_before": stop}})


def _union(ranges: Sequence[Range]) -> list[list[float]]:
    """Return the union of ranges, in order.

    >>> _union([(5.0, 9.0), (1.0, 2.0), (8.0, 10.0)])
    [[1.0, 2.0], [5.0, 10.0]]
    """
    found: list[list[float]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1][1] = max(found[-1][1], last)
        else:
            found.append([first, last])
    return found
