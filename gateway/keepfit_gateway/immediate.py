"""Immediate answers: predictions that are sent as soon as their request has arrived, in the same turn of the loop.

Owns which requests have one: small JSON bodies to predict that came in one piece with a head that holds nothing
special, from a key without a rate, whose answer is kept or computed here. Never waits, never asks a worker, never words
an error, and counts nothing before it has an answer. Invariant: a request without an immediate answer goes on
unchanged, and an immediate answer has the bytes that :mod:`keepfit_gateway.fast_path` would send. A task for each
request, and the objects that stand for it, cost more than most predictions.
"""

import time

from aiohttp import hdrs
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDict

from keepfit.jobs.traffic import KEPT
from keepfit.observability import request_id
from keepfit.security.api_keys import PREDICT
from keepfit_gateway import schemas
from keepfit_gateway.auth.guard import X_REQUEST_ID, ApiKeyGuard
from keepfit_gateway.handlers.prediction import VALUE_BYTES, answer_here, answer_row, question_of
from keepfit_gateway.known_heads import BEGIN, BY_HASH, BY_METADATA, END, KnownHeads, is_predict
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.http_caching import Reply
from keepfit_gateway.service import Service
from keepfit_gateway.web import fast_json
from keepfit_gateway.web.fields import Headers
from keepfit_gateway.web.responses import COMPRESSED_BYTES_MIN
from keepfit_gateway.web.small_body import is_plain, peek

# A longer answer may be compressed, which the regular path does.
ANSWER_BYTES_MAX = COMPRESSED_BYTES_MIN - 1

NO_FIELDS: CIMultiDict[str] = CIMultiDict()
SERVER = f"Server: {SERVER_SOFTWARE}\r\n\r\n"


class NoImmediateAnswers:
    """No request has an immediate answer: each takes a path on which it is logged."""

    def answer_known(self, data: bytes) -> None:
        """Return None, as :meth:`ImmediateAnswers.answer_known` does for unknown heads."""

    def answer(self, message: RawRequestMessage, content: StreamReader, data: bytes | None) -> None:
        """Return None, as :meth:`ImmediateAnswers.answer` does for requests that the regular path answers."""


class ImmediateAnswers:
    """The immediate answers of one gateway."""

    def __init__(self, service: Service, guard: ApiKeyGuard) -> None:
        self._service = service
        self._guard = guard
        self._heads = KnownHeads()
        self._record, self._count = service.request_metrics.record_immediate, service.traffic.predicted

    def answer_known(self, data: bytes) -> bytes | None:
        """Return the response to a request whose head was parsed before; None: parse it.

        `data` is what has arrived, from the beginning of a request on.
        """
        found = self._heads.find(data)
        return None if found is None else self._answer(*found)

    def answer(self, message: RawRequestMessage, content: StreamReader, data: bytes | None) -> bytes | None:
        """Return the response to a request that has arrived, as it is sent; None: the regular path must answer.

        Nothing of `content` is consumed. `data` are the bytes that the request was parsed from, if they begin with it.
        """
        path, headers = message.path, message.headers
        body = peek(content) if is_predict(path) and _is_plain(message) else None
        if body is None:
            return None
        response = self._answer(path, headers, body)
        # A request id is another one each time: no such head comes again.
        if response is not None and data is not None and X_REQUEST_ID not in headers:
            self._heads.note(data, headers, body)
        return response

    def _answer(self, path: str, headers: Headers, body: bytes) -> bytes | None:
        """Return the response to a plain request if its sender may predict with every model, and there is one here."""
        started_s = time.perf_counter()
        caller = self._guard.find_caller(headers)
        if caller is None or PREDICT not in caller.scopes:
            return None
        route, model_hash = (BY_METADATA, None) if path == BY_METADATA else (BY_HASH, path[BEGIN:END])
        try:
            found = self._reply(path, model_hash, body)
        except Exception:  # noqa: BLE001 - the regular path has the same error, and answers with it
            return None
        if found is None:
            return None
        reply, model_hash = found
        response = self._response(headers, reply)
        seconds = time.perf_counter() - started_s
        self._record(route, seconds)
        self._count(model_hash, reply.source, reply.rows, seconds)
        return response

    def _reply(self, path: str, model_hash: str | None, body: bytes) -> tuple[Reply, str] | None:
        """Return the answer that is kept for the same bytes, or computed now, and the hash of the model.

        None if there is no short one.
        """
        service, raw = self._service, (path, body)
        cache = service.cache
        cached = cache.find_raw(raw, bytes_max=ANSWER_BYTES_MAX)
        if cached is not None:
            reply = Reply(cached.etag, cached.body, cache.age_s(cached), "", KEPT, cached.rows)
            return reply, cached.watched.model_hash
        if model_hash is not None:
            row, model = fast_json.decode_row(body), service.models.cached(model_hash)
            if row is not None and model is not None:
                computed = answer_row(service, model, row, raw, ANSWER_BYTES_MAX)
                if computed is not None:
                    return computed, model.hash
        form = schemas.PredictByMetadata if model_hash is None else schemas.Predict
        rows = fast_json.decode(body, form, model_hash)
        model = None if rows is None else service.models.cached(rows.model_hash)
        if rows is None or model is None or service.scorers.find(model) is None:
            return None
        question = question_of(model, rows)
        if question.values * VALUE_BYTES > ANSWER_BYTES_MAX:
            # Most likely computed in vain.
            return None
        computed = answer_here(service, question, NO_FIELDS, http_caching.DEFAULT, raw, ANSWER_BYTES_MAX)
        return None if computed is None else (computed, model.hash)

    def _response(self, headers: Headers, reply: Reply) -> bytes:
        sent = headers.get(X_REQUEST_ID)
        name = sent if sent is not None and request_id.FORM.fullmatch(sent) else request_id.mint()
        age = "" if reply.age_s is None else f"Age: {int(reply.age_s)}\r\n"
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-cache\r\nVary: Accept-Encoding\r\n"
            f"ETag: {reply.etag}\r\n{age}X-Request-ID: {name}\r\n{self._guard.added_fields}"
            f"Content-Length: {len(reply.body)}\r\nDate: {rfc822_formatted_time()}\r\n{SERVER}"
        )
        return head.encode("latin-1") + reply.body


def _is_plain(message: RawRequestMessage) -> bool:
    """Return whether the head has nothing special."""
    headers = message.headers
    return (
        not message.should_close
        and message.version == HttpVersion11
        and hdrs.CACHE_CONTROL not in headers
        and is_plain(message.method, headers)
    )
