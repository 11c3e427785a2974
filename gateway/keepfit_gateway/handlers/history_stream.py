"""Streams of the history: documents and points as lines, sent while they are read.

Owns the media types and the order of reading and sending. Invariants: an error is answered before the head of the
answer is sent, and after that the connection ends without the end of the body; few documents are in memory at a time;
a client that reads slowly takes no place among the queries that are in progress.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from aiohttp import hdrs, web

from keepfit.csv_lines import HEAD_DOCUMENTS, CsvLines
from keepfit.history import query
from keepfit.history.query import HistoryQuery
from keepfit_gateway.auth.guard import add_headers, still_permits
from keepfit_gateway.service import SERVICE, Service
from keepfit_gateway.web import codings

log = structlog.get_logger(__name__)

NDJSON, CSV = "application/x-ndjson", "text/csv"
MEDIA_TYPES = (NDJSON, CSV)

Documents = Sequence[Mapping[str, Any]]
# Makes lines of documents, which are all of them or not.
Lines = Callable[[Documents, bool], bytes]
# MongoDB has types of values that JSON lacks.
encode = msgspec.json.Encoder(enc_hook=str).encode


async def send(request: web.Request, asked: HistoryQuery, media_type: str) -> web.StreamResponse:
    """Answer a query with lines of a media type, one of :data:`MEDIA_TYPES`."""
    if codings.negotiate(request.headers, small=True) != "identity":
        raise web.HTTPNotAcceptable(text="Streams are not compressed: accept identity in Accept-Encoding.")
    service = request.app[SERVICE]
    headers = {hdrs.CONTENT_TYPE: f"{media_type}; charset=utf-8", hdrs.CACHE_CONTROL: "no-store"}
    if request.method == hdrs.METH_HEAD:
        return web.Response(headers=headers)
    async with aclosing(query.stream(service.history.timeline, asked)) as items:
        some = await _take(service, items)
        response = web.StreamResponse(headers=headers)
        add_headers(request, response)
        await response.prepare(request)
        has_ended = False
        try:
            has_ended = await _send_lines(request, response, items, some, _csv() if media_type == CSV else _ndjson)
        except (ConnectionError, TimeoutError):
            # The client is gone, or does not read.
            pass
        except Exception as error:  # noqa: BLE001 - too late for another answer
            log.warning("history_stream_failed", error=type(error).__name__, reason=str(error)[:200])
        if has_ended:
            await response.write_eof()
        elif request.transport is not None:
            # The end of the body would say that these were all documents.
            request.transport.abort()
    return response


async def _send_lines(
    request: web.Request, response: web.StreamResponse, items: AsyncGenerator[Any], some: list[Any], lines: Lines
) -> bool:
    """Send the first documents and those that follow; return whether these are all."""
    service = request.app[SERVICE]
    while True:
        are_all = len(some) < HEAD_DOCUMENTS
        data = await asyncio.to_thread(lines, some, are_all)
        async with asyncio.timeout(service.settings.answer_timeout_s):
            await response.write(data)
        if are_all or not still_permits(request):
            return are_all
        some = await _take(service, items)


async def _take(service: Service, items: AsyncGenerator[Any]) -> list[Any]:
    """Return the next items; fewer than :data:`HEAD_DOCUMENTS` at the end."""
    some: list[Any] = []
    async with service.history_gate:
        # Not `async for`, which would close the generator after some.
        while len(some) < HEAD_DOCUMENTS and (item := await anext(items, None)) is not None:
            some.append(item)
    return some


def _ndjson(documents: Documents, are_all: bool) -> bytes:
    return b"".join([line for document in documents for line in (encode(document), b"\n")])


def _csv() -> Lines:
    lines = CsvLines()
    return lambda documents, are_all: lines.of(documents, are_all=are_all).encode()
