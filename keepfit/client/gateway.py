"""Calls of a gateway over HTTP, with its errors as keepfit's own and with retries.

Owns one HTTP session. Never repeats a call that could act twice: creating returns the model that exists, predicting
changes nothing, and learning has an Idempotency-Key. Invariant: an API key is sent in a header, and is in no error.
"""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from keepfit import errors
from keepfit.client import hash_prefix, problems
from keepfit.client.calls import READY_S_MAX
from keepfit.client.http1 import REFUSED, Response
from keepfit.client.retries import PAUSE_S, PAUSE_S_MAX, TRANSIENT
from keepfit.errors import MalformedError, UnavailableError

# For how long a call is repeated while the gateway is overloaded, restarts or waits for Redis.
RETRY_S_MAX = 60.0
# The longest that a gateway waits for rows to be learned before it answers 202.
WAIT_S = 60
# A body or an answer of any size may take any time, as long as it moves.
STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=180)
# Without a commit for this long after the rows were accepted, waiting ends.
LEARNED_S_MAX = 600.0


class Gateway:
    """An async client of the gateway at `url`; `api_key` is empty where it requires none.

    >>> async def rows_seen(url: str) -> int:
    ...     async with Gateway(url) as gateway:
    ...         model, _ = await gateway.create({"type": "shoes"}, {"estimator": "SGDRegressor"})
    ...         learned = await gateway.partial_fit(model["hash"], b'{"X": [[1.0]], "y": [2.0]}')
    ...         return learned["rows_seen"]
    """

    def __init__(self, url: str, api_key: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise MalformedError(f"{url!r} is not the URL of a gateway: http://127.0.0.1:8000.")
        self.url = url.rstrip("/")
        self.api_key = api_key
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Whether a gateway has answered.
        self.is_reached = False

    async def __aenter__(self) -> Self:
        try:
            # Answers to `Prefer: wait` come after a minute.
            timeout = aiohttp.ClientTimeout(total=WAIT_S + 120, sock_connect=10)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        except ValueError as error:
            raise MalformedError(f"KEEPFIT_API_KEY cannot be sent in a header: {type(error).__name__}.") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Make a call and return its status and JSON (None without a body); bytes as `body` are sent as they are.

        A function as `body` returns the pieces of it, and is called again when the call is repeated.

        It is repeated for a minute while the gateway is overloaded or something that it needs is unavailable, also if a
        proxy in front of it says so, but not if nothing has ever answered.

        Raises
        ------
        KeepfitError
            The error that the gateway reports, of the class that it names.
        UnavailableError
            If no gateway answers.
        """
        pieces = body if callable(body) else None
        data = body if pieces or isinstance(body, bytes | None) else msgspec.json.encode(body)
        sent = {**({} if data is None else {"Content-Type": "application/json"}), **(headers or {})}
        timeout = STREAM_TIMEOUT if pieces else self._session.timeout
        deadline, pause_s = time.monotonic() + RETRY_S_MAX, PAUSE_S
        while True:
            try:
                async with self._session.request(
                    method, self.url + path, data=pieces() if pieces else data, headers=sent, timeout=timeout
                ) as response:
                    received = await _read(response)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                if not self.is_reached or time.monotonic() > deadline or isinstance(error, ValueError):
                    raise self._silent(error) from None
            else:
                self.is_reached = True
                # The body of a refusal may be that of a proxy.
                if received.status not in TRANSIENT or time.monotonic() > deadline:
                    if received.status < REFUSED:
                        return received.status, problems.decode(self.url, received)
                    raise problems.error_of(self.url, received)
                pause_s = max(pause_s, problems.retry_after_s(received) or 0.0)
            await asyncio.sleep(min(pause_s, PAUSE_S_MAX))
            pause_s = 2 * pause_s

    @asynccontextmanager
    async def open(
        self, method: str, path: str, headers: Mapping[str, str], limits: aiohttp.ClientTimeout = STREAM_TIMEOUT
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make a call once and yield the answer, whose body is not read yet.

        Raises
        ------
        UnavailableError
            If no gateway answers, or one cannot answer at the moment, or its answer breaks off.
        KeepfitError
            Any other error that the gateway reports, of the class that it names.
        """
        has_begun = False
        try:
            async with self._session.request(method, self.url + path, headers=headers, timeout=limits) as response:
                self.is_reached = has_begun = True
                if response.status in TRANSIENT:
                    raise UnavailableError(f"{self.url} answers with {response.status} {response.reason}.")
                if response.status >= REFUSED:
                    raise problems.error_of(self.url, await _read(response))
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            if has_begun:
                reason = errors.describe_error(error).removesuffix(": ")
                raise UnavailableError(f"The answer of {self.url} breaks off: {reason}.") from None
            raise self._silent(error) from None

    async def ready(self) -> dict[str, Any]:
        """Return the answer of ``/readyz``, asked once.

        Raises
        ------
        UnavailableError
            If no gateway answers.
        KeepfitError
            The error that the gateway reports instead of its state.
        """
        try:
            timeout = aiohttp.ClientTimeout(total=READY_S_MAX)
            async with self._session.get(f"{self.url}/readyz", timeout=timeout) as response:
                received = await _read(response)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise self._silent(error) from None
        return problems.state_of(self.url, received)

    def _silent(self, error: Exception) -> UnavailableError:
        if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
            reason = os.strerror(error.os_error.errno) if error.os_error.errno > 0 else str(error.os_error)
        else:
            reason = errors.describe_error(error).removesuffix(": ")
        return UnavailableError(
            f"No gateway answers at {self.url}: {reason}. Start `keepfit up`, or name another gateway with --url or "
            "KEEPFIT_URL."
        )

    async def create(self, metadata: Mapping[str, Any], recipe: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """Create a model; return its description, and whether it is new. Raise ConflictError for another recipe."""
        status, model = await self.call("POST", "/v1/models", {"metadata": metadata, "recipe": recipe})
        return model, status == HTTPStatus.CREATED

    async def describe(self, model_hash: str) -> dict[str, Any]:
        """Return the description of a model. Raise NotFoundError if it does not exist."""
        _, model = await self.call("GET", f"/v1/models/{model_hash}")
        description: dict[str, Any] = model
        return description

    async def find_hash(self, prefix: str) -> str:
        """Return the hash that begins with `prefix`.

        Raises
        ------
        MalformedError
            If it is not the beginning of a hash, or of several, which the message lists.
        NotFoundError
            If no model has such a hash.
        """
        digits = hash_prefix.check(prefix)
        if len(digits) == hash_prefix.DIGITS:
            return digits
        after = hash_prefix.before(digits.ljust(hash_prefix.DIGITS, "0"))
        _, page = await self.call("GET", f"/v1/models?limit={hash_prefix.CANDIDATES_MAX + 1}&after={after}")
        # The list is ordered by hash.
        return hash_prefix.only_one(digits, [one["hash"] for one in page["models"] if one["hash"].startswith(digits)])

    async def curve(self, model_hash: str, since_rows: int = 0) -> dict[str, Any]:
        """Return the learning curve of a model: its points after more than `since_rows` rows, with all metrics."""
        _, answer = await self.call("GET", f"/v1/models/{model_hash}/curve?since_rows={since_rows}")
        curve: dict[str, Any] = answer
        return curve

    async def partial_fit(
        self, model_hash: str, body: bytes, key: str | None = None, *, wait: bool = True
    ) -> dict[str, Any]:
        """Send rows to learn (JSON: ``X``, ``y``, ``sample_weight``) and wait until they are learned if `wait`.

        `key` is the Idempotency-Key: rows that were sent with it before are not learned again. By default it is new.

        Raises
        ------
        InvalidError
            With the row and column of each invalid value.
        LearningError
            If the rows were accepted and could not be learned.
        UnavailableError
            If they were accepted and not learned within ten minutes.
        """
        path = f"/v1/models/{model_hash}/partial_fit"
        # Without a key, a call that is repeated because its answer was lost would be learned twice.
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        if wait:
            headers["Prefer"] = f"wait={WAIT_S}"
        deadline = time.monotonic() + LEARNED_S_MAX
        while True:
            status, answer = await self.call("POST", path, body, headers)
            learned: dict[str, Any] = answer
            # The same key again waits for the same rows.
            if status == HTTPStatus.OK or not wait:
                return learned
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Rows that were accepted are not learned after {LEARNED_S_MAX:g} s; they will be learned once "
                    "workers can: see `keepfit status`."
                )

    async def predict(self, model_hash: str, body: bytes) -> dict[str, Any]:
        """Predict rows (JSON: ``X``, ``proba``) and return the answer. Raise InvalidError for invalid rows."""
        _, answer = await self.call("POST", f"/v1/models/{model_hash}/predict", body)
        predicted: dict[str, Any] = answer
        return predicted


async def _read(response: aiohttp.ClientResponse) -> Response:
    """Return a response as those of the clients are."""
    head = b"\r\n".join(b"%b: %b" % field for field in response.raw_headers)
    found = Response(response.status, head, await response.read())
    # aiohttp has undone the coding.
    found.is_coded = False
    return found
