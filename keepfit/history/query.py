"""Parse and execute history queries: the parameters of ``GET /v1/history`` and `keepfit history`.

Pure, except for :func:`execute`. Owns names, formats and limits of the parameters. Invariant: a parameter of another
name is a key of metadata, and its text is compared as each value that it may stand for.
"""

import math
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from keepfit import times
from keepfit.conditions import possible_values
from keepfit.errors import InvalidError, MalformedError
from keepfit.history.metadata_labels import filters_of
from keepfit.history.queries import comparisons, points, zones
from keepfit.history.queries.buckets import parse_buckets
from keepfit.history.queries.comparisons import Comparison
from keepfit.history.queries.filters import DOCUMENT, Filter, check_comparisons, check_hash, check_kind
from keepfit.history.queries.grouping import Fill
from keepfit.history.queries.points import Aggregation
from keepfit.history.queries.sources import check_field
from keepfit.history.timeline import Timeline

LIMIT, LIMIT_MAX = 100, 1000
# A stream returns each document as it is read.
STREAM_LIMIT_MAX = 999_999_999
# Each page reads all documents before it again.
DEPTH_MAX = 100_000
NUMBER = re.compile(r"[0-9]{1,9}")
CHOICES = ("top", "bottom")
# Parameters of points require `every`, parameters of documents exclude it; the choices belong to both.
POINT_PARAMETERS = (
    "stat", "group", "fill", "rate", "nonnegative_rate", "increase", "cumulative", "moving", "exponential", "series",
)  # fmt: skip
DOCUMENT_PARAMETERS = ("closest", "last", "per", "limit", "page")
PARAMETERS = frozenset(
    {"type", "hash", "kind", "where", "timestamp", "after", "before", "tz", "every", "field", *CHOICES}
    | {*POINT_PARAMETERS, *DOCUMENT_PARAMETERS}
)
# Parameters that a query may have several times.
REPEATABLE = frozenset({"where", "group", "per"})
# Names that other systems use for parameters, and those. As keys of metadata they are written metadata.since.
NOT_PARAMETERS = {
    "since": "after or before", "until": "before", "start": "after", "stop": "before", "timezone": "tz",
    "group_by": "group", "pagination": "limit and page", "page_size": "limit", "page_num": "page",
    "query_type": "type", "time_type": "after and before",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """A parsed query: points of an `aggregation`, the document `closest` to a time, chosen documents, or a page.

    `where` filters documents, `start` (inclusive) and `stop` (exclusive) bound their time in seconds; they are ordered
    newest first. `per` are keys: the newest document for each of their values. With `field`, the `limit` documents
    with its largest values, or smallest. `zone` is the time zone that the query names.
    """

    where: Filter
    start: float | None = None
    stop: float | None = None
    closest: float | None = None
    limit: int = LIMIT
    page: int = 1
    aggregation: Aggregation | None = None
    per: tuple[str, ...] = ()
    field: str | None = None
    smallest: bool = False
    zone: ZoneInfo | None = None


Texts = str | Sequence[str]


def parse(
    parameters: Mapping[str, Texts], *, words: bool = True, limit: int = LIMIT, limit_max: int = LIMIT_MAX
) -> HistoryQuery:
    """Parse a query; `words` says whether dateparser reads times of unknown form (a heavy import).

    `parameters` have a text each, those of :data:`REPEATABLE` also several. `limit` is the default of the parameter. A
    time zone is read from a file when it is first used.

    Raises
    ------
    MalformedError
        If a parameter is malformed, or excludes another one.
    InvalidError
        If a limit is exceeded, or there is no such time zone.
    """
    rest, several = dict[str, str](), dict[str, tuple[str, ...]]()
    for name, given in parameters.items():
        if name in REPEATABLE:
            several[name] = (given,) if isinstance(given, str) else tuple(given)
        else:
            rest[name] = given if isinstance(given, str) else given[0]
    zone_name = rest.pop("tz", None)
    zone = None if zone_name is None else zones.parse_zone(zone_name)

    def time_of(name: str) -> float | None:
        text = rest.pop(name, None)
        with _named(name):
            return None if text is None else times.parse_time(text, words=words, zone=zone)

    every = rest.pop("every", None)
    _check_names({**rest, **several}, every)
    query = HistoryQuery(Filter(), time_of("after"), time_of("before"), time_of("closest"), zone=zone)
    at = time_of("timestamp")
    if query.closest is not None and ("last" in rest or {query.start, query.stop, at} != {None}):
        raise MalformedError("closest cannot be combined with before, after, last and timestamp.")
    if query.start is not None and query.stop is not None and query.start > query.stop:
        raise InvalidError(f"after, {times.format_time(query.start)}, is later than before.")
    if every is not None:
        query = _with_points(query, every, rest, several.get("group", ()))
    else:
        query = _with_documents(query, rest, several.get("per", ()), limit, limit_max)
    model_hash, kind = rest.pop("hash", None), rest.pop("kind", None)
    check_kind(kind)
    if model_hash is not None and kind != DOCUMENT:
        check_hash(model_hash)
    type_ = rest.pop("type", None)
    values = {key: possible_values(text) for key, text in filters_of(rest).items()}
    compared = tuple(_comparisons(several.get("where", ())))
    check_comparisons(compared)
    return replace(query, where=Filter(type_, model_hash, values, at, kind, comparisons=compared))  # type: ignore[arg-type]


def _check_names(given: Mapping[str, Texts], every: str | None) -> None:
    """Raise MalformedError for parameters that exclude one another, or that have another name here."""
    wrong = [name for name in (POINT_PARAMETERS if every is None else DOCUMENT_PARAMETERS) if name in given]
    if wrong:
        raise MalformedError(f"{wrong[0]} {'requires' if every is None else 'cannot be combined with'} every.")
    if every is None and "field" in given and not given.keys() & set(CHOICES):
        raise MalformedError("field requires every, or top or bottom.")
    for name, instead in NOT_PARAMETERS.items():
        if name in given:
            raise MalformedError(f"{name} is not a parameter: use {instead}, or metadata.{name} for metadata.")


def _comparisons(texts: Sequence[str]) -> Iterator[Comparison]:
    for text in texts:
        with _named("where"):
            found = comparisons.parse(text)
        if found.operator == "=" and found.key in ("type", "hash", "timestamp"):
            raise MalformedError(f"where: {found.key} is a parameter of its own: {found.key}=VALUE.")
        if found.key == "timestamp":
            raise MalformedError("where: timestamp is not compared: use after and before.")
        yield found


def _with_points(query: HistoryQuery, every: str, rest: dict[str, str], groups: tuple[str, ...]) -> HistoryQuery:
    def number(name: str, most: int) -> int | None:
        text = rest.pop(name, None)
        return None if text is None else _parse_number(name, text, most)

    def duration(name: str) -> float | None:
        text = rest.pop(name, None)
        with _named(name):
            return None if text is None else times.parse_duration(text, unit_optional=True)

    with _named("every"):
        buckets = parse_buckets(every, query.zone)
    aggregation = Aggregation(
        buckets,
        stat=rest.pop("stat", "mean"),
        field=rest.pop("field", None),
        groups=groups,
        fill=_parse_fill(rest.pop("fill", "none")),
        rate=duration("rate"),
        nonnegative_rate=duration("nonnegative_rate"),
        increase=_parse_flag("increase", rest.pop("increase", "false")),
        cumulative=_parse_flag("cumulative", rest.pop("cumulative", "false")),
        moving=number("moving", points.MOVING_MAX),
        exponential=number("exponential", points.MOVING_MAX),
        top=number("top", points.SERIES_MAX),
        bottom=number("bottom", points.SERIES_MAX),
        series=number("series", points.SERIES_MAX),
    ).check()
    if query.start is not None and query.stop is not None:
        points.check_length(query.start, query.stop, buckets.length_s)
    return replace(query, aggregation=aggregation)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the parameter in an error about its value."""
    try:
        yield
    except MalformedError as error:
        raise MalformedError(f"{name}: {error}") from None


def _with_documents(
    query: HistoryQuery, rest: dict[str, str], per: tuple[str, ...], limit: int, limit_max: int
) -> HistoryQuery:
    chosen = [name for name in CHOICES if name in rest]
    excluding = [*chosen, *(["per"] if per else []), *(["closest"] if query.closest is not None else [])]
    if len(excluding) > 1 or (excluding and {"last", "page"} & rest.keys()):
        raise MalformedError(f"{excluding[0]} cannot be combined with {(*excluding[1:], 'last and page')[0]}.")
    if chosen:
        if "limit" in rest:
            raise MalformedError(f"{chosen[0]} is a limit itself: it cannot be combined with limit.")
        if "field" not in rest:
            raise MalformedError(f"{chosen[0]} requires field, the name of a number; with every, it chooses groups.")
        count = _parse_number(chosen[0], rest.pop(chosen[0]), min(limit_max, points.SERIES_MAX))
        return replace(query, field=check_field(rest.pop("field")), limit=count, smallest=chosen == ["bottom"])
    if per:
        if "timestamp" in per or len(set(per)) < len(per) or len(per) > points.KEYS_MAX:
            raise InvalidError(f"per names at most {points.KEYS_MAX} different keys of metadata or fields.")
        most = min(limit_max, points.SERIES_MAX)
        return replace(query, per=per, limit=_parse_number("limit", rest.pop("limit", str(most)), most))
    return _with_page(query, rest, limit, limit_max)


def _with_page(query: HistoryQuery, rest: dict[str, str], default: int, limit_max: int) -> HistoryQuery:
    last = rest.pop("last", None)
    if last is not None and ("limit" in rest or "page" in rest):
        raise MalformedError("last is a limit itself: it cannot be combined with limit and page.")
    if last is not None:
        return replace(query, limit=_parse_number("last", "1" if last in ("", "true") else last, limit_max))
    limit = _parse_number("limit", rest.pop("limit", str(min(default, limit_max))), limit_max)
    page = _parse_number("page", rest.pop("page", "1"), 10**9)
    if page > 1 and limit * page > DEPTH_MAX:
        raise InvalidError(f"Pages reach {DEPTH_MAX:,} documents deep; use before to read older ones.")
    return replace(query, limit=limit, page=page)


def _parse_number(name: str, text: str, most: int) -> int:
    if not NUMBER.fullmatch(text) or not 1 <= int(text) <= most:
        raise MalformedError(f"{name} must be a whole number from 1 to {most}.")
    return int(text)


def _parse_flag(name: str, text: str) -> bool:
    if text not in ("", "true", "false"):
        raise MalformedError(f"{name} must be true or false, not {text[:64]!r}.")
    return text != "false"


def _parse_fill(text: str) -> Fill:
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        raise MalformedError("fill must be a finite number or a word.")
    return value


async def execute(timeline: Timeline, query: HistoryQuery) -> list[Any]:
    """Return points if the query has an aggregation, otherwise documents."""
    where, start, stop = query.where, query.start, query.stop
    if query.aggregation is not None:
        return list(await timeline.aggregate(query.aggregation, where, start, stop))
    if query.closest is not None:
        found = await timeline.closest(where, query.closest)
        return [] if found is None else [found]
    if query.per:
        return await timeline.query_last_per(query.per, where, start, stop, query.limit)
    if query.field is not None:
        return await timeline.query_top(query.field, query.limit, where, start, stop, smallest=query.smallest)
    return await timeline.query(where, start, stop, page_size=query.limit, page_num=query.page)


async def stream(timeline: Timeline, query: HistoryQuery) -> AsyncGenerator[Any]:
    """Yield what :func:`execute` returns, documents while the server returns them."""
    chosen = query.aggregation or query.closest is not None or query.per or query.field is not None
    if chosen or query.page > 1:
        for item in await execute(timeline, query):
            yield item
        return
    async for document in timeline.stream(query.where, query.start, query.stop, query.limit):
        yield document
