"""Maintain the timeline: write roll-ups, then delete stored documents that have expired.

Owns the order of the steps; the snapshotter calls it after each pass. Never deletes the document of a snapshot: that is
deleted with its snapshot. Invariant: a document is deleted only after its roll-ups are written.
"""

import math
import time
from dataclasses import dataclass

from keepfit import times
from keepfit.errors import MalformedError, SettingsError
from keepfit.history.rollups.documents import Rollup
from keepfit.history.timeline import Timeline
from keepfit.history.upkeep import expiry, rollups
from keepfit.history.upkeep.rollups import Absorption
from keepfit.settings import Settings

ALL_OTHERS = "*"


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Roll-ups to write, and how many seconds stored documents of each type (``*``: all others) are kept.

    All snapshots are kept for `keep_snapshots_s`; later only some are left.
    """

    rollups: tuple[Rollup, ...] = ()
    keep_s: tuple[tuple[str, float], ...] = ()
    keep_snapshots_s: float = math.inf

    @classmethod
    def of(cls, settings: Settings) -> "Upkeep":
        """Parse the settings; raise SettingsError if one is malformed."""
        return cls(
            tuple(rollups.parse(settings.history_rollups)),
            tuple(parse_keep(settings.history_keep).items()),
            settings.retention_all_s,
        )


def parse_keep(text: str) -> dict[str, float]:
    """Return the seconds that documents are kept, by type.

    >>> parse_keep("shoes 30d, shoes/5m 52w, * 90d")
    {'shoes': 2592000.0, 'shoes/5m': 31449600.0, '*': 7776000.0}
    """
    keep_s = {}
    for rule in filter(None, map(str.strip, text.split(","))):
        type_, _, duration = rule.rpartition(" ")
        if not type_.strip():
            raise SettingsError(f"KEEPFIT_HISTORY_KEEP: {rule!r} is not TYPE DURATION.")
        try:
            keep_s[type_.strip()] = times.parse_duration(duration)
        except MalformedError as error:
            raise SettingsError(f"KEEPFIT_HISTORY_KEEP: {rule!r} is not a valid rule: {error}") from None
    return keep_s


async def run(timeline: Timeline, upkeep: Upkeep, now: float | None = None) -> tuple[int, int]:
    """Write roll-ups and delete expired documents; return the numbers of both. Concurrent calls are safe.

    Raises
    ------
    UnavailableError
        If MongoDB is unavailable. The call can be repeated.
    """
    now = time.time() if now is None else now
    written = deleted = 0
    for rollup in upkeep.rollups:
        written += await rollups.roll_up(timeline, rollup, now, upkeep.keep_snapshots_s)
    rolled_up = {rollup.type for rollup in upkeep.rollups}
    named = {type_ for type_, _ in upkeep.keep_s if type_ != ALL_OTHERS}
    for rule, seconds in upkeep.keep_s:
        types = sorted(rolled_up - named) if rule == ALL_OTHERS else [rule]
        for type_ in types:
            await timeline.rollup_progress.note_gone((), type_, now - seconds)
            if type_ in rolled_up:
                some = await _expire(timeline, upkeep, type_, now - seconds, now)
                written, deleted = written + some[0], deleted + some[1]
            else:
                deleted += await timeline.stored.expire(type_, (), now - seconds)
        if rule == ALL_OTHERS:
            kept = sorted(named | rolled_up)
            await timeline.rollup_progress.note_gone(kept, None, now - seconds)
            deleted += await timeline.stored.expire(None, kept, now - seconds)
    return written, deleted


async def _expire(timeline: Timeline, upkeep: Upkeep, type_: str, stop: float, now: float) -> tuple[int, int]:
    """Delete documents of a type that has roll-ups; return the numbers of roll-up documents changed and of deleted."""
    written = 0

    async def absorb(absorption: Absorption) -> bool:
        nonlocal written
        for rollup in upkeep.rollups:
            if rollup.type == type_:
                some, finished = await rollups.absorb(timeline, rollup, absorption, now, upkeep.keep_snapshots_s)
                written += some
                if not finished:
                    return False
        return True

    deleted = await expiry.expire(timeline, type_, stop, absorb)
    return written, deleted
