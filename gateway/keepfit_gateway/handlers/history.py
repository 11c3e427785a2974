"""Handler of the history: documents by time, and points aggregated from their numbers.

Owns the translation between HTTP and :mod:`keepfit.history`, and nothing else. Invariant: grouping runs in a thread,
large answers are encoded in slices, and only a few queries run at once.
"""

import asyncio
from dataclasses import replace
from functools import partial

from aiohttp import hdrs, web

from keepfit.errors import MalformedError
from keepfit.history import query
from keepfit.history.queries.filters import DOCUMENT
from keepfit_gateway import bound_key, schemas
from keepfit_gateway.handlers import history_stream
from keepfit_gateway.handlers.history_stream import encode
from keepfit_gateway.handlers.inputs import check_hash
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.media_types import JSON, preferred
from keepfit_gateway.web.responses import encode_items, json_response


async def list_history(request: web.Request) -> web.StreamResponse:
    """GET /v1/history: documents, newest first, or points."""
    media_type = preferred(request.headers.getall(hdrs.ACCEPT, ()), history_stream.MEDIA_TYPES)
    parameters = {name: request.query.getall(name) for name in request.query}
    if any(len(texts) > 1 for name, texts in parameters.items() if name not in query.REPEATABLE):
        raise MalformedError("A query parameter occurs more than once.")
    service = request.app[SERVICE]
    if "hash" in request.query and request.query.get("kind") != DOCUMENT:
        await check_hash(request, request.query["hash"])
    # Times in plain words beyond the simple forms need a library that uses as much memory as half a gateway.
    most = {} if media_type == JSON else dict.fromkeys(("limit", "limit_max"), query.STREAM_LIMIT_MAX)
    parse = partial(query.parse, parameters, words=False, **most)
    parsed = await asyncio.to_thread(parse) if "tz" in parameters else parse()
    parsed = replace(parsed, where=replace(parsed.where, bound=bound_key.conditions()))
    if media_type != JSON:
        return await history_stream.send(request, parsed, media_type)
    async with service.history_gate:
        items = await query.execute(service.history.timeline, parsed)
    raw = await encode_items(items, encode)
    return json_response(
        schemas.HistoryAnswer(documents=raw) if parsed.aggregation is None else schemas.HistoryAnswer(points=raw)
    )
