"""The handler of the history: documents by time, and points of their numbers.

Owns the translation between HTTP and :mod:`keepfit.history`, and nothing else. Invariant: what takes long (grouping,
writing large answers) is done beside the event loop, and not for many at once.
"""

from typing import Any

import msgspec
from aiohttp import web

from keepfit.errors import MalformedError
from keepfit.history import query
from keepfit_gateway import schemas
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.offload import run_in_thread_if_large

# About what a document or a point is, written.
ITEM_BYTES = 500


async def list_history(request: web.Request) -> web.Response:
    """GET /v1/history: documents, newest first, or points."""
    if len(request.query) != len(set(request.query)):
        raise MalformedError("A query parameter stands twice.")
    service = request.app[SERVICE]
    # Only plain words are times here: others take a library that weighs as much as half a gateway.
    asked = query.parse(request.query, words=False)
    async with service.history_gate:
        found = await query.execute(service.history.timeline, asked)
    form = schemas.HistoryAnswer(documents=found) if asked.aggregation is None else schemas.HistoryAnswer(points=found)
    return web.json_response(body=await run_in_thread_if_large(ITEM_BYTES * len(found), _written, form))


def _written(form: Any) -> bytes:
    # MongoDB has kinds of values that JSON has not.
    return msgspec.json.encode(form, enc_hook=str)
