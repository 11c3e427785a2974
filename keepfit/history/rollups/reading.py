"""Read what a roll-up aggregates: summaries of the documents of each interval and group.

Never writes. Invariant: it holds a bounded number of documents at a time, however many an interval has.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from keepfit.conditions import Scalar
from keepfit.history.mongo import UPKEEP_TIMEOUT_S, Database, Document, long_call
from keepfit.history.queries.columns import group_value
from keepfit.history.queries.filters import Filter
from keepfit.history.queries.sources import SnapshotSource, Source, group_key
from keepfit.history.rollups.documents import Rollup
from keepfit.history.rollups.summaries import Summary, summarize

# Documents that are held before they are summarized.
HELD_MAX = 100_000
BATCH_DOCUMENTS = 5_000

# The expiry that a document is marked for, if it is.
Expiry = int | None
# Start of an interval, type and value of its group: True equals 1 in Python, but not here.
Place = tuple[float, type, Scalar | None]
Columns = tuple[list[float], list[float]]


@dataclass(slots=True)
class Intervals:
    """Summaries of documents by interval and group, those of each expiry apart; and the number of documents."""

    summaries: dict[Place, dict[Expiry, list[Summary]]] = field(default_factory=dict)
    count: int = 0

    def add(self, columns: Mapping[tuple[Expiry, type, Scalar | None], Columns], every_s: float) -> None:
        """Add documents: times and values by expiry and group. CPU-bound: call it in a thread."""
        for (expiry, type_, group), (times, values) in columns.items():
            for begin, summary in summarize(np.array(times), np.array(values), every_s):
                self.summaries.setdefault((begin, type_, group), {}).setdefault(expiry, []).append(summary)


async def read_intervals(
    database: Database, sources: Sequence[Source], rollup: Rollup, start: float | None, stop: float | None
) -> Intervals:
    """Return the summaries of documents from `start` and before `stop` (seconds), which are bounds of intervals."""
    found, every_s = Intervals(), rollup.every_s
    columns: dict[tuple[Expiry, type, Scalar | None], Columns] = {}
    held = 0
    for source in sources:
        async with long_call(database, UPKEEP_TIMEOUT_S):
            cursor = source.collection.aggregate(pipeline(source, rollup, start, stop), batchSize=BATCH_DOCUMENTS)
            async for each in cursor:
                value = each["v"]
                if not isinstance(value, float | int) or isinstance(value, bool) or not math.isfinite(value):
                    continue
                group = group_value(each.get("g"))
                times, values = columns.setdefault((each.get("e"), type(group), group), ([], []))
                times.append(each["t"])
                values.append(float(value))
                held += 1
                if held >= HELD_MAX:
                    await asyncio.to_thread(found.add, columns, every_s)
                    found.count, held, columns = found.count + held, 0, {}
    await asyncio.to_thread(found.add, columns, every_s)
    found.count += held
    return found


def pipeline(source: Source, rollup: Rollup, start: float | None, stop: float | None) -> list[Document]:
    """Return the stages that select the documents of a roll-up and what it needs of them."""
    path = source.field_path(rollup.field)
    shown: Document = {"_id": 0, "t": "$timestamp", "v": f"${path}"}
    if rollup.group is not None:
        shown["g"] = group_key(source, rollup.group)
    if not isinstance(source, SnapshotSource):
        shown["e"] = "$expiring"
    return [
        *source.match_stages(Filter(rollup.type), start, stop),
        {"$match": {path: {"$type": "number"}}},
        {"$project": shown},
    ]


def merged(parts: Mapping[Expiry, Sequence[Summary]], but: Expiry) -> list[Summary]:
    """Return the summaries of all documents, but of those of an expiry if there is one."""
    return [each for expiry, some in parts.items() if but is None or expiry != but for each in some]
