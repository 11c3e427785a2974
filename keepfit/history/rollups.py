"""Roll-ups: aggregate documents per interval into documents that remain when the originals are deleted.

Owns the declaration of a roll-up and the fields of its documents; :mod:`keepfit.history.rollup_progress` has its
progress. Invariants: only intervals that have ended are rolled up; time, field and group identify a roll-up document,
so that rolling up the same interval twice, concurrently or later, results in one document. An interval whose documents
may have expired keeps the roll-up that it has.
"""

import asyncio
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from keepfit import times
from keepfit.errors import InvalidError, MalformedError, SettingsError
from keepfit.history import grouping, reading
from keepfit.history.documents import document_id, to_stored
from keepfit.history.filters import Filter
from keepfit.history.grouping import bucket_numbers
from keepfit.history.mongo import Document
from keepfit.history.reading import Columns
from keepfit.history.rollup_changes import Range
from keepfit.history.sources import SnapshotSource, check_field
from keepfit.history.timeline import Timeline
from keepfit.times import SECONDS_MIN

STATS = ("count", "sum", "mean", "min", "max", "first", "last")
BATCH_DOCUMENTS = 1_000


@dataclass(frozen=True, slots=True)
class Rollup:
    """Aggregate documents of `type` to one document of type ``TYPE/EVERY`` per interval `every` and value of `group`.

    Each has ``of`` (the aggregated `field`), the key and value of its group, and :data:`STATS`.
    """

    type: str
    every: str
    field: str
    group: str | None = None

    def __post_init__(self) -> None:
        times.parse_duration(self.every)
        check_field(self.field)
        if self.group in (*STATS, "of", "timestamp"):
            raise InvalidError(f"{self.group!r} cannot be the group: roll-up documents have a field of this name.")

    @property
    def target(self) -> str:
        """Type of the roll-up documents."""
        return f"{self.type}/{self.every}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Fields that identify a document of this roll-up."""
        return ("timestamp", "of") if self.group is None else ("timestamp", "of", self.group)

    @property
    def id(self) -> str:
        """Identifier of this roll-up in the collection ``rollups``."""
        return document_id(self.target, {"of": self.field, "group": self.group})


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


async def roll_up(
    timeline: Timeline, rollup: Rollup, now: float | None = None, keep_snapshots_s: float = math.inf
) -> int:
    """Bring a roll-up up to date and return the number of documents that changed.

    Rolls up the intervals that have ended since the last call, and earlier ones of which documents were stored or
    deleted since. All snapshots are kept for `keep_snapshots_s`; later only some are left.

    Raises
    ------
    InvalidError
        If one interval has too many documents.
    UnavailableError
        If MongoDB is unavailable. The roll-up can be repeated; what was rolled up before stays.
    """
    every, now = times.parse_duration(rollup.every), time.time() if now is None else now
    stop = _bucket_start(now, every)
    sources = await timeline.sources(Filter(rollup.type), rollup.field)
    has_snapshots = any(isinstance(source, SnapshotSource) for source in sources)
    expired_before = max(now - keep_snapshots_s, SECONDS_MIN) if has_snapshots else SECONDS_MIN
    written = 0
    async with timeline.rollup_progress.run(rollup.id, rollup.type, stop) as run:
        if run is not None:
            frozen_before = max(expired_before, run.frozen_before)
            for first, last in _whole_intervals(run.ranges, every, stop):
                written += await _roll_up_range(timeline, rollup, first, last, frozen_before)
    return written


async def rebuild(timeline: Timeline, rollup: Rollup, now: float | None = None, *, force: bool = False) -> int:
    """Roll up all intervals again, from the documents that there are; return the number of documents that changed.

    An interval whose documents may have expired keeps its roll-up, unless `force`; if it has none, one is written.
    Raises what :func:`roll_up` raises.
    """
    await timeline.rollup_progress.mark_all(rollup.id, force=force)
    return await roll_up(timeline, rollup, now)


def _whole_intervals(ranges: Iterable[Range], every: float, stop: float) -> list[tuple[float | None, float]]:
    """Return ranges of time extended to whole intervals before `stop`, disjoint; None stands for the beginning.

    >>> _whole_intervals([(20.0, 30.0), (SECONDS_MIN, 3.0), (8.0, 12.0), (9.0, 10.0), (70.0, 80.0)], 5.0, 25.0)
    [(None, 5.0), (5.0, 15.0), (20.0, 25.0)]
    """
    found: list[tuple[float | None, float]] = []
    for first, last in sorted(ranges):
        start = None if first <= SECONDS_MIN else _bucket_start(first, every)
        end = stop if last >= stop else _bucket_start(last, every, 1)
        if found and (start is None or start < found[-1][1]):
            start = found[-1][1]
        if start is None or start < min(end, stop):
            found.append((start, min(end, stop)))
    return found


async def _roll_up_range(
    timeline: Timeline, rollup: Rollup, start: float | None, stop: float, expired_before: float
) -> int:
    """Roll up the whole intervals of a range of time; return the number of documents written."""
    every, written = times.parse_duration(rollup.every), 0

    async def fetch(low: float | None, high: float | None) -> int:
        nonlocal written
        # Extend windows to whole intervals; neighbouring windows still share their bounds.
        first, last = (None if edge is None else _bucket_start(edge, every) for edge in (low, high))
        if first == last:
            return 0
        columns = await timeline.read_columns(Filter(rollup.type), first, last, rollup.field, rollup.group)
        documents = await asyncio.to_thread(_documents, columns, rollup, every)
        written += await _replace(timeline, rollup, documents, first, last, expired_before)
        return sum(len(stamps) for stamps, _ in columns.values())

    width = max(reading.COLUMNS_WINDOW_S, every)
    async for _ in reading.fetch_windows(fetch, start, stop, stop, width, reading.COLUMNS_CHUNK):
        pass
    return written


async def _replace(
    timeline: Timeline,
    rollup: Rollup,
    documents: Iterable[Document],
    start: float | None,
    stop: float | None,
    expired_before: float,
) -> int:
    """Replace the roll-up documents of whole intervals by these; return the number of documents that changed."""
    keys = rollup.keys
    new = {document["_id"]: document for document in (to_stored(document, keys) for document in documents)}
    listed = await timeline.stored.list_all(rollup.target, start, stop)
    # Other roll-ups, by another group, and users may have documents of the same type.
    old = {found["_id"]: found for found in listed if found["_id"] == _id_of(rollup, found)}
    changed = [
        each
        for id_, each in new.items()
        if id_ not in old or (each["timestamp"] >= expired_before and old[id_] != each)
    ]
    for begin in range(0, len(changed), BATCH_DOCUMENTS):
        await timeline.stored.write(changed[begin : begin + BATCH_DOCUMENTS])
    if gone := [id_ for id_, each in old.items() if id_ not in new and each["timestamp"] >= expired_before]:
        await timeline.stored.delete_ids(gone)
    return len(changed)


def _id_of(rollup: Rollup, stored: Document) -> str | None:
    """Return the identifier that a stored document has if this roll-up wrote it."""
    fields = {**stored["document"], "timestamp": stored["timestamp"]}
    if fields.get("of") != rollup.field or any(key not in fields for key in rollup.keys):
        return None
    return document_id(rollup.target, {key: fields[key] for key in rollup.keys})


def _bucket_start(moment: float, every: float, after: int = 0) -> float:
    """Return the start of the interval that contains a moment, or of the one that follows `after` intervals later."""
    return float(grouping.bucket_starts(bucket_numbers(grouping.as_array(moment), every) + after, every)[0])


def _documents(columns: Columns, rollup: Rollup, every: float) -> list[Document]:
    documents: list[Document] = []
    for value, (stamps, values) in columns.items():
        series = {stat: grouping.aggregate(stamps, values, every, stat) for stat in STATS}
        group = {} if rollup.group is None else {rollup.group: value}
        documents += [
            {
                "type": rollup.target,
                "timestamp": moment,
                "of": rollup.field,
                **group,
                **dict(zip(STATS, row, strict=True)),
            }
            for moment, *row in zip(
                series["count"].times.tolist(), *(series[stat].values.tolist() for stat in STATS), strict=True
            )
        ]
    return documents
