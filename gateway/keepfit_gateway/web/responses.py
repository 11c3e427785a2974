"""Responses: JSON bodies and their compression.

Owns how an answer is written as JSON and whether it is compressed. Never decides its content or status.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.web_request import BaseRequest

from keepfit_gateway.web import codings
from keepfit_gateway.web.bodies import BODY_MEMORY, BodyMemoryLimit
from keepfit_gateway.web.inference_answers import codings_of, is_inference
from keepfit_gateway.web.offload import run_in_thread_if_large

# Smaller bodies fit one packet with their head; compression saves nothing there.
COMPRESSED_BYTES_MIN = 1024

# Encoding this much takes less than a millisecond.
SLICE_BYTES = 64 * 1024

encode_json = msgspec.json.Encoder().encode


def json_response(
    answer: Any,
    status: int = 200,
    content_type: str = "application/json",
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Return a response with `answer` (a form or plain JSON) as its body."""
    return web.Response(body=encode_json(answer), status=status, content_type=content_type, headers=headers)


async def encode_items(items: Iterable[Any], encode: Callable[[Any], bytes] | None = None) -> list[Any]:
    """Encode the items of a list, as raw JSON for an answer; other tasks run after each :data:`SLICE_BYTES`.

    A thread would not help: it holds Python's global lock while it encodes.
    """
    encoded, size = list[msgspec.Raw](), 0
    for item in items:
        data = (encode or encode_json)(item)
        encoded.append(msgspec.Raw(data))
        size += len(data)
        if size >= SLICE_BYTES:
            size = 0
            await asyncio.sleep(0)
    return encoded


@web.middleware
async def compress_responses(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Compress responses as the client accepts them, and count their memory.

    A request that accepts no coding is not handled.
    """
    memory = request.app[BODY_MEMORY]
    if codings.negotiate(request.headers, small=True) is None:
        raise web.HTTPNotAcceptable(
            text=f"Accept-Encoding excludes every coding of an answer: accept identity, or one of {codings.SUPPORTED}."
        )
    try:
        response: web.StreamResponse = await handler(request)
        await compress(memory, request, response)
    except BaseException:
        memory.release(request)
        raise
    return response


async def compress(memory: BodyMemoryLimit, request: BaseRequest, response: web.StreamResponse) -> None:
    """Compress a response of 1 KiB or more, or any if the request excludes an uncompressed one.

    Its memory is counted instead of that of the request's body, from before it is compressed until it is written.

    Raises
    ------
    UnavailableError
        If other requests use all memory for bodies.
    """
    memory.hold_answer(request, response)
    if not isinstance(response, web.Response):
        return
    body, headers = response.body, request.headers
    if not isinstance(body, bytes) or not body:
        return
    small = len(body) < COMPRESSED_BYTES_MIN
    coding = codings.negotiate(headers, small=small)
    if coding != "identity" and is_inference(request):
        coding = codings.negotiate(headers, small=small, offered=codings_of(request, response)) or "identity"
    if not small or coding != "identity":
        response.headers[hdrs.VARY] = hdrs.ACCEPT_ENCODING
    if coding is not None and coding != "identity":
        response.body = await run_in_thread_if_large(len(body), codings.encode, coding, body)
        response.headers[hdrs.CONTENT_ENCODING] = coding
        memory.hold_answer(request, response)
