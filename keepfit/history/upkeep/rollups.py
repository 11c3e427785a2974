"""Roll-ups: aggregate documents per interval into documents that remain when the originals are deleted.

Owns what a run of a roll-up writes; :mod:`keepfit.history.rollups.progress` says which times it rolls up,
:mod:`keepfit.history.rollups.documents` what a document has. Invariants: only intervals that have ended are rolled up,
but for those whose documents expire earlier; an interval of which snapshots were deleted by retention keeps the roll-up
that it has, and one of which documents have expired keeps these in it; a run that has lost its hold replaces nothing
that its successor wrote.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keepfit.errors import InvalidError, MalformedError, SettingsError
from keepfit.history.mongo import Document
from keepfit.history.queries import reading
from keepfit.history.queries.buckets import as_array, bucket_numbers, bucket_starts
from keepfit.history.queries.filters import Filter
from keepfit.history.queries.sources import SnapshotSource, Source
from keepfit.history.rollups.changes import Range
from keepfit.history.rollups.documents import Base, Rollup, base_of, group_of, is_of, to_document
from keepfit.history.rollups.progress import Run
from keepfit.history.rollups.reading import Intervals, Place, merged, read_intervals
from keepfit.history.rollups.summaries import Summary
from keepfit.history.timeline import Timeline
from keepfit.times import SECONDS_MIN

WAIT_S = 0.5


def parse(text: str) -> list[Rollup]:
    """Parse the roll-ups of a setting.

    >>> parse("shoes 5m metrics.r2, shoes 1h rows_seen brand")[1]
    Rollup(type='shoes', every='1h', field='rows_seen', group='brand')

    Raises
    ------
    SettingsError
        If one is not a roll-up.
    """
    rollups = []
    for part in filter(None, map(str.strip, text.split(","))):
        words = part.split()
        if not 3 <= len(words) <= 4:
            raise SettingsError(f"KEEPFIT_HISTORY_ROLLUPS: {part!r} is not TYPE EVERY FIELD [GROUP].")
        try:
            rollups.append(Rollup(*words))
        except (MalformedError, InvalidError) as error:
            raise SettingsError(f"KEEPFIT_HISTORY_ROLLUPS: {part!r} is not a roll-up: {error}") from None
    return rollups


@dataclass(frozen=True, slots=True)
class Absorption:
    """Documents with a time before `stop` (seconds) that are marked for the expiry with this number are about to go."""

    expiry: int
    stop: float


async def roll_up(
    timeline: Timeline, rollup: Rollup, now: float | None = None, keep_snapshots_s: float = math.inf
) -> int:
    """Bring a roll-up up to date and return the number of documents that changed.

    Rolls up the intervals that have ended since the last call, and earlier ones of which documents were stored or
    deleted since. All snapshots are kept for `keep_snapshots_s`; later only some are left. If another process rolls up
    at the moment, nothing is done.

    Raises
    ------
    UnavailableError
        If MongoDB is unavailable. The roll-up can be repeated; what was rolled up before stays.
    """
    written, _ = await _run(timeline, rollup, now, keep_snapshots_s)
    return written


async def absorb(
    timeline: Timeline, rollup: Rollup, absorption: Absorption, now: float, keep_snapshots_s: float
) -> tuple[int, bool]:
    """Bring a roll-up up to date, and have it keep documents that are about to be deleted.

    Returns the number of documents that changed, and whether all is done; otherwise it must be repeated. Raises what
    :func:`roll_up` raises.
    """
    return await _run(timeline, rollup, now, keep_snapshots_s, absorption)


async def rebuild(timeline: Timeline, rollup: Rollup, now: float | None = None, *, force: bool = False) -> int:
    """Roll up all intervals again, from the documents that there are; return the number of documents that changed.

    Documents that have expired stay in the roll-ups of their intervals, unless `force`. Waits for another process that
    rolls up at the moment. Raises what :func:`roll_up` raises.
    """
    while True:
        written, finished = await _run(timeline, rollup, now, everything=True, force=force)
        if finished:
            return written
        await asyncio.sleep(WAIT_S)


async def _run(
    timeline: Timeline,
    rollup: Rollup,
    now: float | None,
    keep_snapshots_s: float = math.inf,
    absorption: Absorption | None = None,
    *,
    everything: bool = False,
    force: bool = False,
) -> tuple[int, bool]:
    """Run a roll-up; return the number of documents that changed, and whether it has finished."""
    now = time.time() if now is None else now
    stop, written = _bucket_start(now, rollup.every_s), 0
    sources = await timeline.sources(Filter(rollup.type), rollup.field)
    of_snapshots = any(isinstance(source, SnapshotSource) for source in sources)
    thinned: Sequence[Range] = ()
    if of_snapshots:
        thinned = await timeline.thinned.begin(rollup.type, max(now - keep_snapshots_s, SECONDS_MIN))
    always = absorption is not None
    progress = timeline.rollup_progress.run(
        rollup, stop, of_snapshots=of_snapshots, always=always, everything=everything, force=force
    )
    async with progress as run:
        if run is None:
            return 0, False
        work = _Work(timeline, rollup, run, sources, thinned)
        for first, last in _whole_intervals(run.ranges, rollup.every_s, stop):
            written += await work.roll_up(first, last)
        if absorption is not None:
            written += await work.roll_up(None, _bucket_start(absorption.stop, rollup.every_s, 1), absorption.expiry)
    return written, run.finished


def _whole_intervals(ranges: Iterable[Range], every: float, stop: float) -> list[tuple[float | None, float]]:
    """Return ranges of time extended to whole intervals before `stop`, disjoint; None stands for the beginning.

    >>> _whole_intervals([(20.0, 30.0), (SECONDS_MIN, 3.0), (8.0, 12.0), (9.0, 10.0), (70.0, 80.0)], 5.0, 25.0)
    [(None, 5.0), (5.0, 15.0), (20.0, 25.0)]
    """
    found: list[tuple[float | None, float]] = []
    for first, last in sorted(ranges):
        start = None if first <= SECONDS_MIN else _bucket_start(first, every)
        # The end is excluded: at the start of an interval it is not in it.
        end = stop if last >= stop else _bucket_start(math.nextafter(last, -math.inf), every, 1)
        if found and (start is None or start < found[-1][1]):
            start = found[-1][1]
        if start is None or start < min(end, stop):
            found.append((start, min(end, stop)))
    return found


@dataclass(frozen=True, slots=True)
class _Work:
    """One run of a roll-up; intervals in the `thinned` ranges keep the roll-up that they have."""

    timeline: Timeline
    rollup: Rollup
    run: Run
    sources: Sequence[Source]
    thinned: Sequence[Range]

    async def roll_up(self, start: float | None, stop: float, expiry: int | None = None) -> int:
        """Roll up the whole intervals of a range of time; return the number of documents that changed.

        With an `expiry` only those intervals that have documents that are marked for it, which become a part of their
        bases.
        """
        every, written = self.rollup.every_s, 0

        async def fetch(low: float | None, high: float | None) -> int:
            nonlocal written
            # Extend windows to whole intervals; neighbouring windows still share their bounds.
            first, last = (None if edge is None else _bucket_start(edge, every) for edge in (low, high))
            if first == last or self.run.hold.lost:
                return 0
            database = self.timeline.stored.database
            found = await read_intervals(database, self.sources, self.rollup, first, last)
            written += await self._replace(found, first, last, expiry)
            return found.count

        width = max(reading.COLUMNS_WINDOW_S, every)
        async for _ in reading.fetch_windows(fetch, start, stop, stop, width, reading.COLUMNS_CHUNK):
            pass
        return written

    async def _replace(self, found: Intervals, start: float | None, stop: float | None, expiry: int | None) -> int:
        """Replace the roll-up documents of whole intervals; return the number of documents that changed."""
        stored, rollup, number = self.timeline.stored, self.rollup, self.run.hold.number
        # Other roll-ups, by another group, and users may have documents of the same type.
        listed = [each for each in await stored.list_all(rollup.target, start, stop) if is_of(rollup, each)]
        old = {_place(rollup, each): each for each in listed}
        changed: list[Document] = []
        gone: list[Document] = []
        for place in found.summaries.keys() | old.keys():
            parts, before = found.summaries.get(place, {}), old.get(place)
            if (expiry is not None and expiry not in parts) or (before is not None and self._is_frozen(place[0])):
                continue
            base = None if before is None or self.run.force else base_of(before)
            if expiry is not None and (base is None or base.expiry < expiry):
                base = Base(Summary.merged([*([base.summary] if base else []), *parts[expiry]]), expiry)
            summaries = merged(parts, None if base is None else base.expiry)
            if base is not None:
                summaries.append(base.summary)
            if summaries:
                after = to_document(rollup, place[0], place[2], Summary.merged(summaries), base)
                if before is None or {**before, "run": 0} != {**after, "run": 0}:
                    changed.append({**after, "run": number})
            elif before is not None:
                gone.append(before)
        await stored.replace_rollups(changed, gone, number)
        return len(changed)

    def _is_frozen(self, begin: float) -> bool:
        """Return whether an interval keeps the roll-up that it has, because its documents may be gone."""
        end = begin + self.rollup.every_s
        return not self.run.force and (
            begin < self.run.frozen_before or any(first < end and begin < last for first, last in self.thinned)
        )


def _place(rollup: Rollup, stored: Document) -> Place:
    group = group_of(rollup, stored)
    return stored["timestamp"], type(group), group


def _bucket_start(moment: float, every: float, after: int = 0) -> float:
    """Return the start of the interval that contains a moment, or of the one that follows `after` intervals later."""
    return float(bucket_starts(bucket_numbers(as_array(moment), every) + after, every)[0])
