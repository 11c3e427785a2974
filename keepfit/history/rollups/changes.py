"""Note which times roll-ups have to roll up again, because documents of these times are written or deleted.

Owns the collection ``rollup_changes``: for each roll-up one change mark per block of time in which something changes.
Every call that changes documents does so inside of :meth:`RollupChanges.writing` or :meth:`RollupChanges.deleting`.
Documents of a roll-up that a user deletes are marked for that roll-up, which writes them again.

Invariants: a mark exists before the change that it is about, so that a process that dies between the two has marked too
much, never too little. A mark is removed only by a run that began more than :data:`WRITE_S` after it was set, and only
if it was not set again since: a change that was still on its way when the run read is rolled up by a later one.
"""

import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from pymongo import ASCENDING, DeleteOne, UpdateOne, WriteConcern
from pymongo.errors import BulkWriteError

from keepfit.history.mongo import Database, Document, unavailable

Range = tuple[float, float]

# Blocks of marks in seconds. A call that would mark more than MARKS_MAX blocks marks larger ones.
BLOCKS_S = (300.0, 3_600.0, 86_400.0, 30 * 86_400.0)
MARKS_MAX = 32
# More than a call can take between its mark and its last write, with all retries.
WRITE_S = 150.0
# For how long a process relies on the roll-ups that it found. One that is new since is noticed after the write.
KNOWN_S = 10.0
DUPLICATE_KEY = 11000


@dataclass(frozen=True, slots=True)
class Mark:
    """A block of time (seconds; `last` excluded) in which something changed, and how often it was marked.

    It is `new` if no run has rolled it up since it was last set, `settled` if no change can still be on its way.
    """

    id: str
    first: float
    last: float
    count: int
    new: bool
    settled: bool


class RollupChanges:
    """Marks changes of documents for the roll-ups of their type."""

    def __init__(self, database: Database, journaled: WriteConcern) -> None:
        self._database = database
        self._marks = database.get_collection("rollup_changes", write_concern=journaled)
        self._rollups = database.get_collection("rollups", write_concern=journaled)
        self._known: dict[tuple[str | None, bool], tuple[float, frozenset[str]]] = {}

    async def ensure_indexes(self) -> None:
        """Create the indexes by which roll-ups of a type, and their marks, are found."""
        await self._rollups.create_index([("type", ASCENDING)])
        await self._marks.create_index([("rollup", ASCENDING), ("last", ASCENDING)])

    @asynccontextmanager
    async def writing(self, documents: Iterable[Document], *, are_deleted: bool = False) -> AsyncIterator[None]:
        """Mark the times of documents (their ``type`` and ``timestamp``) that the block stores, or deletes."""
        times: dict[str, list[float]] = {}
        for document in documents:
            times.setdefault(document["type"], []).append(document["timestamp"])
        async with self._changing({type_: blocks_of(some) for type_, some in times.items()}, are_deleted):
            yield

    @asynccontextmanager
    async def deleting(self, type_: str | None, first: float, last: float) -> AsyncIterator[None]:
        """Mark times (seconds; `last` excluded) of which the block deletes documents of a type (None: any)."""
        async with self._changing({type_: [(first, last)]}, are_deleted=True):
            yield

    @asynccontextmanager
    async def _changing(self, ranges: Mapping[str | None, Sequence[Range]], are_deleted: bool) -> AsyncIterator[None]:
        marked = {type_: await self._rollups_of(type_, are_deleted, KNOWN_S) for type_ in ranges}
        await self._mark(marked, ranges)
        yield
        # A roll-up that is new since may have read before the documents were written.
        new = {type_: await self._rollups_of(type_, are_deleted, 0.0) - marked[type_] for type_ in ranges}
        await self._mark(new, ranges)

    async def _rollups_of(self, type_: str | None, are_deleted: bool, age_s: float) -> frozenset[str]:
        """Return the identifiers of the roll-ups of a type (None: of all), as they were at most `age_s` ago.

        If documents of the type are deleted, those whose own documents have this type too.
        """
        read_s, found = self._known.get((type_, are_deleted), (-math.inf, frozenset()))
        if time.monotonic() - read_s >= age_s:
            named = {"$exists": True} if type_ is None else {"$in": [type_, type_.rpartition("/")[0]]}
            read_s = time.monotonic()
            with unavailable():
                records = await self._rollups.find({"type": named}, {"type": 1, "declared": 1}).to_list(None)
            types = {each["_id"]: [each["type"], *([target_of(each)] if are_deleted else [])] for each in records}
            found = frozenset(id_ for id_, some in types.items() if type_ is None or type_ in some)
            if len(self._known) >= 1_000:
                self._known.clear()
            self._known[type_, are_deleted] = (read_s, found)
        return found

    async def _mark(
        self, rollups: Mapping[str | None, Iterable[str]], ranges: Mapping[str | None, Sequence[Range]]
    ) -> None:
        marks = [
            UpdateOne(
                {"_id": f"{rollup}/{first!r}/{last!r}"},
                {
                    "$set": {"rollup": rollup, "first": first, "last": last},
                    "$inc": {"count": 1},
                    # The server's clock, which all processes share.
                    "$currentDate": {"at": True},
                },
                upsert=True,
            )
            for type_, some in rollups.items()
            for rollup in some
            for first, last in ranges[type_]
        ]
        if not marks:
            return
        with unavailable():
            try:
                await self._marks.bulk_write(marks, ordered=False)
            except BulkWriteError as error:
                if {fault["code"] for fault in error.details["writeErrors"]} != {DUPLICATE_KEY}:
                    raise
                # A concurrent call inserted it: it exists now and is set again.
                await self._marks.bulk_write(marks, ordered=False)

    async def find(self, rollup: str, start: float | None = None) -> list[Mark]:
        """Return the marks of a roll-up that end after `start` (None: all)."""
        first: Document = {"rollup": rollup} if start is None else {"rollup": rollup, "last": {"$gt": start}}
        with unavailable():
            now = (await self._database.command("hello"))["localTime"]
            found = await self._marks.find(first).to_list(None)
        return [_to_mark(each, now) for each in found]

    async def finish(self, marks: Iterable[Mark]) -> None:
        """Note that a run has rolled up what these marks are about; what ends later is still to be rolled up anyway.

        Marks that are settled are removed, unless they were set again since they were read.
        """
        changes = [
            DeleteOne({"_id": mark.id, "count": mark.count})
            if mark.settled
            else UpdateOne({"_id": mark.id, "count": mark.count}, {"$set": {"done": mark.count}})
            for mark in marks
            if mark.settled or mark.new
        ]
        if changes:
            with unavailable():
                await self._marks.bulk_write(changes, ordered=False)


def target_of(record: Document) -> str | None:
    """Return the type of the documents of the roll-up with this record of progress; version 0.1 wrote none."""
    return f"{record['type']}/{record['declared'][0]}" if "declared" in record else None


def _to_mark(document: Document, now: datetime) -> Mark:
    at = document["at"]
    # A driver returns times with or without a zone, as it was opened; both are UTC.
    age = now.replace(tzinfo=None) - at.replace(tzinfo=None)
    return Mark(
        document["_id"], document["first"], document["last"], document["count"],
        new=document.get("done") != document["count"], settled=age > timedelta(seconds=WRITE_S),
    )  # fmt: skip


def blocks_of(times: Sequence[float]) -> list[Range]:
    """Return the blocks of time that contain these times: the smallest ones of which there are not too many.

    >>> blocks_of([10.0, 299.0, 3601.0])
    [(0.0, 300.0), (3600.0, 3900.0)]
    >>> blocks_of([300.0 * number for number in range(60)])[:2]
    [(0.0, 3600.0), (3600.0, 7200.0)]
    """
    for size in BLOCKS_S:
        numbers = sorted({math.floor(at / size) for at in times})
        if len(numbers) <= MARKS_MAX:
            break
    return [(number * size, (number + 1) * size) for number in numbers]


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
