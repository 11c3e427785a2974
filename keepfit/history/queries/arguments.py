"""Arguments of the timeline's queries: filters, keys and ranges of time, as users write them.

Pure. Invariant: an argument of another form is an error that says what to write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

from keepfit.errors import InvalidError, MalformedError
from keepfit.history.queries.filters import Filter, Kind, check_kind
from keepfit.times import Time, format_time, parse_time

Values = Mapping[str, Any] | Filter | None


def to_filter(where: Values, kind: Kind | None) -> Filter:
    """Return the filter that values mean."""
    if not isinstance(where, Filter):
        return Filter.of(where, kind)
    check_kind(kind)
    return where if kind is None else replace(where, kind=kind)


def take(where: Values, name: str, given: Any) -> tuple[Values, Any]:
    """Return the values without a parameter that is among them, and the parameter; `given` if it is not."""
    if not isinstance(where, Mapping) or name not in where:
        return where, given
    return {key: value for key, value in where.items() if key != name}, where[name]


def to_keys(name: str, keys: str | Sequence[str]) -> tuple[str, ...]:
    """Return one key or several as several; raise MalformedError if they are no texts."""
    found = (keys,) if isinstance(keys, str) else tuple(keys) if isinstance(keys, Sequence) else (keys,)
    for key in found:
        if not isinstance(key, str):
            raise MalformedError(f"{name} must be text, or several texts, not {key!r}.")
    return found


def with_type(where: Values, type_: str | None) -> Values:
    """Return values with a type, unless they have one."""
    return where if type_ is None or isinstance(where, Filter) else {"type": type_, **(where or {})}


def to_range(start: Time | None, stop: Time | None, zone: ZoneInfo | None = None) -> tuple[float | None, float | None]:
    """Return a range of time in seconds; raise InvalidError if it ends before it starts."""
    if isinstance(start, Mapping):
        raise InvalidError("where is one dictionary: join its values, {**first, **second}.")
    first, last = (None if time_ is None else parse_time(time_, zone=zone) for time_ in (start, stop))
    if first is not None and last is not None and first > last:
        raise InvalidError(f"The start, {format_time(first)}, is later than the stop, {format_time(last)}.")
    return first, last
