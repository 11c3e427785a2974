"""HTTP caching of predictions: Cache-Control, ETag, If-None-Match, Age, Cache-Status.

Owns the meaning of these header fields here (RFC 9110, RFC 9111, RFC 5861, RFC 9211). Never decides whether a cached
answer is valid: that is :mod:`keepfit_gateway.prediction.cache`. Invariant: a response from the cache equals the first
one except for its Age, and a stale one also says so in Cache-Status.
"""

import math
import re
from typing import NamedTuple

from aiohttp import hdrs, web
from multidict import CIMultiDict, istr

from keepfit.errors import KeepfitError
from keepfit.jobs.traffic import KEPT
from keepfit.store.models import Model
from keepfit_gateway.prediction.cache import Cache
from keepfit_gateway.web.fields import Headers
from keepfit_gateway.web.problems import problem_name

MAX_AGE = re.compile(r"max-age=\"?(\d{1,9})\"?")
STALE_IF_ERROR = re.compile(r"stale-if-error=\"?(\d{1,9})\"?")
CACHE_STATUS = istr("Cache-Status")
ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
# Vary also if the body is too short for compression: a 304 has the fields of its 200, and may not know the length.
HEADERS = CIMultiDict(
    {hdrs.CONTENT_TYPE: "application/json", hdrs.CACHE_CONTROL: "no-cache", hdrs.VARY: "Accept-Encoding"}
)


class CacheControl(NamedTuple):
    """What a request allows: a cached answer, of which age, storing the answer, and computing it in the gateway.

    `stale_if_error_s` is for how long an answer may be stale if the current one cannot be had; None: not said.
    """

    use_cached: bool = True
    store: bool = True
    age_s_max: float = math.inf
    score: bool = True
    stale_if_error_s: float | None = None

    def stale_s_max(self, default_s: float) -> float:
        """Return for how long an answer may be stale instead of an error.

        `default_s` is for requests that say nothing about it, and nothing that a stale answer would violate.
        """
        if self.stale_if_error_s is not None:
            return self.stale_if_error_s
        return default_s if self.use_cached and self.age_s_max == math.inf else 0


DEFAULT = CacheControl()


class Reply(NamedTuple):
    """A prediction: its ETag, its JSON (empty if the client has it), its age in seconds if it was not computed now.

    `cache_status` is the value of Cache-Status, "" for none. `source` is where it comes from, one of
    :data:`keepfit.jobs.traffic.SOURCES`, and `rows` the number of rows.
    """

    etag: str
    body: bytes
    age_s: float | None = None
    cache_status: str = ""
    source: int = KEPT
    rows: int = 1


def cache_control(headers: Headers) -> CacheControl:
    """Parse the Cache-Control of a request.

    >>> cache_control(CIMultiDict({"Cache-Control": "max-age=5"}))
    CacheControl(use_cached=True, store=True, age_s_max=5.0, score=True, stale_if_error_s=None)
    """
    if hdrs.CACHE_CONTROL not in headers:
        return DEFAULT
    directives = [each.strip() for each in ",".join(headers.getall(hdrs.CACHE_CONTROL)).lower().split(",")]
    store, score = "no-store" not in directives, "no-cache" not in directives
    ages, stale = _seconds(MAX_AGE, directives), _seconds(STALE_IF_ERROR, directives)
    return CacheControl(store and score, store, min(ages, default=math.inf), score, min(stale, default=None))


def _seconds(directive: re.Pattern[str], directives: list[str]) -> list[float]:
    return [float(found[1]) for each in directives if (found := directive.fullmatch(each))]


def etag_of(key: bytes, generation: int, version: float) -> str:
    """Return the ETag of the answer for a cache key at a version. It is weak, because gzip changes the bytes.

    >>> etag_of(bytes(32), 1, 7)
    'W/"1-7-00000000000000000000000000000000"'
    """
    return f'W/"{generation}-{version}-{key[:16].hex()}"'


def matches(headers: Headers, etag: str) -> bool:
    """Return whether If-None-Match holds `etag`, by weak comparison."""
    if hdrs.IF_NONE_MATCH not in headers:
        return False
    named = ",".join(headers.getall(hdrs.IF_NONE_MATCH))
    return named.strip() == "*" or etag.removeprefix("W/") in ENTITY_TAG.findall(named)


def respond(headers: Headers, reply: Reply) -> web.Response:
    """Return the response with a prediction, or a 304 if the client has it."""
    fields = HEADERS.copy()
    fields[hdrs.ETAG] = reply.etag
    fields.update(status_fields(reply))
    if not matches(headers, reply.etag):
        return web.Response(body=reply.body, headers=fields)
    del fields[hdrs.CONTENT_TYPE]
    return web.Response(status=304, headers=fields)


def status_fields(reply: Reply) -> CIMultiDict[str]:
    """Return the header fields that say whether a prediction was computed for this request."""
    fields: CIMultiDict[str] = CIMultiDict()
    if reply.age_s is not None:
        fields[hdrs.AGE] = str(int(reply.age_s))
    if reply.cache_status:
        fields[CACHE_STATUS] = reply.cache_status
    return fields


def cache_status(stale_s: float, error: KeepfitError, *, forwarded: bool) -> str:
    """Return the Cache-Status (RFC 9211) of an answer that is sent instead of `error`, and is stale for `stale_s`.

    A request that a worker was asked to answer is no hit, but was forwarded because the answer here was stale.

    >>> from keepfit.errors import DeadlineError
    >>> cache_status(3.2, DeadlineError("late"), forwarded=False)
    'keepfit; hit; ttl=-3; detail=deadline'
    """
    return f"keepfit; {'fwd=stale' if forwarded else 'hit'}; ttl={int(-stale_s)}; detail={problem_name(error)}"


def current_etag(cache: Cache, headers: Headers, control: CacheControl, model: Model, key: bytes) -> str | None:
    """Return the ETag of the newest version if the client has it, even if the answer is not cached any more."""
    if hdrs.IF_NONE_MATCH not in headers or headers[hdrs.IF_NONE_MATCH].strip() == "*":
        return None
    newest = cache.newest(model.hash)
    if newest is None or newest[0] != model.generation or not control.use_cached or control.age_s_max != math.inf:
        return None
    etag = etag_of(key, *newest)
    return etag if matches(headers, etag) else None
