"""The row log's minutes: merged when they are over, moved when snapshots have them, and let go by age.

Owns the order of the steps, for each minute: list ─▶ read ─▶ ask the history what snapshots cover ─▶ write what is
covered into one object, what is not into another ─▶ delete what was read. Never lets go of what no snapshot covers, at
whatever age. Invariant: what is deleted stands in an object that was written before; so several that do this at once,
and one that is killed anywhere, leave repeats at most, which those who read drop.
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
from keepfit.history import Registry, snapshot_upkeep
from keepfit.history.snapshot_upkeep import Coverage
from keepfit.observability import failpoints
from keepfit.rowlog.row_log import (
    END,
    MINUTE_S,
    NEEDED,
    OLD,
    READ_AT_ONCE,
    Call,
    Parsed,
    RowLog,
    encode,
    minute_of,
    start_of,
)

log = structlog.get_logger(__name__)

# A minute is left to its writers for so long after its end, and what was merged for so long to those who list.
SETTLED_S = 120
# Bytes that are read before something is written, and an object that is larger goes alone.
MERGE_BYTES_MAX = 32 * 2**20
# How far the clock of who takes snapshots may be behind that of Redis; more than that delays, and loses nothing.
CLOCKS_S = 600
ABANDONED_S = 3600
MERGED, STAMP = "m", "%Y%m%dT%H%M%S"


@dataclass(frozen=True, slots=True)
class CompactionResult:
    """How many objects were merged or moved, and how many let go by their age; `damaged` ones were left alone."""

    merged: int = 0
    expired: int = 0
    damaged: int = 0

    def __bool__(self) -> bool:
        return any((self.merged, self.expired, self.damaged))


async def compact(rows: RowLog, history: Registry, now_s: float, keep_s: float) -> CompactionResult:
    """Merge minutes that are over, and let go what is covered and older than `keep_s` (seconds).

    `now_s` is the time (seconds) by which ages are told, that of Redis.

    Raises
    ------
    UnavailableError
        If MongoDB or the log is away, or there is none. What was done until then is right.
    """
    await asyncio.to_thread(rows.require)
    listed = await asyncio.to_thread(rows.entries, NEEDED, NEEDED + END)
    merged = damaged = 0
    for minute, paths in _settled(listed, now_s):
        some_merged, some_damaged = await _tend_minute(rows, history, minute, paths, now_s)
        merged += some_merged
        damaged += some_damaged
    # A whole minute more, because a folder's name is that of its begin.
    last = OLD + minute_of(now_s - keep_s - MINUTE_S)
    old = await asyncio.to_thread(lambda: list(rows.storage.list(OLD, last)))
    left = [entry for entry in listed if entry.unfinished and entry.modified_s < now_s - ABANDONED_S]
    await asyncio.to_thread(rows.storage.delete, [*old, *left])
    return CompactionResult(merged, len(old), damaged)


def _settled(listed: Iterable[Entry], now_s: float) -> Iterator[tuple[str, list[str]]]:
    """Find minutes that are over, and of each what nobody may still be listing; both in order."""
    minutes: dict[str, list[str]] = {}
    for entry in listed:
        folder, _, name = entry.path.partition("/")
        # What somebody else has put there has other names, and is read by a restore all the same.
        with suppress(ValueError):
            over_s = start_of(folder.removeprefix(NEEDED)) + MINUTE_S
            if not entry.unfinished and max(over_s, _made_s(name)) + SETTLED_S <= now_s:
                minutes.setdefault(folder.removeprefix(NEEDED), []).append(entry.path)
    yield from sorted(minutes.items())


def _made_s(name: str) -> float:
    """When an object was made of others (seconds); 0 where it was not.

    >>> _made_s("m20231114T221320-c0ffee"), _made_s("5eed-1")
    (1700000000.0, 0.0)
    """
    if not name.startswith(MERGED):
        return 0.0
    return datetime.strptime(name[1:].partition("-")[0], STAMP).replace(tzinfo=UTC).timestamp()


async def _tend_minute(
    rows: RowLog, history: Registry, minute: str, paths: Sequence[str], now_s: float
) -> tuple[int, int]:
    """Merge a minute, some of its objects after the other; return how many were merged, and how many are damaged."""
    merged = damaged = size = 0
    covers: dict[str, Coverage] = {}
    parts: dict[str, Parsed] = {}
    for begin in range(0, len(paths), READ_AT_ONCE):
        some = paths[begin : begin + READ_AT_ONCE]
        for path, parsed in zip(some, await asyncio.gather(*(_read(rows, path) for path in some)), strict=True):
            if parsed is None:
                damaged += 1
            elif parsed:
                parts[path] = parsed
                size += _size(parsed)
        unknown = {model_hash for parsed in parts.values() for model_hash in parsed} - covers.keys()
        covers |= await snapshot_upkeep.find_coverage(history, unknown, start_of(minute) - CLOCKS_S) if unknown else {}
        if size > MERGE_BYTES_MAX or begin + READ_AT_ONCE >= len(paths):
            merged += await asyncio.to_thread(_merge, rows, minute, parts, covers, now_s)
            parts, size = {}, 0
    return merged, damaged


async def _read(rows: RowLog, path: str) -> Parsed | None:
    """Read an object; None where it is damaged, nothing where it has gone."""
    try:
        return await asyncio.to_thread(rows.read, path, keep=False) or {}
    except CorruptLogError as error:
        log.warning("row_log_damaged", reason=str(error))
        return None


def _merge(rows: RowLog, minute: str, parts: dict[str, Parsed], covers: dict[str, Coverage], now_s: float) -> int:
    """Write what is in some objects of a minute into one or two others, and delete those; return how many went."""
    covered: list[Call] = []
    needed: list[Call] = []
    for call in _unique(parts.values()):
        cover = covers.get(call.hash)
        (covered if cover is not None and cover.covers(call.origin, call.last) else needed).append(call)
    if not parts or (len(parts) == 1 and not covered):
        return 0
    if covered:
        data = encode(covered)
        rows.storage.put(f"{OLD}{minute}/{_name(data)}", data)
    if needed:
        data = encode(needed)
        stamp = datetime.fromtimestamp(now_s, UTC).strftime(STAMP)
        rows.storage.put(f"{NEEDED}{minute}/{MERGED}{stamp}-{_name(data)}", data)
    failpoints.reach("rowlog.merged")
    rows.storage.delete([Entry(path) for path in parts])
    failpoints.reach("rowlog.cleared")
    return len(parts)


def _unique(parts: Iterable[Parsed]) -> list[Call]:
    """All calls in some objects, in order; of repeats, which clients make and those who merge, the earliest."""
    earliest: dict[tuple[str, int, int, str, str], Call] = {}
    for parsed in parts:
        for call in (call for calls in parsed.values() for call in calls):
            key = (call.hash, call.origin, call.sequence, call.digest, call.name)
            if key not in earliest or call.at < earliest[key].at:
                earliest[key] = call
    return [call for _, call in sorted(earliest.items())]


def _size(parsed: Parsed) -> int:
    return sum(len(payload) for calls in parsed.values() for call in calls for payload in call.payloads)


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
