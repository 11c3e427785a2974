"""The upkeep of the timeline: roll-ups brought up to date, then what is older than it is kept deleted.

Owns when and in which order; the snapshotter calls it after each pass. Never touches a snapshot's document: those go
with their snapshots. Invariant: what is to be rolled up is rolled up before it is deleted, or stays.
"""

import time
from dataclasses import dataclass

import structlog

from keepfit.errors import InvalidError, MalformedError, SettingsError
from keepfit.history import rollups, times
from keepfit.history.reading import Filter
from keepfit.history.rollups import Rollup
from keepfit.history.timeline import Timeline
from keepfit.settings import Settings

log = structlog.get_logger(__name__)

ALL_OTHERS = "*"


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What is to be done: roll-ups, and for how many seconds stored documents of a type (``*``: any other) are kept."""

    rollups: tuple[Rollup, ...] = ()
    keep_s: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> "Upkeep":
        """Read what the settings ask for; raises SettingsError where they cannot be read."""
        return cls(tuple(rollups.parse(settings.history_rollups)), tuple(_kept(settings.history_keep).items()))


def _kept(text: str) -> dict[str, float]:
    """Seconds by type.

    >>> _kept("shoes 30d, shoes/5m 52w, * 90d")
    {'shoes': 2592000.0, 'shoes/5m': 31449600.0, '*': 7776000.0}
    """
    kept = {}
    for part in filter(None, map(str.strip, text.split(","))):
        type_, _, span = part.rpartition(" ")
        if not type_.strip():
            raise SettingsError(f"KEEPFIT_HISTORY_KEEP: {part!r} is not TYPE SPAN.")
        try:
            kept[type_.strip()] = times.parse_duration(span)
        except MalformedError as error:
            raise SettingsError(f"KEEPFIT_HISTORY_KEEP: {part!r} is no rule: {error}") from None
    return kept


async def run(timeline: Timeline, upkeep: Upkeep, now: float | None = None) -> tuple[int, int]:
    """Do it once; returns how many documents were written and deleted. Many at once do no harm.

    Raises
    ------
    UnavailableError
        If MongoDB is away. Doing it again later is right.
    """
    now = time.time() if now is None else now
    written = deleted = 0
    waiting = set()
    for rollup in upkeep.rollups:
        try:
            written += await rollups.roll_up(timeline, rollup, now)
        except InvalidError as error:
            waiting.add(rollup.type)
            log.warning("rollup_failed", type=rollup.type, every=rollup.every, field=rollup.field, reason=str(error))
    named = {type_ for type_, _ in upkeep.keep_s if type_ != ALL_OTHERS}
    for type_, seconds in upkeep.keep_s:
        if type_ == ALL_OTHERS:
            deleted += await timeline.delete_others(sorted(named | waiting), now - seconds)
        elif type_ not in waiting:
            deleted += await timeline.delete_many(Filter(type_), stop=now - seconds)
    return written, deleted
