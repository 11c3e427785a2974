"""Parse and execute history queries: the parameters of ``GET /v1/history`` and `keepfit history`.

Pure, except for :func:`execute`. Owns names, formats and limits of the parameters. Invariant: a parameter of another
name is a key of metadata, and its text is compared as each value that it may stand for.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from keepfit import times
from keepfit.conditions import possible_values
from keepfit.errors import InvalidError, MalformedError
from keepfit.history import points
from keepfit.history.filters import DOCUMENT, Filter, check_hash, check_kind
from keepfit.history.grouping import Fill
from keepfit.history.metadata_labels import filters_of
from keepfit.history.points import Aggregation
from keepfit.history.timeline import Timeline

LIMIT, LIMIT_MAX = 100, 1000
# Each page reads all documents before it again.
DEPTH_MAX = 100_000
NUMBER = re.compile(r"[0-9]{1,9}")
# Parameters of points require `every`, parameters of documents exclude it.
POINT_PARAMETERS = ("stat", "field", "group", "fill", "rate", "moving")
DOCUMENT_PARAMETERS = ("closest", "last", "limit", "page")
PARAMETERS = frozenset(
    {"type", "hash", "kind", "timestamp", "after", "before", "every", *POINT_PARAMETERS, *DOCUMENT_PARAMETERS}
)
# Names that other systems use for `after` and `before`. As keys of metadata they are written metadata.since.
NOT_PARAMETERS = ("since", "until")


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """A parsed query: points of an `aggregation`, the document `closest` to a time, or a page of documents.

    Documents are ordered newest first. `where` filters them, `start` (inclusive) and `stop` (exclusive) bound their
    time in seconds.
    """

    where: Filter
    start: float | None = None
    stop: float | None = None
    closest: float | None = None
    limit: int = LIMIT
    page: int = 1
    aggregation: Aggregation | None = None


def parse(parameters: Mapping[str, str], *, words: bool = True, limit_max: int = LIMIT_MAX) -> HistoryQuery:
    """Parse a query; `words` says whether dateparser reads times of unknown form (a heavy import).

    Raises
    ------
    MalformedError
        If a parameter is malformed, or excludes another one.
    InvalidError
        If a limit is exceeded.
    """
    rest = dict(parameters)

    def time_of(name: str) -> float | None:
        text = rest.pop(name, None)
        with _named(name):
            return None if text is None else times.parse_time(text, words=words)

    every = rest.pop("every", None)
    wrong = [name for name in (POINT_PARAMETERS if every is None else DOCUMENT_PARAMETERS) if name in rest]
    if wrong:
        raise MalformedError(f"{wrong[0]} {'requires' if every is None else 'cannot be combined with'} every.")
    for name in NOT_PARAMETERS:
        if name in rest:
            raise MalformedError(f"{name} is not a parameter: use after or before, or metadata.{name} for metadata.")
    query = HistoryQuery(Filter(), time_of("after"), time_of("before"), time_of("closest"))
    at = time_of("timestamp")
    if query.closest is not None and ("last" in rest or {query.start, query.stop, at} != {None}):
        raise MalformedError("closest cannot be combined with before, after, last and timestamp.")
    if query.start is not None and query.stop is not None and query.start > query.stop:
        raise InvalidError(f"after, {times.format_time(query.start)}, is later than before.")
    if every is not None:
        query = replace(query, aggregation=_parse_aggregation(every, rest).check())
        if query.start is not None and query.stop is not None:
            points.check_length(query.start, query.stop, times.parse_duration(every, unit_optional=True))
    else:
        query = _with_page(query, rest, limit_max)
    model_hash, kind = rest.pop("hash", None), rest.pop("kind", None)
    check_kind(kind)
    if model_hash is not None and kind != DOCUMENT:
        check_hash(model_hash)
    type_ = rest.pop("type", None)
    values = {key: possible_values(text) for key, text in filters_of(rest).items()}
    return replace(query, where=Filter(type_, model_hash, values, at, kind))  # type: ignore[arg-type]


def _parse_aggregation(every: str, rest: dict[str, str]) -> Aggregation:
    rate, moving = rest.pop("rate", None), rest.pop("moving", None)
    return Aggregation(
        every=_parse_duration("every", every),
        stat=rest.pop("stat", "mean"),
        field=rest.pop("field", None),
        group=rest.pop("group", None),
        fill=_parse_fill(rest.pop("fill", "none")),
        rate=None if rate is None else _parse_duration("rate", rate),
        moving=None if moving is None else _parse_number("moving", moving, points.MOVING_MAX),
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the parameter in an error about its value."""
    try:
        yield
    except MalformedError as error:
        raise MalformedError(f"{name}: {error}") from None


def _parse_duration(name: str, text: str) -> float:
    with _named(name):
        return times.parse_duration(text, unit_optional=True)


def _with_page(query: HistoryQuery, rest: dict[str, str], limit_max: int) -> HistoryQuery:
    last = rest.pop("last", None)
    if last is not None and ("limit" in rest or "page" in rest):
        raise MalformedError("last is a limit itself: it cannot be combined with limit and page.")
    if last is not None:
        return replace(query, limit=_parse_number("last", "1" if last in ("", "true") else last, limit_max))
    limit = _parse_number("limit", rest.pop("limit", str(min(LIMIT, limit_max))), limit_max)
    page = _parse_number("page", rest.pop("page", "1"), 10**9)
    if limit * page > DEPTH_MAX:
        raise InvalidError(f"Pages reach {DEPTH_MAX:,} documents deep; use before to read older ones.")
    return replace(query, limit=limit, page=page)


def _parse_number(name: str, text: str, most: int) -> int:
    if not NUMBER.fullmatch(text) or not 1 <= int(text) <= most:
        raise MalformedError(f"{name} must be a whole number from 1 to {most}.")
    return int(text)


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
    if query.aggregation is not None:
        return list(await timeline.aggregate(query.aggregation, query.where, query.start, query.stop))
    if query.closest is not None:
        found = await timeline.closest(query.where, query.closest)
        return [] if found is None else [found]
    return await timeline.query(query.where, query.start, query.stop, page_size=query.limit, page_num=query.page)
