"""Roll-ups: coarser documents, made of finer ones as time passes, which stay when those go.

Owns how a roll-up is declared, what its documents hold, and how far each has come (collection ``rollups``). Invariants:
only spans that are over are rolled up; a span's document is identified by its time, field and group, so that rolling it
up twice, at once or again, gives one document.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from keepfit.errors import InvalidError, MalformedError, SettingsError
from keepfit.history import grouping, reading, times
from keepfit.history.documents import identity
from keepfit.history.grouping import floor
from keepfit.history.mongo import Document, unavailable
from keepfit.history.reading import Columns, Filter
from keepfit.history.timeline import Timeline

STATS = ("count", "sum", "mean", "min", "max", "first", "last")
# What comes later than this many spans after its time is in no roll-up.
LATE_SPANS = 1


@dataclass(frozen=True, slots=True)
class Rollup:
    """Documents of `type` become one document of the type ``TYPE/EVERY`` for each span `every`, and value of `group`.

    Each holds ``of`` (the `field` that it is made of), the group's key and value, and :data:`STATS`.
    """

    type: str
    every: str
    field: str
    group: str | None = None

    def __post_init__(self) -> None:
        times.parse_duration(self.every)
        reading.check_field(self.field)
        if self.group in (*STATS, "of", "timestamp"):
            raise InvalidError(f"The values of {self.group!r} would have no place beside those of the roll-up.")

    @property
    def target(self) -> str:
        """Type of the documents that are made."""
        return f"{self.type}/{self.every}"

    @property
    def name(self) -> str:
        """What identifies this roll-up."""
        return identity(self.target, {"of": self.field, "group": self.group})


def parse(text: str) -> list[Rollup]:
    """Read roll-ups of a setting.

    >>> parse("shoes 5m metrics.r2, shoes 1h rows_seen brand")[1]
    Rollup(type='shoes', every='1h', field='rows_seen', group='brand')

    Raises
    ------
    SettingsError
        If one is none.
    """
    rollups = []
    for part in filter(None, map(str.strip, text.split(","))):
        words = part.split()
        if not 3 <= len(words) <= 4:
            raise SettingsError(f"KEEPFIT_HISTORY_ROLLUPS: {part!r} is not TYPE EVERY FIELD [GROUP].")
        try:
            rollups.append(Rollup(*words))
        except (MalformedError, InvalidError) as error:
            raise SettingsError(f"KEEPFIT_HISTORY_ROLLUPS: {part!r} is no roll-up: {error}") from None
    return rollups


async def roll_up(timeline: Timeline, rollup: Rollup, now: float | None = None) -> int:
    """Bring a roll-up up to date; returns how many documents were written.

    Raises
    ------
    InvalidError
        If there are too many documents in one span.
    UnavailableError
        If MongoDB is away. Doing it again later is right, whatever was done until then.
    """
    now = time.time() if now is None else now
    every, done = times.parse_duration(rollup.every), timeline.progress
    with unavailable():
        found = await done.find_one({"_id": rollup.name})
    start = None if found is None else found["until"] - LATE_SPANS * every
    stop = _begin(now, every)
    written = 0

    async def fetch(low: float | None, high: float | None) -> int:
        nonlocal written
        # Windows become whole spans, and still touch each other.
        first, last = (None if edge is None else _begin(edge, every) for edge in (low, high))
        if first == last:
            return 0
        columns = await timeline.columns(Filter(rollup.type), first, last, rollup.field, rollup.group)
        documents = await asyncio.to_thread(_documents, columns, rollup, every)
        written += await timeline.bulk_upsert(documents, _keys(rollup))
        return sum(len(stamps) for stamps, _ in columns.values())

    width = max(reading.COLUMNS_WINDOW_S, every)
    if start is None or start < stop:
        async for _ in reading.backward(fetch, start, stop, now, width, reading.COLUMNS_CHUNK):
            pass
        # The oldest come last: from here on all that is before is rolled up.
        with unavailable():
            await done.update_one({"_id": rollup.name}, {"$max": {"until": stop}}, upsert=True)
    return written


def _begin(moment: float, every: float) -> float:
    return float(grouping.begin(floor(grouping.array(moment), every), every)[0])


def _keys(rollup: Rollup) -> Sequence[str]:
    return ("timestamp", "of") if rollup.group is None else ("timestamp", "of", rollup.group)


def _documents(columns: Columns, rollup: Rollup, every: float) -> list[Document]:
    documents: list[Document] = []
    for value, (stamps, values) in columns.items():
        series = {stat: grouping.aggregate(stamps, values, every, stat) for stat in STATS}
        named = {} if rollup.group is None else {rollup.group: value}
        documents += [
            {
                "type": rollup.target,
                "timestamp": moment,
                "of": rollup.field,
                **named,
                **dict(zip(STATS, row, strict=True)),
            }
            for moment, *row in zip(
                series["count"].times.tolist(), *(series[stat].values.tolist() for stat in STATS), strict=True
            )
        ]
    return documents
