"""Parse and format times, parse durations: seconds, datetimes, ISO 8601, "yesterday", "2 hours ago", "5m".

Pure, except for the clock. Numbers, ISO 8601 and a few plain phrases are parsed here; other words go to dateparser (in
English), which is imported only then, and never by services. Invariants: a time is a finite number of seconds since
1970 (UTC); text without a zone is local time; :func:`parse_time` of :func:`format_time` is the same number.
"""

import math
import re
import time
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from numbers import Real
from typing import Any

from keepfit.errors import InvalidError, MalformedError

Time = float | datetime | str
Duration = float | timedelta | str

TEXT_MAX = 64
# The years 1 to 9999: the range of datetime.
SECONDS_MIN, SECONDS_MAX = -62_135_596_800.0, 253_402_300_799.0
# A time that is called past may be ahead by as much as clocks of machines differ.
CLOCK_SKEW_S_MAX = 30.0

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|w)?")
# A shorter span is below the resolution of a time, a longer one is above the range of times.
DURATION_S_MIN, DURATION_S_MAX = 1e-6, SECONDS_MAX - SECONDS_MIN
AGO = re.compile(r"([0-9]{1,9}) ?(s|m|h|d|w|(?:sec|second|min|minute|hour|day|week)s?) ago")
# What dateparser may read of this form: other units it would take for one that it knows.
ANY_UNIT_AGO = re.compile(r"[0-9.,]+ ?([^\W\d]+) ago")
UNITS = re.compile(r"s|m|h|d|w|(?:sec|second|min|minute|hr|hour|day|week|month|yr|year|decade)s?")
DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
MILLISECONDS = re.compile(r"[+-]?[0-9]{1,18}ms")
# A date without separators is ISO 8601 and a number.
BASIC_DATE = re.compile(r"(?:1[89]|2[0-9])[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")
FRACTION = re.compile(r"(?<=[0-9]{2})[.,]([0-9]+)(?=$|[Z+-])")
# Python reads the fraction of an hour or a minute as one of a second.
FRACTION_OF_HOUR = re.compile(r"[^0-9:][0-9]{2}(?::?[0-9]{2})?[.,]")
FRACTION_DIGITS_MIN = -9
SLASHES = re.compile(r"([0-9]{4})/([0-9]{2})/([0-9]{2})")
UTC_NAME = re.compile(r" ?(?:UTC|GMT|z)$")
# What dateparser may read: a word, or a time of day. It guesses the meaning of other text: 2026-13-01, 05/04/2026.
WORDS = re.compile(r"(?![0-9]{4}-).*(?:[A-Za-z]{3}|[0-9] ?[ap]m\b).*|[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?", re.IGNORECASE)


def parse_time(time_: Time, *, now: float | None = None, words: bool = True, zone: tzinfo | None = None) -> float:
    """Return a time in seconds since 1970.

    >>> parse_time(12.5), parse_time("12.5"), parse_time("2 hours ago", now=7200.0), parse_time("2026-11-20T12:00Z")
    (12.5, 12.5, 0.0, 1795176000.0)

    Parameters
    ----------
    time_
        Seconds, a datetime, or text.
    now
        The time (seconds) that relative times refer to; the clock's by default.
    words
        Whether dateparser reads text that has no other known form.
    zone
        The time zone of text without one; that of the machine by default.

    Raises
    ------
    MalformedError
        If it is not a time, outside of the years 1 to 9999, or a local time that occurs twice or never.
    """
    found: float | None = None
    if isinstance(time_, datetime):
        found = _of_datetime(time_)
    elif isinstance(time_, str):
        found = _parse_text(time_.strip(), time.time() if now is None else now, words, zone)
    elif _is_number(time_):
        found = float(time_)
    if found is None or not SECONDS_MIN <= found <= SECONDS_MAX:
        raise MalformedError(
            f"{str(time_)[:TEXT_MAX]!r} is not a valid time: use 2026-11-20T12:00Z (UTC), 2026-11-20 12:00 (local), "
            "yesterday, 2 hours ago, or seconds since 1970 (milliseconds with their unit: 1795176000250ms)."
        )
    return found


def parse_past_time(time_: Time, *, words: bool = True) -> float:
    """Do :func:`parse_time` for a time that must not be in the future.

    Raises
    ------
    InvalidError
        If it is ahead of the clock by more than :data:`CLOCK_SKEW_S_MAX`.
    """
    now = time.time()
    found = parse_time(time_, now=now, words=words)
    if found > now + CLOCK_SKEW_S_MAX:
        raise InvalidError(
            f"{str(time_)[:TEXT_MAX]!r} is in the future: it means {format_time(found)}, and now it is "
            f"{format_time(math.floor(now))}."
        )
    return found


def format_time(timestamp: float) -> str:
    """Return date and time in UTC, with as many digits as :func:`parse_time` needs to return the same number.

    A time nearer to 1970 than a nanosecond, or outside of the years 1 to 9999, is returned as a number of seconds.

    >>> format_time(1795176000.0), format_time(1795975142.8589914)
    ('2026-11-20T12:00:00Z', '2026-11-29T17:59:02.8589914Z')
    """
    exact = Decimal(repr(float(timestamp) + 0.0))
    if not SECONDS_MIN <= exact <= SECONDS_MAX or (exact and exact.adjusted() < FRACTION_DIGITS_MIN):
        return repr(float(timestamp))
    whole = math.floor(exact)
    fraction = f"{exact - whole:f}".rstrip("0").removeprefix("0").rstrip(".")
    return f"{datetime.fromtimestamp(whole, UTC).replace(tzinfo=None).isoformat()}{fraction}Z"


def parse_duration(duration: Duration, *, unit_optional: bool = False) -> float:
    """Return a duration in seconds; text without a unit is seconds where `unit_optional`.

    >>> parse_duration("30s"), parse_duration("5m"), parse_duration("1.5h"), parse_duration("1w")
    (30.0, 300.0, 5400.0, 604800.0)
    >>> parse_duration("1.5", unit_optional=True), parse_duration(1209600), parse_duration(timedelta(minutes=5))
    (1.5, 1209600.0, 300.0)

    Raises
    ------
    MalformedError
        If it is not a duration, below a microsecond, or longer than 9,999 years.
    """
    seconds = 0.0
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, str):
        found = DURATION.fullmatch(duration)
        unit = found[2] or ("s" if unit_optional else None) if found else None
        seconds = float(found[1]) * UNITS_S[unit] if found and unit else 0.0
    elif _is_number(duration):
        seconds = float(duration)
    if not DURATION_S_MIN <= seconds <= DURATION_S_MAX:
        raise MalformedError(f"{str(duration)[:TEXT_MAX]!r} is not a valid duration: use 60s, 5m or 1h.")
    return seconds


def _is_number(value: object) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool)


def _of_datetime(moment: datetime) -> float | None:
    try:
        if moment != moment:  # noqa: PLR0124 - pandas.NaT
            return None
        # Not moment.timestamp(): a subclass may read a time without a zone as UTC, as pandas does.
        found = datetime.timestamp(moment)
        # pandas.Timestamp has nanoseconds in addition.
        nanoseconds = moment.microsecond * 1000 + getattr(moment, "nanosecond", 0)
        return found if nanoseconds % 1000 == 0 else float(math.floor(found) + Decimal(nanoseconds) / 10**9)
    except (ValueError, OverflowError, OSError):
        return None


def _parse_text(text: str, now: float, words: bool, zone: tzinfo | None) -> float | None:
    if len(text) > TEXT_MAX:
        return None
    plain = text.lower()
    ago = AGO.fullmatch(plain)
    if plain == "now":
        return now
    if ago:
        return now - float(ago[1]) * UNITS_S[ago[2][0]]
    if plain in DAYS:
        midnight = datetime.fromtimestamp(now, zone).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        # Count calendar days: on days of a clock change a day does not have 24 hours.
        return (midnight + timedelta(days=DAYS[plain])).replace(tzinfo=zone).timestamp()
    if NUMBER.fullmatch(text) or MILLISECONDS.fullmatch(text):
        return _parse_number(text)
    found = _parse_iso(UTC_NAME.sub("Z", SLASHES.sub(r"\1-\2-\3", text)), zone)
    return _parse_words(text, now, zone) if found is None and words and WORDS.fullmatch(text) else found


def _parse_number(text: str) -> float:
    if text.endswith("ms"):
        return int(text.removesuffix("ms")) / 1000
    if BASIC_DATE.fullmatch(text):
        raise MalformedError(
            f"{text!r} is a date and a number of seconds: write {text[:4]}-{text[4:6]}-{text[6:]}, or {text}.0."
        )
    return float(text)


def _parse_iso(text: str, zone: tzinfo | None) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        if FRACTION_OF_HOUR.search(text):
            return None
        # datetime has microseconds; a time may have more digits.
        fraction = FRACTION.search(text)
        if fraction is None or (moment.utcoffset() or timedelta(0)).microseconds:
            return _to_seconds(moment, text, zone)
        whole = round(_to_seconds(moment.replace(microsecond=0), text, zone))
        return float(whole + Decimal(f"0.{fraction[1]}"))
    except (ValueError, OverflowError, OSError):
        return None


def _to_seconds(moment: datetime, text: str, zone: tzinfo | None) -> float:
    """Return the time that a text means; raise MalformedError if clocks of its zone show it twice, or never."""
    if moment.tzinfo is not None:
        return moment.timestamp()
    placed = moment.replace(tzinfo=zone)
    found = placed.timestamp()
    if placed.replace(fold=1).timestamp() == found:
        return found
    if datetime.fromtimestamp(found, zone).replace(tzinfo=None) != moment:
        whose = "local clocks" if zone is None else f"clocks of {zone}"
        raise MalformedError(f"{text!r} is not a valid time: {whose} skip it; name the zone, 2026-11-20T12:00Z.")
    times = " or ".join(placed.replace(fold=fold).astimezone(zone).isoformat() for fold in (0, 1))
    raise MalformedError(f"{text!r} occurs twice in {'local time' if zone is None else zone}: use {times}.")


def _parse_words(text: str, now: float, zone: tzinfo | None) -> float | None:
    try:
        import dateparser  # noqa: PLC0415 - slow to import, and seldom needed
    except ModuleNotFoundError:
        return None
    settings: Any = {
        "RELATIVE_BASE": datetime.fromtimestamp(now, zone).replace(tzinfo=None),
        "PREFER_DATES_FROM": "past",
    }
    unit = ANY_UNIT_AGO.fullmatch(text.lower())
    if unit and not UNITS.fullmatch(unit[1]):
        return None
    # English only: trying all 200 languages on text that is in none of them takes seconds.
    found: datetime | None = dateparser.parse(text, languages=["en"], settings=settings)
    return None if found is None else _to_seconds(found, text, zone)
