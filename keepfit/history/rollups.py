"""Roll-ups: aggregate documents per interval into documents that remain when the originals are deleted.

Owns the declaration of a roll-up, the fields of its documents, and its progress (collection ``rollups``). Invariants:
only intervals that have ended are rolled up; time, field and group identify a roll-up document, so that rolling up the
same interval twice, concurrently or later, results in one document.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from keepfit.errors import InvalidError, MalformedError, SettingsError
from keepfit.history import grouping, reading, times
from keepfit.history.documents import document_id
from keepfit.history.grouping import bucket_numbers
from keepfit.history.mongo import Document, unavailable
from keepfit.history.reading import Columns, Filter
from keepfit.history.timeline import Timeline

STATS = ("count", "sum", "mean", "min", "max", "first", "last")
# A document that is stored more than this many intervals after its time is in no roll-up.
LATE_SPANS = 1


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
        reading.check_field(self.field)
        if self.group in (*STATS, "of", "timestamp"):
            raise InvalidError(f"{self.group!r} cannot be the group: roll-up documents have a field of this name.")

    @property
    def target(self) -> str:
        """Type of the roll-up documents."""
        return f"{self.type}/{self.every}"

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


async def roll_up(timeline: Timeline, rollup: Rollup, now: float | None = None) -> int:
    """Write the documents of all intervals that have ended since the last call; return their number.

    Raises
    ------
    InvalidError
        If one interval has too many documents.
    UnavailableError
        If MongoDB is unavailable. The roll-up can be repeated; what was rolled up before stays.
    """
    now = time.time() if now is None else now
    every, progress = times.parse_duration(rollup.every), timeline.rollup_progress
    with unavailable():
        found = await progress.find_one({"_id": rollup.id})
    start = None if found is None else found["until"] - LATE_SPANS * every
    stop = _bucket_start(now, every)
    written = 0

    async def fetch(low: float | None, high: float | None) -> int:
        nonlocal written
        # Extend windows to whole intervals; neighbouring windows still share their bounds.
        first, last = (None if edge is None else _bucket_start(edge, every) for edge in (low, high))
        if first == last:
            return 0
        columns = await timeline.read_columns(Filter(rollup.type), first, last, rollup.field, rollup.group)
        documents = await asyncio.to_thread(_documents, columns, rollup, every)
        written += await timeline.bulk_upsert(documents, _keys(rollup))
        return sum(len(stamps) for stamps, _ in columns.values())

    width = max(reading.COLUMNS_WINDOW_S, every)
    if start is None or start < stop:
        async for _ in reading.fetch_windows(fetch, start, stop, now, width, reading.COLUMNS_CHUNK):
            pass
        # The oldest intervals are written last: now everything before `stop` is rolled up.
        with unavailable():
            await progress.update_one({"_id": rollup.id}, {"$max": {"until": stop}}, upsert=True)
    return written


def _bucket_start(moment: float, every: float) -> float:
    return float(grouping.bucket_starts(bucket_numbers(grouping.as_array(moment), every), every)[0])


def _keys(rollup: Rollup) -> Sequence[str]:
    return ("timestamp", "of") if rollup.group is None else ("timestamp", "of", rollup.group)


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
