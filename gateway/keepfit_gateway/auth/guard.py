"""Authentication, rate limit and request id of every request, before any handler.

Owns the request id, the lookup of the API key, the rate limit of the key, and the file of keys, which is read again
when it changes. Routes (:func:`require_scope`) and the fast path check the scopes of a key. Invariants: behind the
guard every request has a caller; a request that did not pass the guard is anonymous, so routes refuse it; no text of a
key is in a response or a log.
"""

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import structlog
from aiohttp import hdrs, web
from aiohttp.web_request import BaseRequest
from multidict import istr

from keepfit.errors import ForbiddenError, RateLimitError, SettingsError, UnauthorizedError
from keepfit.observability import request_id
from keepfit.security.api_keys import ANONYMOUS, UNRESTRICTED, Key, Keys
from keepfit.settings import Settings
from keepfit_gateway.auth.rate_limit import TokenBucket
from keepfit_gateway.web.problems import REQUEST_ID, to_problem
from keepfit_gateway.web.small_response import SmallResponse

log = structlog.get_logger(__name__)

Handler = Callable[[Any], Awaitable[web.StreamResponse]]

CALLER: web.RequestKey[Key] = web.RequestKey("caller", Key)
X_REQUEST_ID = istr("X-Request-ID")
RELOAD_S = 1.0
FILE_BYTES_MAX = 1 << 20


def check_address(settings: Settings) -> None:
    """Refuse to listen on a network address without API keys.

    Raises
    ------
    SettingsError
        If no keys are configured, the address is not loopback, and KEEPFIT_OPEN is not set.
    """
    if requires_keys(settings) or settings.open or _is_loopback(settings.host):
        return
    raise SettingsError(
        f"KEEPFIT_HOST is {settings.host!r}, which other machines can reach, and no API keys are set: set "
        "KEEPFIT_API_KEYS or KEEPFIT_API_KEYS_FILE (`keepfit key new` prints a key), or KEEPFIT_OPEN=true if a proxy "
        "authenticates requests."
    )


def requires_keys(settings: Settings) -> bool:
    """Return whether requests need an API key."""
    return bool(settings.api_keys.get_secret_value().strip() or settings.api_keys_file)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_scope(scope: str, handler: Handler) -> Handler:
    """Return `handler`, restricted to callers whose key has `scope`."""

    async def handle(request: BaseRequest) -> web.StreamResponse:
        caller = request.get(CALLER, ANONYMOUS)
        if scope not in caller.scopes:
            if caller is ANONYMOUS:
                raise UnauthorizedError("This needs an API key: send it as `Authorization: Bearer KEY`.")
            raise ForbiddenError(f"The API key {caller.name!r} lacks the scope {scope!r}, which this needs.")
        return await handler(request)

    return handle


class ApiKeyGuard:
    """Authenticates the requests of one gateway."""

    def __init__(self, settings: Settings, open_paths: frozenset[str]) -> None:
        self._settings = settings
        self._open_paths = open_paths
        self._inline = settings.api_keys.get_secret_value()
        self._file = Path(settings.api_keys_file) if settings.api_keys_file else None
        self._loaded = b""
        self._keys: Keys | None = None
        self._buckets: dict[str, TokenBucket] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, open_paths: frozenset[str]) -> AsyncIterator[Self]:
        """Yield a guard with loaded keys, which reloads the file of keys until the block ends.

        Raises
        ------
        SettingsError
            If the keys cannot be read, or keys are required and there are none.
        """
        guard = cls(settings, open_paths)
        check_address(settings)
        if not requires_keys(settings):
            log.info("api_keys_disabled", host=settings.host)
            yield guard
            return
        guard._load(await guard._file_content())
        log.info("api_keys_enabled", keys=guard.count)
        task = None if guard._file is None else asyncio.create_task(guard._reload_forever())
        try:
            yield guard
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    @property
    def count(self) -> int | None:
        """Number of keys; None if requests need no key."""
        return None if self._keys is None else len(self._keys)

    def guard(self, handler: Handler) -> Handler:
        """Return `handler` behind this guard, which answers requests that it refuses."""

        async def handle(request: BaseRequest) -> Any:
            header = request.headers.get(X_REQUEST_ID)
            sent = header if header is not None and request_id.FORM.fullmatch(header) else ""
            request_id.sent.set(sent)
            request[REQUEST_ID] = sent or request_id.mint()
            bucket: TokenBucket | None = None
            try:
                caller = request[CALLER] = UNRESTRICTED if self._keys is None else self._caller(request)
                if caller.rate_per_s:
                    bucket = self._bucket(caller)
                    _check_rate(bucket, caller)
                answer: Any = await handler(request)
            except Exception as error:  # noqa: BLE001 - every error becomes a problem response
                answer = to_problem(request, error)
            return _with_headers(answer, request[REQUEST_ID], bucket)

        return handle

    def _caller(self, request: BaseRequest) -> Key:
        """Return the key of the request; ANONYMOUS if the path is open and no valid key was sent."""
        header = request.headers.get(hdrs.AUTHORIZATION, "")
        key = self._keys.find(header[7:].strip(" ")) if self._keys and header[:7].lower() == "bearer " else None
        if key is not None:
            return key
        if request.path in self._open_paths:
            return ANONYMOUS
        if header:
            raise UnauthorizedError("This API key is unknown here; it may have been revoked.")
        raise UnauthorizedError("Send an API key: `Authorization: Bearer KEY`.")

    def _bucket(self, key: Key) -> TokenBucket:
        bucket = self._buckets.get(key.name)
        if bucket is None or (bucket.rate_per_s, bucket.burst) != (key.rate_per_s, key.burst):
            bucket = self._buckets[key.name] = TokenBucket(key.rate_per_s, key.burst, time.monotonic())
        return bucket

    def _load(self, content: bytes) -> None:
        """Replace the keys with those of the settings and of the file's `content`."""
        self._loaded = content
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise SettingsError("KEEPFIT_API_KEYS_FILE is not text.") from None
        keys = Keys.from_text(f"{self._inline}\n{text}", self._settings.rate_per_s)
        if not keys:
            raise SettingsError("KEEPFIT_API_KEYS and KEEPFIT_API_KEYS_FILE hold no key; `keepfit key new` prints one.")
        self._keys = keys
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in keys.names()}

    async def _file_content(self) -> bytes:
        if self._file is None:
            return b""
        try:
            return await asyncio.to_thread(_read_file, self._file)
        except OSError as error:
            raise SettingsError(f"KEEPFIT_API_KEYS_FILE cannot be read: {error.strerror}.") from None

    async def _reload_forever(self) -> None:
        """Read the file every second. It is small, and its content shows a change more reliably than its mtime."""
        logged_reason, last = "", self._loaded
        while True:
            await asyncio.sleep(RELOAD_S)
            try:
                before_last, last = last, await self._file_content()
                if last == self._loaded:
                    logged_reason = ""
                if last == self._loaded or last != before_last:
                    # Unchanged, or possibly half written: only content that two reads agree on is complete.
                    continue
                before = self._keys.names() if self._keys else set()
                self._load(last)
                after = self._keys.names() if self._keys else set()
                log.info("api_keys_changed", added=sorted(after - before), removed=sorted(before - after))
                logged_reason = ""
            except SettingsError as error:
                # Keep the loaded keys: a typo in the file must not lock out every client.
                if str(error) != logged_reason:
                    log.warning("api_keys_unreadable", reason=str(error))
                logged_reason = str(error)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX)


def _check_rate(bucket: TokenBucket, caller: Key) -> None:
    if not bucket.take(time.monotonic()):
        raise RateLimitError(
            f"The API key {caller.name!r} may make {caller.rate_per_s:g} requests a second, {caller.burst} at once.",
            bucket.retry_after_s(),
        )


def _with_headers(answer: Any, name: str, bucket: TokenBucket | None) -> Any:
    """Add the request id and the rate limit of the caller to a response."""
    if type(answer) is SmallResponse:
        answer.fields += f"X-Request-ID: {name}\r\n" + ("" if bucket is None else bucket.fields())
        return answer
    answer.headers[X_REQUEST_ID] = name
    for field, value in () if bucket is None else bucket.headers():
        answer.headers[field] = value
    return answer
