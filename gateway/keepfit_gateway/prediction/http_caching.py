"""Giving predictions again by HTTP: Cache-Control, ETag, If-None-Match, Age.

Owns what these headers mean here (RFC 9110, RFC 9111). Never decides whether an answer is still right: that is
:mod:`keepfit_gateway.prediction.cache`. Invariant: an answer that is given again is the one that was given first, but
for its age.
"""

import math
import re
from typing import NamedTuple

from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy

from keepfit.store.models import Model
from keepfit_gateway.prediction.cache import Cache, Raw
from keepfit_gateway.web.responses import compress

Headers = CIMultiDictProxy[str]

RAW: web.RequestKey[Raw] = web.RequestKey("raw", tuple)
MAX_AGE = re.compile(r"max-age=\"?(\d{1,9})\"?")
ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
# Vary also where the answer is short and never compressed: a 304 says what the 200 said, and may not know its length.
HEADERS = CIMultiDict(
    {hdrs.CONTENT_TYPE: "application/json", hdrs.CACHE_CONTROL: "no-cache", hdrs.VARY: "Accept-Encoding"}
)


class Terms(NamedTuple):
    """What a request says of answers that are kept: whether one may be given, how old it may be, whether to keep."""

    look_up: bool = True
    keep: bool = True
    age_s_max: float = math.inf


ANY = Terms()


def terms(headers: Headers) -> Terms:
    """Read a request's Cache-Control.

    >>> terms(CIMultiDictProxy(CIMultiDict({"Cache-Control": "max-age=5"})))
    Terms(look_up=True, keep=True, age_s_max=5.0)
    """
    if hdrs.CACHE_CONTROL not in headers:
        return ANY
    directives = [each.strip() for each in ",".join(headers.getall(hdrs.CACHE_CONTROL)).lower().split(",")]
    ages = [float(found[1]) for each in directives if (found := MAX_AGE.fullmatch(each))]
    keep = "no-store" not in directives
    return Terms(keep and "no-cache" not in directives, keep, min(ages, default=math.inf))


def etag_of(key: bytes, generation: int, version: float) -> str:
    """Name the answer to a question at a version; weak, because gzip changes its bytes.

    >>> etag_of(bytes(32), 1, 7)
    'W/"1-7-00000000000000000000000000000000"'
    """
    return f'W/"{generation}-{version}-{key[:16].hex()}"'


def has(headers: Headers, etag: str) -> bool:
    """Tell whether If-None-Match names `etag`, compared weakly."""
    if hdrs.IF_NONE_MATCH not in headers:
        return False
    named = ",".join(headers.getall(hdrs.IF_NONE_MATCH))
    return named.strip() == "*" or etag.removeprefix("W/") in ENTITY_TAG.findall(named)


def respond(headers: Headers, etag: str, body: bytes, age_s: float | None = None) -> web.Response:
    """Answer with a prediction, or with 304 to who has it; `age_s` says that it was kept, and how long."""
    fields = HEADERS.copy()
    fields[hdrs.ETAG] = etag
    if age_s is not None:
        fields[hdrs.AGE] = str(int(age_s))
    if not has(headers, etag):
        response = web.Response(body=body, headers=fields)
        compress(headers, response)
        return response
    del fields[hdrs.CONTENT_TYPE]
    return web.Response(status=304, headers=fields)


def still_right(cache: Cache, headers: Headers, wanted: Terms, model: Model, key: bytes) -> web.Response | None:
    """Answer 304 to who names the ETag of the newest version, although the answer itself is not kept any more."""
    if hdrs.IF_NONE_MATCH not in headers or headers[hdrs.IF_NONE_MATCH].strip() == "*":
        return None
    newest = cache.newest(model.hash)
    if newest is None or newest[0] != model.generation or not wanted.look_up or wanted.age_s_max != math.inf:
        return None
    etag = etag_of(key, *newest)
    return respond(headers, etag, b"") if has(headers, etag) else None
