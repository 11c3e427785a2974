"""Read chosen documents: those with the largest values, and the newest of each group.

Owns the limits of what such a query reads. Never writes. Invariant: a query holds the documents that it returns and
those of one window that may replace them.

Both read windows of time from the newest on, and the server chooses within a window: no index has the values of all
fields, or the groups of all keys, in order.
"""

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Any

from keepfit.conditions import Scalar
from keepfit.errors import InvalidError
from keepfit.history.mongo import Document, gather_all
from keepfit.history.queries import columns, reading
from keepfit.history.queries.columns import group_id, group_values
from keepfit.history.queries.filters import Filter
from keepfit.history.queries.sources import Source


async def read_extreme(
    sources: Sequence[Source],
    where: Filter,
    start: float | None,
    stop: float | None,
    now: float,
    name: str,
    count: int,
    direction: int,
) -> list[Document]:
    """Return `count` documents with the largest (`direction` -1) or smallest (1) number in the field `name`, in order.

    Of equal numbers the newest come first.
    """
    start, stop = where.narrow(start, stop)
    order = itertools.count()
    best: list[tuple[float, float, int, Document]] = []

    async def of(source: Source, low: float | None, high: float | None) -> tuple[int, list[Document]]:
        path = source.field_path(name)
        found = [
            *source.match_stages(where, low, high),
            {"$match": {path: {"$type": "number", "$not": {"$type": "array"}}}},
        ]
        chosen: list[Document] = [{"$sort": {path: direction, "timestamp": -1}}, {"$limit": count}]
        with reading.within_window(low, high):
            documents = await source.collection.aggregate([*found, *chosen]).to_list(None)
            # The size of the next window depends on all documents of this one.
            counted = await source.collection.aggregate([*found, {"$count": "n"}]).to_list(None)
        return sum(each["n"] for each in counted), [source.to_public(document) for document in documents]

    async def fetch(low: float | None, high: float | None) -> int:
        total = 0
        for number, documents in await gather_all(*(of(source, low, high) for source in sources)):
            total += number
            for document in documents:
                value = _value(document, name)
                if value == value:  # noqa: PLR0124 - NaN
                    best.append((direction * value, -document["timestamp"], next(order), document))
        best[:] = heapq.nsmallest(count, best)
        return total

    async for _ in reading.fetch_windows(fetch, start, stop, now, reading.COLUMNS_WINDOW_S, reading.COLUMNS_CHUNK):
        pass
    return [document for *_, document in best]


def _value(document: Document, name: str) -> float:
    found: Any = document
    try:
        for part in name.split("."):
            found = found[part]
        return float(found)
    except (KeyError, TypeError):
        # A number inside of a list, which has several.
        return math.nan


async def read_last_per(
    sources: Sequence[Source],
    where: Filter,
    start: float | None,
    stop: float | None,
    now: float,
    keys: Sequence[str],
    most: int,
) -> list[Document]:
    """Return the newest document of each group of documents with equal values of `keys`, newest first.

    Documents that have none of the keys are not counted.

    Raises
    ------
    InvalidError
        If there are more than `most` groups, or :data:`keepfit.history.queries.columns.GROUPED_MAX` documents.
    """
    start, stop = where.narrow(start, stop)
    newest: dict[tuple[tuple[type, Scalar | None], ...], Document] = {}
    total = 0

    async def of(source: Source, low: float | None, high: float | None) -> list[Document]:
        group = {"_id": group_id(source, keys), "document": {"$first": "$$ROOT"}, "n": {"$sum": 1}}
        pipeline = [*source.match_stages(where, low, high), {"$sort": {"timestamp": -1}}, {"$group": group}]
        with reading.within_window(low, high):
            found = await source.collection.aggregate(pipeline).to_list(None)
        return [{**each, "document": source.to_public(each["document"])} for each in found]

    async def fetch(low: float | None, high: float | None) -> int:
        nonlocal total
        found = [each for some in await gather_all(*(of(source, low, high) for source in sources)) for each in some]
        window: dict[tuple[tuple[type, Scalar | None], ...], Document] = {}
        for each in found:
            values = group_values(each["_id"], keys)
            key = tuple((type(value), value) for value in values)
            if any(value is not None for value in values):
                known = window.setdefault(key, each["document"])
                if known["timestamp"] < each["document"]["timestamp"]:
                    window[key] = each["document"]
        for key, document in window.items():
            newest.setdefault(key, document)
        count: int = sum(each["n"] for each in found)
        total += count
        if len(newest) > most:
            raise InvalidError(f"More than {most:,} groups: use another key, or a filter.")
        if total > columns.GROUPED_MAX:
            raise InvalidError(
                f"More than {columns.GROUPED_MAX:,} documents are in this time range: use a later start."
            )
        return count

    async for _ in reading.fetch_windows(fetch, start, stop, now, reading.COLUMNS_WINDOW_S, reading.COLUMNS_CHUNK):
        pass
    return sorted(newest.values(), key=lambda document: -document["timestamp"])
