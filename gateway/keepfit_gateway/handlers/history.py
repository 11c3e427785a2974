"""Handler of the history: documents by time, and points aggregated from their numbers.

Owns the translation between HTTP and :mod:`keepfit.history`, and nothing else. Invariant: slow work (grouping, encoding
large answers) runs in a thread, and only a few queries run at once.
"""

from typing import Any

import msgspec
from aiohttp import web

from keepfit.errors import MalformedError
from keepfit.history import query
from keepfit_gateway import schemas
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.offload import run_in_thread_if_large

# Approximate size of one document or point as JSON.
ITEM_BYTES = 500


async def list_history(request: web.Request) -> web.Response:
    """GET /v1/history: documents, newest first, or points."""
    if len(request.query) != len(set(request.query)):
        raise MalformedError("A query parameter occurs more than once.")
    service = request.app[SERVICE]
    # Times in plain words beyond the simple forms need a library that uses as much memory as half a gateway.
    parsed = query.parse(request.query, words=False)
    async with service.history_gate:
        items = await query.execute(service.history.timeline, parsed)
    form = schemas.HistoryAnswer(documents=items) if parsed.aggregation is None else schemas.HistoryAnswer(points=items)
    return web.json_response(body=await run_in_thread_if_large(ITEM_BYTES * len(items), _encode, form))


def _encode(form: Any) -> bytes:
    # MongoDB has types of values that JSON lacks.
    return msgspec.json.encode(form, enc_hook=str)
