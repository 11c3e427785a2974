"""One call of the API as a flow: a body is encoded, sent until it is answered, and the answer is decoded.

Owns what all calls of a client share and no I/O needs: address, time limits, kept answers. Never sends anything itself.
Invariant: a call that changes something has an Idempotency-Key, made once, changes nothing a second time, or is not
repeated.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from keepfit.client.calling import answer_cache, problems, retries
from keepfit.client.calling.answer_cache import ANSWER_BYTES_MIN, AnswerCache
from keepfit.client.calling.retries import Reachability
from keepfit.client.rows import values
from keepfit.client.rows.bodies import JSON, Encoded, Forms, best_coding
from keepfit.client.transport import http1
from keepfit.client.transport.address import PLAIN, Address
from keepfit.client.transport.exchange import Ask, ExchangeError, Flow, Request, Send
from keepfit.client.transport.http1 import NOT_MODIFIED, REDIRECTED, Response
from keepfit.errors import MalformedError

TIMEOUT_S = 60.0
# The slowest connection for which a call has time: each of so many bytes adds a second to its limit.
BYTES_PER_S_MIN = 1 << 20
READY_S_MAX = 5.0
# Longer than a gateway takes to check a file with an estimator, or to make one.
FILE_S_MAX = 180.0


class Calls:
    """What the calls of one client share."""

    def __init__(self, address: Address, timeout_s: float = TIMEOUT_S, cache: AnswerCache | None = None) -> None:
        if timeout_s <= 0:
            raise MalformedError("timeout_s is a positive number of seconds.")
        self.address = address
        self.timeout_s = timeout_s
        self.gateway = Reachability(address.url)
        self.cache = AnswerCache() if cache is None else cache
        self.forms = Forms(coding=None if address.is_loopback else best_coding())

    def deadline(self, timeout_s: float | None = None, size_bytes: float = 0) -> float:
        """Return the time (monotonic) at which a call of now ends: later for a body of many bytes."""
        return time.monotonic() + (timeout_s or self.timeout_s) + size_bytes / BYTES_PER_S_MIN

    def send(self, request: Request, deadline: float | None = None) -> Flow[Response]:
        """Send a request until it is answered; raises the error that the answer reports."""
        return retries.exchange(self.gateway, request, self.deadline() if deadline is None else deadline)

    def send_once(self, request: Request, deadline: float) -> Flow[Response]:
        """Send a request that is not repeated, whatever its answer is; raises the error that the answer reports."""
        try:
            response: Response = yield Send(request, deadline)
        except ExchangeError as error:
            raise retries.silent(self.gateway, error) from None
        self.gateway.is_reached = True
        if response.status >= REDIRECTED:
            raise problems.error_of(self.address.url, response)
        return response

    def decode(self, response: Response) -> Any:
        """Return the JSON of an answer."""
        return problems.decode(self.address.url, response)

    def json(
        self,
        method: str,
        target: str,
        body: Any = None,
        fields: Mapping[str, str] | None = None,
        *,
        is_repeatable: bool = True,
        timeout_s: float | None = None,
    ) -> Flow[tuple[int, Any]]:
        """Make a call with a JSON body and return its status and JSON (None without a body)."""
        request = Request(method, target, is_repeatable=is_repeatable)
        if body is not None:
            request.body, request.fields = values.encode(body), PLAIN
        if fields:
            request.fields += lines_of(fields)
        response = yield from self.send(request, self.deadline(timeout_s))
        return response.status, self.decode(response)

    def ready(self) -> Flow[dict[str, Any]]:
        """Return the answer of ``/readyz``, asked once, also if the service is unavailable."""
        try:
            response = yield Send(Request("GET", "/readyz"), self.deadline(min(READY_S_MAX, self.timeout_s)))
        except ExchangeError as error:
            raise retries.silent(self.gateway, error) from None
        state = problems.state_of(self.address.url, response)
        self.gateway.is_reached = True
        return state

    def ask_alone(self, question: Ask) -> Flow[Any]:
        """Predict a few rows with one request; return the answer."""
        request = _request_of(question)
        return self.predict(request, time.monotonic() + question.timeout_s)

    def answer(self, request: Request, response: Response) -> Any:
        """Return the answer to a prediction, which is kept if it is long."""
        self.gateway.is_reached = True
        answer = problems.decode(self.address.url, response)
        if len(response.body) >= ANSWER_BYTES_MIN and (key := answer_cache.key_of(request)) is not None:
            self.cache.note(key, response)
        return answer

    def ask_again(self, question: Ask, deadline: float, outcome: Response | ExchangeError) -> Flow[Any]:
        """Go on with a prediction whose first attempt had a long answer, none, or an error."""
        request = _request_of(question)
        response = yield from retries.exchange(self.gateway, request, deadline, outcome)
        return self.answer(request, response)

    def predict(self, request: Request, deadline: float) -> Flow[Any]:
        """Send a prediction, with the ETag of the answer that is kept to the same one; return the answer."""
        key = answer_cache.key_of(request) if self.cache.is_used else None
        kept = None if key is None else self.cache.find(key)
        if kept is None:
            response = yield from self.send(request, deadline)
            return self.answer(request, response)
        if time.monotonic() >= kept.fresh_until:
            fields = request.fields + lines_of({"If-None-Match": kept.etag})
            response = yield from self.send(replace(request, fields=fields), deadline)
            if response.status != NOT_MODIFIED:
                return self.answer(request, response)
            kept.confirm(response)
        return self.decode(kept.response)


def _request_of(question: Ask) -> Request:
    return Request("POST", question.target, b'{"X":%b%b}' % (question.rows, question.options), PLAIN)


def fields_of(encoded: Encoded, more: Mapping[str, str] | None = None) -> bytes:
    """Return the header fields of a body with those of its call."""
    lines = PLAIN if encoded.media_type == JSON else lines_of({"Content-Type": encoded.media_type})
    if encoded.coding is not None:
        lines += lines_of({"Content-Encoding": encoded.coding})
    return lines + lines_of(more)


def new_key() -> str:
    """Return an Idempotency-Key that no other call has."""
    return os.urandom(16).hex()


def lines_of(fields: Mapping[str, str] | None) -> bytes:
    """Return header fields as they are sent. Raise MalformedError for a character that no field may have."""
    if not fields:
        return b""
    try:
        return http1.field_lines(fields)
    except ValueError as error:
        raise MalformedError(f"{error}.") from None
