"""Times and spans as people write them: seconds, datetimes, ISO 8601, "yesterday", "2 hours ago", "5m".

Pure, but for the clock. What is a number, ISO 8601 or one of a few plain phrases is read here; other words are left to
dateparser (in English), which is imported only then, and never by services. Invariant: a
time is a finite number of seconds since 1970 (UTC); a text without a zone is local time.
"""

import math
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from keepfit.errors import MalformedError

Time = float | datetime | str

TEXT_MAX = 64
# The years 1 to 9999, which datetime can show.
SECONDS_MIN, SECONDS_MAX = -62_135_596_800.0, 253_402_300_799.0

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(s|m|h|d|w)")
AGO = re.compile(r"([0-9]{1,9}) ?(s|m|h|d|w|sec|second|min|minute|hour|day|week)s? ago")
DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}


def seconds(given: Time, *, now: float | None = None, words: bool = True) -> float:
    """Seconds since 1970 of a time; `words` tells whether dateparser is asked where nothing else fits.

    >>> seconds(12.5), seconds("12.5"), seconds("2 hours ago", now=7200.0), seconds("2026-11-20T12:00Z")
    (12.5, 12.5, 0.0, 1795176000.0)

    Raises
    ------
    MalformedError
        If it is no time.
    """
    if isinstance(given, datetime):
        found: float | None = given.timestamp()
    elif isinstance(given, str):
        found = _of_text(given.strip(), time.time() if now is None else now, words)
    elif isinstance(given, bool):
        found = None
    else:
        found = float(given)
    if found is None or not SECONDS_MIN <= found <= SECONDS_MAX:
        raise MalformedError(
            f"{str(given)[:TEXT_MAX]!r} is no time: write 2026-11-20 12:00, yesterday, 2 hours ago, or seconds since "
            "1970."
        )
    return found


def span(text: str) -> float:
    """Seconds in a span of time.

    >>> span("30s"), span("5m"), span("1.5h"), span("1w")
    (30.0, 300.0, 5400.0, 604800.0)

    Raises
    ------
    MalformedError
        If it is none, or 0.
    """
    found = SPAN.fullmatch(text)
    length = float(found[1]) * UNITS_S[found[2]] if found else 0.0
    if not length:
        raise MalformedError(f"{text[:TEXT_MAX]!r} is no span of time: write 30s, 5m, 1h, 1d or 1w.")
    return length


def _of_text(text: str, now: float, words: bool) -> float | None:
    if len(text) > TEXT_MAX:
        return None
    plain = text.lower()
    ago = AGO.fullmatch(plain)
    if plain == "now":
        return now
    if ago:
        return now - float(ago[1]) * UNITS_S[ago[2][0]]
    if plain in DAYS:
        midnight = datetime.fromtimestamp(now).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        # By the calendar: where clocks are changed, a day has not 24 hours.
        return (midnight.replace(tzinfo=None) + timedelta(days=DAYS[plain])).timestamp()
    for read in (_number, _iso):
        found = read(text)
        if found is not None:
            return found
    return _of_words(text, now) if words else None


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _iso(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _of_words(text: str, now: float) -> float | None:
    try:
        import dateparser  # noqa: PLC0415 - heavy, and seldom needed
    except ModuleNotFoundError:
        return None
    settings: Any = {"RELATIVE_BASE": datetime.fromtimestamp(now), "PREFER_DATES_FROM": "past"}
    # One language: to find out that it is none of two hundred takes seconds.
    found: datetime | None = dateparser.parse(text, languages=["en"], settings=settings)
    return None if found is None else found.timestamp()


def shown(timestamp: float) -> str:
    """A time for people's eyes, in UTC.

    >>> shown(1795176000.0)
    '2026-11-20 12:00:00'
    """
    return datetime.fromtimestamp(timestamp, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
