"""HTTP caching of predictions: Cache-Control, ETag, If-None-Match, Age.

Owns the meaning of these header fields here (RFC 9110, RFC 9111). Never decides whether a cached answer is valid: that
is :mod:`keepfit_gateway.prediction.cache`. Invariant: a response from the cache equals the first one except for its
Age.
"""

import math
import re
from typing import NamedTuple

from aiohttp import hdrs, web
from multidict import CIMultiDict

from keepfit.store.models import Model
from keepfit_gateway.prediction.cache import Cache
from keepfit_gateway.web.fields import Headers

MAX_AGE = re.compile(r"max-age=\"?(\d{1,9})\"?")
ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
# Vary also if the body is too short for compression: a 304 has the fields of its 200, and may not know the length.
HEADERS = CIMultiDict(
    {hdrs.CONTENT_TYPE: "application/json", hdrs.CACHE_CONTROL: "no-cache", hdrs.VARY: "Accept-Encoding"}
)


class CacheControl(NamedTuple):
    """What a request allows: a cached answer, of which age, and storing the answer."""

    use_cached: bool = True
    store: bool = True
    age_s_max: float = math.inf


DEFAULT = CacheControl()


def cache_control(headers: Headers) -> CacheControl:
    """Parse the Cache-Control of a request.

    >>> cache_control(CIMultiDict({"Cache-Control": "max-age=5"}))
    CacheControl(use_cached=True, store=True, age_s_max=5.0)
    """
    if hdrs.CACHE_CONTROL not in headers:
        return DEFAULT
    directives = [each.strip() for each in ",".join(headers.getall(hdrs.CACHE_CONTROL)).lower().split(",")]
    ages = [float(found[1]) for each in directives if (found := MAX_AGE.fullmatch(each))]
    store = "no-store" not in directives
    return CacheControl(store and "no-cache" not in directives, store, min(ages, default=math.inf))


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


def respond(headers: Headers, etag: str, body: bytes, age_s: float | None = None) -> web.Response:
    """Return the response with a prediction, or a 304 if the client has it. `age_s` is the age of a cached answer."""
    fields = HEADERS.copy()
    fields[hdrs.ETAG] = etag
    if age_s is not None:
        fields[hdrs.AGE] = str(int(age_s))
    if not matches(headers, etag):
        return web.Response(body=body, headers=fields)
    del fields[hdrs.CONTENT_TYPE]
    return web.Response(status=304, headers=fields)


def current_etag(cache: Cache, headers: Headers, control: CacheControl, model: Model, key: bytes) -> str | None:
    """Return the ETag of the newest version if the client has it, even if the answer is not cached any more."""
    if hdrs.IF_NONE_MATCH not in headers or headers[hdrs.IF_NONE_MATCH].strip() == "*":
        return None
    newest = cache.newest(model.hash)
    if newest is None or newest[0] != model.generation or not control.use_cached or control.age_s_max != math.inf:
        return None
    etag = etag_of(key, *newest)
    return etag if matches(headers, etag) else None
