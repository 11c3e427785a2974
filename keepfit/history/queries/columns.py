"""Read the numbers of documents by time, in columns: times and values of each group.

Owns the limits of what one query aggregates, and how values become numbers. Never writes. Invariants: no query holds
more than :data:`GROUPED_MAX` values or :data:`GROUPS_MAX` groups; a value is a finite number.

The server returns the columns of a window as two arrays in one document (`$push` in one `$group`), because one document
for each value costs more than all else; numpy aggregates them here, so that every statistic is exact, and the same on
every server.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keepfit.conditions import Scalar
from keepfit.errors import InvalidError
from keepfit.history.mongo import Document, gather_all
from keepfit.history.queries import grouping, reading
from keepfit.history.queries.buckets import Buckets
from keepfit.history.queries.filters import Filter
from keepfit.history.queries.grouping import Series
from keepfit.history.queries.sources import Source, group_key
from keepfit.history.queries.zones import Array

# Values that one query reads to aggregate them; each needs 16 bytes of memory.
GROUPED_MAX = 1_000_000
GROUPS_MAX = 10_000
# A longer text is known by its digest.
TEXT_MAX = 64
# Each integer up to here is a float.
WHOLE_MAX = 2.0**53

# The value of each key by which documents are grouped; None for one that a document does not have.
Group = tuple[Scalar | None, ...]


@dataclass(frozen=True, slots=True)
class GroupColumns:
    """Times (seconds) and values of the documents of one group, in no particular order; shapes (n,), (n,)."""

    group: Group
    times: Array
    values: Array

    def series(self, buckets: Buckets, stat: str) -> Series:
        """Return one point per bucket that contains any."""
        return grouping.aggregate(self.times, self.values, buckets, stat)


@dataclass(slots=True)
class Codes:
    """Numbers that stand for values: equal ones for equal values, and different ones for different values."""

    _codes: dict[tuple[type, Any], float] = field(default_factory=dict)

    def of(self, value: Any) -> float:
        """Return the number of a text, boolean or number; NaN for everything else."""
        if isinstance(value, str):
            text = value if len(value) <= TEXT_MAX else hashlib.sha256(value.encode(errors="replace")).digest()
            return self._codes.setdefault((str, text), float(len(self._codes)))
        if isinstance(value, bool):
            return self._codes.setdefault((bool, value), float(len(self._codes)))
        if _is_number(value) and math.isfinite(value):
            return self._codes.setdefault((float, value), float(len(self._codes)))
        return math.nan


async def read_groups(
    sources: Sequence[Source],
    where: Filter,
    start: float | None,
    stop: float | None,
    now: float,
    name: str | None,
    keys: Sequence[str] = (),
    codes: Codes | None = None,
) -> list[GroupColumns]:
    """Return times and values of the number field `name`, by the values of keys of metadata or fields.

    Documents without a key have None as its value. If `name` is None every document counts, with the value 1. With
    `codes` the field may be a text or boolean too, and the values are codes.

    Raises
    ------
    InvalidError
        If there are more than :data:`GROUPED_MAX` documents, or :data:`GROUPS_MAX` groups.
    """
    # By type too: True equals 1 in Python.
    columns: dict[tuple[tuple[type, Scalar | None], ...], list[tuple[Array, Array]]] = {}
    total = 0
    start, stop = where.narrow(start, stop)

    async def fetch(low: float | None, high: float | None) -> int:
        nonlocal total
        count = 0
        calls = (_read_window(source, where, low, high, name, keys, codes) for source in sources)
        for some in await gather_all(*calls):
            for group, times, values in some:
                columns.setdefault(tuple((type(value), value) for value in group), []).append((times, values))
                count += len(times)
        total += count
        if total > GROUPED_MAX:
            raise InvalidError(
                f"More than {GROUPED_MAX:,} documents are in this time range: use a later start or a filter."
            )
        if len(columns) > GROUPS_MAX:
            raise InvalidError(f"More than {GROUPS_MAX:,} groups: use another key to group by, or a filter.")
        return count

    async for _ in reading.fetch_windows(fetch, start, stop, now, reading.COLUMNS_WINDOW_S, reading.COLUMNS_CHUNK):
        pass
    # Windows are read latest first; documents with equal times keep their order.
    return [
        GroupColumns(
            tuple(value for _, value in key),
            np.concatenate([t for t, _ in some[::-1]]),
            np.concatenate([v for _, v in some[::-1]]),
        )
        for key, some in columns.items()
    ]


async def _read_window(
    source: Source,
    where: Filter,
    start: float | None,
    stop: float | None,
    name: str | None,
    keys: Sequence[str],
    codes: Codes | None,
) -> list[tuple[Group, Array, Array]]:
    """Return columns of one window of one source, by group."""
    pipeline = source.match_stages(where, start, stop)
    pushes: Document = {"t": {"$push": "$timestamp"}}
    if name is not None:
        types: Any = "number" if codes is None else ["number", "string", "bool"]
        pipeline.append({"$match": {source.field_path(name): {"$type": types}}})
        pushes["v"] = {"$push": f"${source.field_path(name)}"}
    pipeline.append({"$group": {"_id": group_id(source, keys), **pushes}})
    with reading.within_window(start, stop):
        found = await source.collection.aggregate(pipeline).to_list(None)
    return [
        (group_values(document["_id"], keys), *_to_arrays(document["t"], document.get("v"), codes))
        for document in found
    ]


def group_id(source: Source, keys: Sequence[str]) -> Any:
    """Return the expression by which the server groups documents: the value of one key, or of each of several."""
    if len(keys) < 2:
        return group_key(source, keys[0] if keys else None)
    return {f"k{place}": group_key(source, key) for place, key in enumerate(keys)}


def group_values(id_: Any, keys: Sequence[str]) -> Group:
    """Return the values of the keys in the ``_id`` of a group that :func:`group_id` made."""
    if not keys:
        return ()
    if len(keys) == 1:
        return (group_value(id_),)
    return tuple(group_value(id_.get(f"k{place}")) for place in range(len(keys)))


def group_value(value: Any) -> Scalar | None:
    """Return the value of a group; labels store integers as floats, this returns them as integers.

    Values that are not scalars form no group of their own. A float that is no integer of 64 bits stays one: MongoDB
    cannot store larger integers.
    """
    if not isinstance(value, str | float | int | bool):
        return None
    is_integer = isinstance(value, float) and value.is_integer() and abs(value) <= WHOLE_MAX
    return int(value) if is_integer else value


def _to_arrays(times: list[float], values: list[Any] | None, codes: Codes | None) -> tuple[Array, Array]:
    """Return arrays of times and values, without values that are not finite numbers (an array of numbers, for example).

    MongoDB's type condition also matches arrays that contain a number.
    """
    stamps = np.array(times, dtype=np.float64)
    if values is None:
        return stamps, np.ones(len(stamps))
    if codes is not None:
        values = [codes.of(value) for value in values]
    elif not all(map(_is_number, values)):
        values = [value if _is_number(value) else math.nan for value in values]
    numbers = np.array(values, dtype=np.float64)
    finite = np.isfinite(numbers)
    return stamps[finite], numbers[finite]


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
