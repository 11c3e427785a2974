"""Compaction of the row log: merge finished minutes, move covered calls, delete expired ones.

Owns the order of the steps for each minute: list ─▶ read ─▶ ask the history what snapshots cover ─▶ write covered calls
into one object, the others into another ─▶ delete the objects that were read. Never deletes calls that no snapshot
covers, whatever their age. Invariant: everything that is deleted stands in an object that was written before; so
several compactions at once, and one that is killed anywhere, leave at most repeats, which readers drop.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from keepfit.backends.blobs import Entry
from keepfit.errors import CorruptLogError
from keepfit.history import Registry
from keepfit.history.registry import snapshot_upkeep
from keepfit.history.registry.snapshot_upkeep import Coverage
from keepfit.observability import failpoints
from keepfit.rowlog.row_log import (
    COVERED,
    END,
    MINUTE_S,
    READ_AT_ONCE,
    UNCOVERED,
    Call,
    Parsed,
    RowLog,
    encode,
    minute_of,
    start_of,
)

log = structlog.get_logger(__name__)

# A minute is not compacted for this long after its end, because of writers, nor a merged object, because of readers.
SETTLED_S = 120
# Bytes that are read before a merged object is written; a larger object is processed alone.
MERGE_BYTES_MAX = 32 * 2**20
# Tolerated lag of a snapshotter's clock behind Redis' clock. A larger lag delays compaction and loses nothing.
CLOCK_LAG_S = 600
ABANDONED_S = 3600
MERGED, TIME_FORMAT = "m", "%Y%m%dT%H%M%S"


@dataclass(frozen=True, slots=True)
class CompactionResult:
    """How many objects were merged or moved, and how many expired; `damaged` ones were left alone."""

    merged: int = 0
    expired: int = 0
    damaged: int = 0

    def __bool__(self) -> bool:
        return any((self.merged, self.expired, self.damaged))


async def compact(row_log: RowLog, registry: Registry, now_s: float, keep_s: float) -> CompactionResult:
    """Merge finished minutes, and delete covered calls that are older than `keep_s` (seconds).

    `now_s` is the time (seconds since 1970) from which ages are computed, by Redis' clock.

    Raises
    ------
    UnavailableError
        If MongoDB or the log is unavailable, or the log does not exist. The work until then is right.
    """
    await asyncio.to_thread(row_log.check_exists)
    listed = await asyncio.to_thread(row_log.entries, UNCOVERED, UNCOVERED + END)
    merged = damaged = 0
    for minute, paths in _finished_minutes(listed, now_s):
        some_merged, some_damaged = await _compact_minute(row_log, registry, minute, paths, now_s)
        merged += some_merged
        damaged += some_damaged
    # One minute more, because a folder is named after the begin of its minute.
    last = COVERED + minute_of(now_s - keep_s - MINUTE_S)
    expired = await asyncio.to_thread(lambda: list(row_log.storage.list(COVERED, last)))
    abandoned = [entry for entry in listed if entry.unfinished and entry.modified_s < now_s - ABANDONED_S]
    await asyncio.to_thread(row_log.storage.delete, [*expired, *abandoned])
    return CompactionResult(merged, len(expired), damaged)


def _finished_minutes(listed: Iterable[Entry], now_s: float) -> Iterator[tuple[str, list[str]]]:
    """Yield finished minutes, each with the objects that no reader may be listing any more; both in order."""
    minutes: dict[str, list[str]] = {}
    for entry in listed:
        folder, _, name = entry.path.partition("/")
        # Objects that an operator has put there may have other names; a restore reads them, compaction does not.
        with suppress(ValueError):
            end_s = start_of(folder.removeprefix(UNCOVERED)) + MINUTE_S
            if not entry.unfinished and max(end_s, _merged_at_s(name)) + SETTLED_S <= now_s:
                minutes.setdefault(folder.removeprefix(UNCOVERED), []).append(entry.path)
    yield from sorted(minutes.items())


def _merged_at_s(name: str) -> float:
    """Return when an object was merged from others (seconds since 1970); 0 if it was not.

    >>> _merged_at_s("m20231114T221320-c0ffee"), _merged_at_s("5eed-1")
    (1700000000.0, 0.0)
    """
    if not name.startswith(MERGED):
        return 0.0
    return datetime.strptime(name[1:].partition("-")[0], TIME_FORMAT).replace(tzinfo=UTC).timestamp()


async def _compact_minute(
    row_log: RowLog, registry: Registry, minute: str, paths: Sequence[str], now_s: float
) -> tuple[int, int]:
    """Merge the objects of a minute in batches; return how many were merged, and how many are damaged."""
    merged = damaged = size = 0
    coverage: dict[str, Coverage] = {}
    objects: dict[str, Parsed] = {}
    for begin in range(0, len(paths), READ_AT_ONCE):
        batch = paths[begin : begin + READ_AT_ONCE]
        for path, parsed in zip(batch, await asyncio.gather(*(_read(row_log, path) for path in batch)), strict=True):
            if parsed is None:
                damaged += 1
            elif parsed:
                objects[path] = parsed
                size += _size(parsed)
        unknown = {model_hash for parsed in objects.values() for model_hash in parsed} - coverage.keys()
        coverage |= (
            await snapshot_upkeep.find_coverage(registry, unknown, start_of(minute) - CLOCK_LAG_S) if unknown else {}
        )
        if size > MERGE_BYTES_MAX or begin + READ_AT_ONCE >= len(paths):
            merged += await asyncio.to_thread(_merge, row_log, minute, objects, coverage, now_s)
            objects, size = {}, 0
    return merged, damaged


async def _read(row_log: RowLog, path: str) -> Parsed | None:
    """Read an object; return None if it is damaged, {} if it is gone."""
    try:
        return await asyncio.to_thread(row_log.read, path, use_cache=False) or {}
    except CorruptLogError as error:
        log.warning("row_log_damaged", reason=str(error))
        return None


def _merge(
    row_log: RowLog, minute: str, objects: dict[str, Parsed], coverage: dict[str, Coverage], now_s: float
) -> int:
    """Write the calls of some objects of a minute into one or two others, and delete those; return their number."""
    covered: list[Call] = []
    uncovered: list[Call] = []
    for call in _unique(objects.values()):
        cover = coverage.get(call.hash)
        (covered if cover is not None and cover.covers(call.origin, call.last) else uncovered).append(call)
    if not objects or (len(objects) == 1 and not covered):
        return 0
    if covered:
        data = encode(covered)
        row_log.storage.put(f"{COVERED}{minute}/{_name(data)}", data)
    if uncovered:
        data = encode(uncovered)
        time_text = datetime.fromtimestamp(now_s, UTC).strftime(TIME_FORMAT)
        row_log.storage.put(f"{UNCOVERED}{minute}/{MERGED}{time_text}-{_name(data)}", data)
    failpoints.reach("rowlog.merged")
    row_log.storage.delete([Entry(path) for path in objects])
    failpoints.reach("rowlog.cleared")
    return len(objects)


def _unique(objects: Iterable[Parsed]) -> list[Call]:
    """Return all calls of some objects, in order; of repeats, from clients or from merging, only the earliest."""
    earliest: dict[tuple[str, int, int, str, str], Call] = {}
    for parsed in objects:
        for call in (call for calls in parsed.values() for call in calls):
            key = (call.hash, call.origin, call.sequence, call.digest, call.name)
            if key not in earliest or call.at < earliest[key].at:
                earliest[key] = call
    return [call for _, call in sorted(earliest.items())]


def _size(parsed: Parsed) -> int:
    return sum(len(payload) for calls in parsed.values() for call in calls for payload in call.payloads)


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
