"""Authentication, rate limit and request id of every request, before any handler.

Owns the request id, the lookup of the API key, the rate limit of the key, and the file of keys, which is read again
when it changes. :mod:`keepfit_gateway.auth.cross_site` decides what web pages may do; routes (:func:`require_scope`)
and the fast path check the scopes of a key. Invariants: behind the guard every request has a caller; a request that did
not pass the guard is anonymous, so routes refuse it; no text of a key is in a response or a log.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import structlog
from aiohttp import hdrs, web
from aiohttp.web_request import BaseRequest
from multidict import istr

from keepfit.errors import ForbiddenError, KeepfitError, RateLimitError, SettingsError, UnauthorizedError
from keepfit.observability import request_id
from keepfit.security.api_keys import ANONYMOUS, UNRESTRICTED, Key, Keys
from keepfit.settings import Settings
from keepfit.settings_check import check_host, load_api_keys, read_api_keys_file, requires_keys
from keepfit_gateway import bound_key
from keepfit_gateway.auth.cross_site import CrossSitePolicy
from keepfit_gateway.auth.sessions import Session, Sessions, check_own_page
from keepfit_gateway.auth.shared_rates import SharedBucket, SharedRates
from keepfit_gateway.web import fields, influx_answers
from keepfit_gateway.web.fields import Headers
from keepfit_gateway.web.offload import run_in_daemon_thread
from keepfit_gateway.web.problems import REQUEST_ID, SEES_REASONS, to_problem
from keepfit_gateway.web.small_response import SmallResponse

log = structlog.get_logger(__name__)

Handler = Callable[[Any], Awaitable[web.StreamResponse]]
Check = Callable[[Any], Awaitable[None]]

CALLER: web.RequestKey[Key] = web.RequestKey("caller", Key)
X_REQUEST_ID = istr("X-Request-ID")
RELOAD_S = 1.0
# A file system that answers later than this is unavailable, as a network file system may be.
READ_S_MAX = 5.0


def require_scope(scope: str, handler: Handler, check_bound: Check | None = None) -> Handler:
    """Return `handler`, restricted to callers whose key has `scope`; `check_bound` refuses requests of bound keys."""

    async def handle(request: BaseRequest) -> web.StreamResponse:
        caller = request.get(CALLER, ANONYMOUS)
        if scope not in caller.scopes:
            if caller is ANONYMOUS:
                raise UnauthorizedError("This needs an API key: send it as `Authorization: Bearer KEY`.")
            raise ForbiddenError(f"The API key {caller.name!r} lacks the scope {scope!r}, which this needs.")
        if caller.where and check_bound is not None:
            await check_bound(request)
        return await handler(request)

    return handle


class ApiKeyGuard:
    """Authenticates the requests of one gateway."""

    def __init__(self, settings: Settings, open_paths: frozenset[str]) -> None:
        self._settings = settings
        self._open_paths = open_paths
        self._cross_site = CrossSitePolicy(settings, keys=requires_keys(settings))
        self._file = Path(settings.api_keys_file) if settings.api_keys_file else None
        self._loaded = b""
        self._reading: asyncio.Future[bytes] | None = None
        self._keys: Keys | None = None
        self._rates = SharedRates(settings)
        self._sessions = Sessions(settings)

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, open_paths: frozenset[str]) -> AsyncIterator[Self]:
        """Yield a guard with loaded keys, which reloads the file of keys until the block ends.

        Raises
        ------
        SettingsError
            If the keys cannot be read, keys are required and there are none, or a setting about web pages is wrong.
        """
        guard = cls(settings, open_paths)
        check_host(settings)
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
            await guard._rates.close()
            await guard._sessions.close()
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
            request[GUARD] = self
            bucket: SharedBucket | None = None
            try:
                self._cross_site.check(request)
                if self._keys is not None and hdrs.COOKIE in request.headers:
                    await self._sessions.prepare(request)
                caller = request[CALLER] = self._caller(request)
                if caller.sees_reasons:
                    request[SEES_REASONS] = True
                if caller.rate_per_s:
                    bucket = self._rates.bucket(caller)
                    await _check_rate(bucket, caller)
                answer: Any = await (bound_key.run(caller, handler, request) if caller.where else handler(request))
            except Exception as error:  # noqa: BLE001 - every error becomes a problem response
                answer = to_problem(request, error)
            cors = self._cross_site.cors_fields(request, answer) if self._cross_site.permits_pages else ()
            return _with_headers(answer, request[REQUEST_ID], bucket, cors)

        return handle

    @property
    def added_fields(self) -> str:
        """The header fields that an answer to :meth:`find_caller` has beside X-Request-ID, as lines of its head."""
        return self._cross_site.fields_without_origin

    def find_caller(self, headers: Headers) -> Key | None:
        """Return the key of a POST that may be handled; None for one that only :meth:`guard` can answer.

        That is one to refuse, one that a web page sent, and one whose key has a rate or is bound to metadata.
        """
        if not self._cross_site.passes(headers):
            return None
        lines = headers.getall(hdrs.AUTHORIZATION, ())
        if len(lines) > 1:
            return None
        if self._keys is None:
            return UNRESTRICTED
        if not lines or lines[0][:7].lower() != "bearer ":
            return None
        key = self._keys.find(lines[0][7:].strip(" "))
        return None if key is None or key.rate_per_s or key.where else key

    async def begin_session(self, request: BaseRequest, token: str) -> tuple[Key, Session | None]:
        """Return the key of a token and a new session of it; without API keys there is no session.

        Raises
        ------
        ForeignOriginError
            If a page of another site sent the request.
        UnauthorizedError
            If there is no such key.
        UnavailableError
            If the queue's Redis is unavailable.
        """
        check_own_page(request)
        if self._keys is None:
            return UNRESTRICTED, None
        key = self._keys.find(token.strip())
        if key is None:
            raise UnauthorizedError("This API key is unknown here; it may have been revoked.")
        return key, await self._sessions.begin(key)

    def session_end(self, request: BaseRequest) -> int | None:
        """Return the end of the session that a request is sent in, in seconds since 1970; None without one."""
        if self._keys is None or hdrs.AUTHORIZATION in request.headers:
            return None
        found = self._sessions.find(request, self._keys)
        return None if found is None else found[1]

    def still_permits(self, request: BaseRequest) -> bool:
        """Return whether the key of a request that is being answered for long is what it was, and not revoked."""
        try:
            return self._caller(request) == request[CALLER]
        except KeepfitError:
            return False

    def add_headers(self, request: BaseRequest, response: web.StreamResponse) -> None:
        """Add the request id, the rate limit of the caller and the fields of CORS to a response."""
        caller = request[CALLER]
        cors = self._cross_site.cors_fields(request, response) if self._cross_site.permits_pages else ()
        _with_headers(response, request[REQUEST_ID], self._rates.bucket(caller) if caller.rate_per_s else None, cors)

    def _caller(self, request: BaseRequest) -> Key:
        """Return the key of a request or of its session; ANONYMOUS without one if the path is open, or a preflight."""
        header = fields.single(request.headers, hdrs.AUTHORIZATION) or ""
        if self._keys is None:
            return UNRESTRICTED
        scheme, _, token = header.partition(" ")
        # Clients of InfluxDB send "Token", to the paths of InfluxDB.
        is_known = scheme.lower() == "bearer" or (scheme.lower() == "token" and influx_answers.is_path(request.path))
        key = self._keys.find(token.strip(" ")) if is_known else None
        if key is not None:
            return key
        session = None if header else self._sessions.find(request, self._keys)
        if session is not None:
            return session[0]
        if request.path in self._open_paths or self._cross_site.is_preflight(request):
            return ANONYMOUS
        if header:
            raise UnauthorizedError("This API key is unknown here; it may have been revoked.")
        raise UnauthorizedError("Send an API key: `Authorization: Bearer KEY`.")

    def _load(self, content: bytes) -> dict[str, Any]:
        """Replace the keys with those of the settings and of the file's `content`; return what changed."""
        self._loaded = content
        keys, before = load_api_keys(self._settings, content), self._keys or Keys([])
        self._keys = keys
        self._rates.keep(keys.names())
        return keys.changes_since(before)

    async def _file_content(self) -> bytes:
        """Return the content of the file of keys. A read that hangs is not started a second time.

        Raises
        ------
        SettingsError
            If the file cannot be read, or not within READ_S_MAX seconds.
        """
        if self._file is None:
            return b""
        if self._reading is None:
            self._reading = run_in_daemon_thread(read_api_keys_file, self._file)
        await asyncio.wait({self._reading}, timeout=READ_S_MAX)
        if not self._reading.done():
            raise SettingsError(
                f"KEEPFIT_API_KEYS_FILE: {str(self._file)!r} cannot be read: no answer within {READ_S_MAX:g} s."
            )
        reading, self._reading = self._reading, None
        return reading.result()

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
                found = self._load(last)
                log.info("api_keys_changed", added=found["added"], removed=found["removed"], changed=found["changed"])
                logged_reason = ""
            except SettingsError as error:
                # Keep the loaded keys: a typo in the file must not lock out every client.
                if str(error) != logged_reason:
                    log.warning("api_keys_unreadable", reason=str(error))
                logged_reason = str(error)


GUARD: web.RequestKey[ApiKeyGuard] = web.RequestKey("guard", ApiKeyGuard)


def still_permits(request: BaseRequest) -> bool:
    """Return whether the API key of a request that is being answered for long is still the same."""
    return request[GUARD].still_permits(request)


def add_headers(request: BaseRequest, response: web.StreamResponse) -> None:
    """Add what the guard adds to every answer; for one whose head is sent before its handler returns."""
    request[GUARD].add_headers(request, response)


async def _check_rate(bucket: SharedBucket, caller: Key) -> None:
    allowed = bucket.take_held(time.monotonic())
    if not (await bucket.take() if allowed is None else allowed):
        raise RateLimitError(
            f"The API key {caller.name!r} may make {caller.rate_per_s:.15g} requests a second, {caller.burst} at once.",
            bucket.retry_after_s(),
        )


def _with_headers(answer: Any, name: str, bucket: SharedBucket | None, cors: Sequence[tuple[str, str]]) -> Any:
    """Add the request id, the rate limit of the caller and the fields of CORS to a response."""
    if type(answer) is SmallResponse:
        answer.fields += f"X-Request-ID: {name}\r\n" + ("" if bucket is None else bucket.fields())
        for field, value in cors:
            answer.fields += f"{field}: {value}\r\n"
        return answer
    answer.headers[X_REQUEST_ID] = name
    for field, value in () if bucket is None else bucket.headers():
        answer.headers[field] = value
    for field, value in cors:
        # An answer may have a Vary already.
        answer.headers.add(field, value)
    return answer
