"""The door: who comes in, how often, and under which id.

Owns what happens to every request before anything else does: its id, its API key, the key's rate; and the file of keys,
read anew when it changes. What a key may do is asked for by the route (:func:`needing`) and by the short way.
Invariants: behind the door every request has a caller; a route that nobody let in for stays shut; no text of a key is
ever in an answer or a log.
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
from keepfit_gateway.auth.rate_limit import Bucket
from keepfit_gateway.web.problems import REQUEST_ID, to_problem
from keepfit_gateway.web.small_response import SmallResponse

log = structlog.get_logger(__name__)

Handler = Callable[[Any], Awaitable[web.StreamResponse]]

CALLER: web.RequestKey[Key] = web.RequestKey("caller", Key)
X_REQUEST_ID = istr("X-Request-ID")
LOOK_S = 1.0
FILE_BYTES_MAX = 1 << 20


def check_address(settings: Settings) -> None:
    """Refuse to be there for a whole network without asking anybody for a key.

    Raises
    ------
    SettingsError
        If no keys are configured, the address is not this machine's own, and nobody said that this is meant.
    """
    if asks_for_keys(settings) or settings.open or _is_loopback(settings.host):
        return
    raise SettingsError(
        f"KEEPFIT_HOST is {settings.host!r}, which others can reach, and no API keys are set: set KEEPFIT_API_KEYS or "
        "KEEPFIT_API_KEYS_FILE (`keepfit key new` prints a key), or KEEPFIT_OPEN=true where something in front asks."
    )


def asks_for_keys(settings: Settings) -> bool:
    """Tell whether requests need a key."""
    return bool(settings.api_keys.get_secret_value().strip() or settings.api_keys_file)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def needing(scope: str, handler: Handler) -> Handler:
    """Shut a route to all whose key has not `scope`."""

    async def handle(request: BaseRequest) -> web.StreamResponse:
        caller = request.get(CALLER, ANONYMOUS)
        if scope not in caller.scopes:
            if caller is ANONYMOUS:
                raise UnauthorizedError("This takes an API key: send it as `Authorization: Bearer KEY`.")
            raise ForbiddenError(f"The API key {caller.name!r} has no scope {scope!r}, which this takes.")
        return await handler(request)

    return handle


class ApiKeyGuard:
    """What stands in front of all handlers of one gateway."""

    def __init__(self, settings: Settings, open_paths: frozenset[str]) -> None:
        self._settings = settings
        self._open_paths = open_paths
        self._inline = settings.api_keys.get_secret_value()
        self._file = Path(settings.api_keys_file) if settings.api_keys_file else None
        self._read = b""
        self._keys: Keys | None = None
        self._buckets: dict[str, Bucket] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, open_paths: frozenset[str]) -> AsyncIterator[Self]:
        """Give a door that has read its keys, and that looks for others until the block ends.

        Raises
        ------
        SettingsError
            If the keys cannot be read, or none are there although they are asked for.
        """
        door = cls(settings, open_paths)
        check_address(settings)
        if not asks_for_keys(settings):
            log.info("api_keys_not_asked_for", host=settings.host)
            yield door
            return
        door._take(await door._file_text())
        log.info("api_keys_asked_for", keys=door.count)
        task = None if door._file is None else asyncio.create_task(door._look_forever())
        try:
            yield door
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    @property
    def count(self) -> int | None:
        """How many keys there are; None where none is asked for."""
        return None if self._keys is None else len(self._keys)

    def guard(self, handler: Handler) -> Handler:
        """Let requests in to `handler`, or answer them here."""

        async def handle(request: BaseRequest) -> Any:
            given = request.headers.get(X_REQUEST_ID)
            sent = given if given is not None and request_id.FORM.fullmatch(given) else ""
            request_id.sent.set(sent)
            request[REQUEST_ID] = sent or request_id.mint()
            bucket: Bucket | None = None
            try:
                caller = request[CALLER] = UNRESTRICTED if self._keys is None else self._caller(request)
                if caller.rate_per_s:
                    bucket = self._bucket(caller)
                    _take_one(bucket, caller)
                answer: Any = await handler(request)
            except Exception as error:  # noqa: BLE001 - each is told of
                answer = to_problem(request, error)
            return _marked(answer, request[REQUEST_ID], bucket)

        return handle

    def _caller(self, request: BaseRequest) -> Key:
        """Return the key that was sent; NOBODY where none is needed."""
        sent = request.headers.get(hdrs.AUTHORIZATION, "")
        key = self._keys.find(sent[7:].strip(" ")) if self._keys and sent[:7].lower() == "bearer " else None
        if key is not None:
            return key
        if request.path in self._open_paths:
            return ANONYMOUS
        if sent:
            raise UnauthorizedError("This API key is not known here; it may have been taken back.")
        raise UnauthorizedError("Send an API key: `Authorization: Bearer KEY`.")

    def _bucket(self, key: Key) -> Bucket:
        bucket = self._buckets.get(key.name)
        if bucket is None or (bucket.rate_per_s, bucket.burst) != (key.rate_per_s, key.burst):
            bucket = self._buckets[key.name] = Bucket(key.rate_per_s, key.burst, time.monotonic())
        return bucket

    def _take(self, read: bytes) -> None:
        """Take over the keys of the settings and of the file's content."""
        self._read = read
        try:
            text = read.decode()
        except UnicodeDecodeError:
            raise SettingsError("KEEPFIT_API_KEYS_FILE is not text.") from None
        keys = Keys.from_text(f"{self._inline}\n{text}", self._settings.rate_per_s)
        if not keys:
            raise SettingsError("KEEPFIT_API_KEYS and KEEPFIT_API_KEYS_FILE hold no key; `keepfit key new` prints one.")
        self._keys = keys
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in keys.names()}

    async def _file_text(self) -> bytes:
        if self._file is None:
            return b""
        try:
            return await asyncio.to_thread(_read_file, self._file)
        except OSError as error:
            raise SettingsError(f"KEEPFIT_API_KEYS_FILE cannot be read: {error.strerror}.") from None

    async def _look_forever(self) -> None:
        """Read the file every second: it is small, and its content tells more surely than its time what changed."""
        complaint, last = "", self._read
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                before_last, last = last, await self._file_text()
                if last == self._read:
                    complaint = ""
                if last == self._read or last != before_last:
                    # Nothing new, or somebody may be writing just now: what two looks have found is all of it.
                    continue
                before = self._keys.names() if self._keys else set()
                self._take(last)
                after = self._keys.names() if self._keys else set()
                log.info("api_keys_changed", added=sorted(after - before), removed=sorted(before - after))
                complaint = ""
            except SettingsError as error:
                # The keys that were there stay: a slip in an editor must not lock everybody out.
                if str(error) != complaint:
                    log.warning("api_keys_unreadable", reason=str(error))
                complaint = str(error)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX)


def _take_one(bucket: Bucket, caller: Key) -> None:
    if not bucket.take(time.monotonic()):
        raise RateLimitError(
            f"The API key {caller.name!r} may make {caller.rate_per_s:g} requests a second, {caller.burst} at once.",
            bucket.retry_after_s(),
        )


def _marked(answer: Any, name: str, bucket: Bucket | None) -> Any:
    """Give an answer its id, and what the caller may still ask for."""
    if type(answer) is SmallResponse:
        answer.fields += f"X-Request-ID: {name}\r\n" + ("" if bucket is None else bucket.fields())
        return answer
    answer.headers[X_REQUEST_ID] = name
    for field, value in () if bucket is None else bucket.headers():
        answer.headers[field] = value
    return answer
