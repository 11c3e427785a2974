"""Progress of roll-ups: up to which time each has rolled up, and which earlier times it has to roll up again.

Owns the collection ``rollups``, one document for each roll-up; :mod:`keepfit.history.rollups.changes` has the marks of
changed times. Invariants: one process at a time holds the hold of a roll-up; what a run takes over is pending until it
has finished, so that a run that was interrupted is repeated; a new roll-up rolls up everything again once all writes
have ended that may have begun without knowing of it.
"""

import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from keepfit.history.holds import Hold, Holds, is_held
from keepfit.history.mongo import Collection, Document, unavailable
from keepfit.history.rollups.changes import KNOWN_S, WRITE_S, Mark, Range, RollupChanges, target_of, union
from keepfit.history.rollups.documents import Rollup
from keepfit.times import SECONDS_MAX, SECONDS_MIN

# When writes have ended that began before a roll-up, or soon after, and marked nothing for it.
UNMARKED_S = KNOWN_S + WRITE_S
# Version of the form of roll-up documents; all documents of a roll-up with another one are written again.
FORM = 2


@dataclass(slots=True)
class Run:
    """What a run of a roll-up does: the `ranges` of time (seconds) to roll up, because of `marks` and others.

    Intervals before `frozen_before` keep the roll-up that version 0.1 wrote: their documents may be gone. With `force`
    nothing is kept. The run has `finished` if all of it is done.
    """

    hold: Hold
    ranges: Sequence[Range]
    marks: Sequence[Mark]
    frozen_before: float
    force: bool = False
    finished: bool = False


class RollupProgress:
    """Reads and writes the progress of roll-ups."""

    def __init__(self, collection: Collection, changes: RollupChanges) -> None:
        self._collection = collection
        self._holds = Holds(collection)
        self._changes = changes

    async def describe(self, id_: str) -> Document:
        """Return up to which time (``until``, None: not yet) a roll-up has rolled up, and its ``state``.

        The state is ``new``, ``running or interrupted``, ``has late documents``, or ``up to date``.
        """
        found = await self._holds.find(id_) or {}
        state = "up to date" if found.get("form") == FORM else "new"
        if any(mark.new and mark.first < found.get("until", SECONDS_MIN) for mark in await self._changes.find(id_)):
            state = "has late documents"
        if "pending" in found:
            state = "running or interrupted"
        return {"until": found.get("until"), "state": state}

    async def of_type(self, type_: str) -> list[tuple[Rollup, Document]]:
        """Return the roll-ups of documents of a type that have run, and their progress."""
        with unavailable():
            found = await self._collection.find({"type": type_, "form": FORM}).to_list(None)
        return [(Rollup(type_, *each["declared"]), each) for each in found if "declared" in each]

    async def dirty(self, found: Document, start: float) -> list[Range]:
        """Return the times of which documents may differ from what a roll-up with this progress has.

        At least those after `start` (seconds).
        """
        marks = await self._changes.find(found["_id"], start)
        return [
            (SECONDS_MIN, max(found["frozen_before"], found.get("gone_before", SECONDS_MIN))),
            (found["until"], SECONDS_MAX),
            *((first, last) for first, last in found.get("pending", ())),
            *((mark.first, mark.last) for mark in marks),
        ]

    async def note_gone(self, but: Sequence[str], type_: str | None, stop: float) -> None:
        """Note that documents of a type (None: all but those in `but`) before `stop` (seconds) are about to expire.

        If they are those of roll-ups, queries before this time are answered from what these aggregate.
        """
        with unavailable():
            records = await self._collection.find({"type": {"$exists": True}}, {"type": 1, "declared": 1}).to_list(None)
            for each in records:
                target = target_of(each)
                if target is not None and (target not in but if type_ is None else target == type_):
                    await self._collection.update_one({"_id": each["_id"]}, {"$max": {"gone_before": stop}})

    @asynccontextmanager
    async def run(
        self,
        rollup: Rollup,
        stop: float,
        *,
        of_snapshots: bool,
        always: bool = False,
        everything: bool = False,
        force: bool = False,
    ) -> AsyncIterator[Run | None]:
        """Hold a roll-up while the block rolls up to `stop` (seconds); `of_snapshots` says what it aggregates.

        Yields None if another process holds it, or if there is nothing to do, unless `always`. A run of `everything`
        rolls up all times again. If the block raises, or the hold was lost, the next run does the same again.
        """
        what = {
            "type": rollup.type,
            "declared": [rollup.every, rollup.field, rollup.group],
            "of_snapshots": of_snapshots,
        }
        run = await self._begin(rollup.id, what, stop, always=always, everything=everything or force, force=force)
        if run is None:
            yield None
            return
        async with self._holds.held(run.hold):
            yield run
        if await self._holds.release(run.hold, {"$unset": {"pending": "", "force": ""}}):
            run.finished = True
            await self._changes.finish(run.marks)

    async def _begin(
        self, id_: str, what: Document, stop: float, *, always: bool, everything: bool, force: bool
    ) -> Run | None:
        while True:
            found = await self._holds.find(id_)
            # Version 0.1 wrote no form. All is rolled up again, but not what may have expired since.
            known: Document = found if found is not None and found.get("form") == FORM else {}
            if is_held(known):
                return None
            marks = [mark for mark in await self._changes.find(id_) if mark.first < stop]
            ranges = [(first, last) for first, last in known.get("pending", ())]
            ranges += [(mark.first, mark.last) for mark in marks]
            before_s = SECONDS_MIN if found is None else float(found.get("until", SECONDS_MIN))
            # A type of which there are snapshots now had only documents of users before.
            is_other = known.get("of_snapshots") != what["of_snapshots"]
            # A process that died within such a write left documents without a mark.
            again_at = known.get("again_at", math.inf) if known else time.time() + UNMARKED_S
            is_again = again_at <= time.time()
            if everything or is_other or is_again:
                ranges.append((SECONDS_MIN, stop))
            elif known["until"] < stop:
                ranges.append((before_s, stop))
            if not ranges and not always:
                return None
            frozen = float((found or {}).get("frozen_before", SECONDS_MIN if known else before_s))
            force = force or bool(known.get("force"))
            run = Run(Hold(id_, 0), union(ranges), marks, SECONDS_MIN if force else frozen, force)
            change = {
                **what, "form": FORM, "until": max(before_s, stop), "frozen_before": run.frozen_before,
                "pending": run.ranges, "force": force, "again_at": math.inf if is_again else again_at,
            }  # fmt: skip
            hold = await self._holds.take(id_, found, change)
            if hold is not None:
                run.hold = hold
                return run
