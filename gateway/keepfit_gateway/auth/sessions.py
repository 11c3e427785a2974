"""Sessions: a browser that has sent an API key once sends a signed cookie from then on.

Owns the cookie, its signature, and which requests it counts for. A session is no more than its key: the cookie names
the digest of the key, so it has the key's scopes, rate and conditions, and ends when the key is revoked. Never stores
or logs a key or a cookie. Invariants: only gateways make valid cookies, with a secret that they share in the queue's
Redis; a cookie counts only for requests of the gateway's own pages, so that no other page can use it; signatures are
compared in constant time.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import redis.asyncio
from aiohttp import hdrs
from aiohttp.web_request import BaseRequest

from keepfit.backends import queue_servers, redis_clients, redis_keys, redis_scripts
from keepfit.errors import ForeignOriginError
from keepfit.security.api_keys import Key, Keys
from keepfit.settings import Settings
from keepfit_gateway.auth.cross_site import SAFE_METHODS, SEC_FETCH_SITE

COOKIE = "keepfit_session"
SESSION_S = 12 * 3600
SECRET_BYTES = 32
# Digest of the key, end of the session in seconds since 1970, signature.
FORM = re.compile(r"([0-9a-f]{64})\.([0-9]{10,12})\.([0-9a-f]{64})")
# A cookie that no gateway has made costs one look at Redis in this time, not one for each request.
RELOAD_S = 1.0


class Session(NamedTuple):
    """A session that begins: the text of its cookie, and its end in seconds since 1970."""

    cookie: str
    ends: int


class Sessions:
    """The sessions of one gateway process, which reads the shared secret when it is needed first."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._client: redis.asyncio.Redis | None = None
        self._secret = b""
        self._loaded_s = 0.0
        self._loading = asyncio.Lock()

    async def begin(self, key: Key) -> Session:
        """Return a new session of a key.

        Raises
        ------
        UnavailableError
            If the queue's Redis is unavailable.
        """
        await self._load()
        ends = int(self._clock()) + SESSION_S
        digest = key.digest.hex()
        return Session(f"{digest}.{ends}.{self._signature(digest, ends)}", ends)

    async def prepare(self, request: BaseRequest) -> None:
        """Read the secret, if a request has a cookie that :meth:`find` could not check; raises as :meth:`begin`."""
        found = self._parsed(request)
        if found is not None and not self._is_signed(*found):
            await self._load()

    def find(self, request: BaseRequest, keys: Keys) -> tuple[Key, int] | None:
        """Return the key of the session of a request, and the end of the session; None without a valid session."""
        found = self._parsed(request)
        if found is None or not self._is_signed(*found) or not is_own_page(request):
            return None
        digest, ends, _ = found
        key = keys.of_digest(bytes.fromhex(digest))
        return None if key is None or ends <= self._clock() else (key, ends)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    @staticmethod
    def _parsed(request: BaseRequest) -> tuple[str, int, str] | None:
        if hdrs.COOKIE not in request.headers:
            return None
        found = FORM.fullmatch(request.cookies.get(COOKIE, ""))
        return None if found is None else (found[1], int(found[2]), found[3])

    def _is_signed(self, digest: str, ends: int, signature: str) -> bool:
        return bool(self._secret) and hmac.compare_digest(self._signature(digest, ends), signature)

    def _signature(self, digest: str, ends: int) -> str:
        return hmac.new(self._secret, f"keepfit session {digest} {ends}".encode(), hashlib.sha256).hexdigest()

    async def _load(self) -> None:
        """Read the secret, which the first gateway makes. Redis may have lost it: then there is a new one."""
        async with self._loading:
            now_s = time.monotonic()
            if self._secret and now_s < self._loaded_s + RELOAD_S:
                return
            if self._client is None:
                self._client = redis_clients.queue_async(
                    queue_servers.settings_for(self._settings, redis_keys.SESSIONS)
                )
            new = secrets.token_bytes(SECRET_BYTES)
            _, self._secret = await redis_scripts.run_async(
                self._client,
                ("SET", redis_keys.SESSIONS, new, "NX"),
                ("GET", redis_keys.SESSIONS),
            )
            self._loaded_s = now_s


def check_own_page(request: BaseRequest) -> None:
    """Raise ForeignOriginError if a page of another site sent a request about sessions; programs may send it."""
    if (hdrs.ORIGIN in request.headers or SEC_FETCH_SITE in request.headers) and not is_own_page(request):
        raise ForeignOriginError("Only pages of this gateway may begin and end sessions.")


def is_own_page(request: BaseRequest) -> bool:
    """Return whether a page of this gateway, or its user, has sent a request, as far as a browser says it.

    A request that changes something must say so. Browsers name the site in Sec-Fetch-Site, but over plain HTTP only to
    loopback addresses; they name the origin with every request but GET and HEAD.
    """
    site = request.headers.get(SEC_FETCH_SITE)
    if site is not None:
        return site == "same-origin" or (site == "none" and request.method in SAFE_METHODS)
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None:
        return request.method in SAFE_METHODS
    return urlsplit(origin).netloc.lower() == request.headers.get(hdrs.HOST, "").lower() != ""
