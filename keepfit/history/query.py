"""A question to the history as texts: what ``GET /v1/history`` and `keepfit history` take, and its answer.

Pure, but for :func:`answer`. Owns names, forms and bounds of the parameters. Invariant: what is no parameter is a key
of metadata, and its text is compared as the values that it may mean.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from keepfit.errors import InvalidError, MalformedError
from keepfit.history import points, times
from keepfit.history.grouping import Fill
from keepfit.history.metadata_labels import meanings_of
from keepfit.history.points import Shape
from keepfit.history.reading import Filter
from keepfit.history.timeline import Timeline

LIMIT, LIMIT_MAX = 100, 1000
# What lies before a page is read again for each.
DEPTH_MAX = 100_000
NUMBER = re.compile(r"[0-9]{1,9}")
HASH = re.compile(r"[0-9a-f]{64}")
# Those of points go with `every`, those of documents without.
OF_POINTS = ("stat", "field", "group", "fill", "rate", "moving")
OF_DOCUMENTS = ("closest", "last", "limit", "page")
PARAMETERS = frozenset({"type", "hash", "after", "before", "every", *OF_POINTS, *OF_DOCUMENTS})


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """What is asked: points of a `shape`, the document `closest` to a time, or a page of documents, newest first."""

    wanted: Filter
    start: float | None = None
    stop: float | None = None
    closest: float | None = None
    limit: int = LIMIT
    page: int = 1
    shape: Shape | None = None


def parse(given: Mapping[str, str], *, words: bool = True, limit_max: int = LIMIT_MAX) -> HistoryQuery:
    """Read a question; `words` tells whether times may be any words, which takes a heavy library.

    Raises
    ------
    MalformedError
        If a parameter has not its form, or does not go with another one.
    InvalidError
        If a bound is passed.
    """
    rest = dict(given)

    def moment(name: str) -> float | None:
        text = rest.pop(name, None)
        return None if text is None else times.parse_time(text, words=words)

    every = rest.pop("every", None)
    wrong = [name for name in (OF_POINTS if every is None else OF_DOCUMENTS) if name in rest]
    if wrong:
        raise MalformedError(f"{wrong[0]} goes {'only' if every is None else 'not'} with every.")
    asked = HistoryQuery(Filter(), moment("after"), moment("before"), moment("closest"))
    if asked.closest is not None and ("last" in rest or asked.start is not None or asked.stop is not None):
        raise MalformedError("closest stands alone: without before, after and last.")
    if every is not None:
        asked = replace(asked, shape=_shape(every, rest).check())
        if asked.start is not None and asked.stop is not None:
            points.check_length(asked.start, asked.stop, times.parse_duration(every))
    else:
        asked = _paged(asked, rest, limit_max)
    model_hash = rest.pop("hash", None)
    if model_hash is not None and not HASH.fullmatch(model_hash):
        raise MalformedError("A model's hash is 64 hexadecimal digits, in lower case.")
    type_ = rest.pop("type", None)
    return replace(asked, wanted=Filter(type_, model_hash, {key: meanings_of(text) for key, text in rest.items()}))


def _shape(every: str, rest: dict[str, str]) -> Shape:
    rate, moving = rest.pop("rate", None), rest.pop("moving", None)
    return Shape(
        every=times.parse_duration(every),
        stat=rest.pop("stat", "mean"),
        field=rest.pop("field", None),
        group=rest.pop("group", None),
        fill=_fill(rest.pop("fill", "none")),
        rate=None if rate is None else times.parse_duration(rate),
        moving=None if moving is None else _number("moving", moving, points.MOVING_MAX),
    )


def _paged(asked: HistoryQuery, rest: dict[str, str], limit_max: int) -> HistoryQuery:
    last = rest.pop("last", None)
    if last is not None and ("limit" in rest or "page" in rest):
        raise MalformedError("last is a limit itself: it goes without limit and page.")
    if last is not None:
        return replace(asked, limit=_number("last", "1" if last in ("", "true") else last, limit_max))
    limit = _number("limit", rest.pop("limit", str(min(LIMIT, limit_max))), limit_max)
    page = _number("page", rest.pop("page", "1"), 10**9)
    if limit * page > DEPTH_MAX:
        raise InvalidError(f"Pages go {DEPTH_MAX:,} documents deep; go on with before.")
    return replace(asked, limit=limit, page=page)


def _number(name: str, text: str, most: int) -> int:
    if not NUMBER.fullmatch(text) or not 1 <= int(text) <= most:
        raise MalformedError(f"{name} must be a whole number from 1 to {most}.")
    return int(text)


def _fill(text: str) -> Fill:
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        raise MalformedError("fill must be a finite number, or a word.")
    return value


async def answer(timeline: Timeline, asked: HistoryQuery) -> list[Any]:
    """Points where a shape is asked for, documents where not."""
    if asked.shape is not None:
        return list(await timeline.shaped(asked.shape, asked.wanted, asked.start, asked.stop))
    if asked.closest is not None:
        found = await timeline.closest(asked.wanted, asked.closest)
        return [] if found is None else [found]
    return await timeline.query(asked.wanted, asked.start, asked.stop, page_size=asked.limit, page_num=asked.page)
