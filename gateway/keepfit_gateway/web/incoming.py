"""Requests as the gateway handles them: one spelling of the target, and ``Expect: 100-continue`` answered when needed.

Owns both. Never reads a body and never answers a request. Invariants: behind :func:`request_factory` two targets that
mean the same have the same path, and ``Host`` names the host that the request is for; a client that waits for a 100
gets it when the gateway waits for the body, so never before an answer that does not need the body.
"""

import re
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

# The client waits for this before it sends the body.
EXPECTS_CONTINUE: web.RequestKey[bool] = web.RequestKey("expects_continue", bool)
SLASHES = re.compile("//+")
# The path of ``OPTIONS *``, which is about the server.
SERVER_PATH = "/*"


def request_factory(make: Callable[..., BaseRequest]) -> Callable[..., BaseRequest]:
    """Return aiohttp's factory of requests with canonical targets, and without expectations of a 100."""

    def make_request(message: Any, content: Any, protocol: Any, writer: Any, task: Any) -> BaseRequest:
        target: str = message.path
        # Every request pays for this: single characters are found fastest.
        slash_at_end = "?" in target and "/?" in target
        if slash_at_end or target[-1] == "/" or target[0] != "/" or "%" in target or "//" in target:
            message = canonical(message)
        if hdrs.EXPECT not in message.headers:
            return make(message, content, protocol, writer, task)
        headers = CIMultiDict(message.headers)
        expected = ", ".join(headers.popall(hdrs.EXPECT))
        if expected.lower() != "100-continue":
            # aiohttp, which reads one line only, refuses it; it would answer a 100 before the handler runs.
            headers[hdrs.EXPECT] = expected
            return make(message._replace(headers=CIMultiDictProxy(headers)), content, protocol, writer, task)
        request = make(message._replace(headers=CIMultiDictProxy(headers)), content, protocol, writer, task)
        if request.version == HttpVersion11:
            request[EXPECTS_CONTINUE] = True
        return request

    return make_request


def canonical(message: Any) -> Any:
    """Return the head of a request with its target in the one form that routes have.

    That is: without scheme and host, which become ``Host`` (RFC 9112, 3.2.2), no slash at the end, no two in a row,
    and no percent-encoding of characters that need none (RFC 3986, 6.2.2.2).
    """
    url = message.url
    if message.path == "*":
        return message._replace(path=SERVER_PATH, url=URL.build(path=SERVER_PATH, encoded=True))
    if url.absolute:
        headers = CIMultiDict(message.headers)
        headers[hdrs.HOST] = url.raw_authority
        message = message._replace(headers=CIMultiDictProxy(headers))
    path = URL(SLASHES.sub("/", f"/{url.raw_path}")).raw_path.rstrip("/") or "/"
    query = url.raw_query_string
    target = f"{path}?{query}" if query else path
    return message._replace(path=target, url=URL.build(path=path, query_string=query, encoded=True))


def expects_continue(request: BaseRequest) -> bool:
    """Return whether the client waits for a 100 before it sends the body."""
    return bool(request.get(EXPECTS_CONTINUE))


def send_continue(request: BaseRequest) -> None:
    """Ask for the body if the client waits for that. Call it before waiting for a body."""
    if expects_continue(request):
        del request[EXPECTS_CONTINUE]
        if request.transport is not None and not request.content.is_eof():
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
