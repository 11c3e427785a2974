"""Bytes of requests, and connections that no HTTP client opens."""

import socket
from urllib.parse import urlsplit

JSON, NPY = "application/json", "application/x-npy"
# The receive buffer of a connection that does not read.
RECEIVE_BYTES = 8192


def post(path: str, body: bytes, media_type: str = JSON, *lines: str) -> bytes:
    """Return a request with a body."""
    head = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {media_type}", *lines)
    return "\r\n".join((*head, f"Content-Length: {len(body)}", "", "")).encode() + body


def get(path: str) -> bytes:
    """Return a request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def unread(url: str) -> socket.socket:
    """Open a connection with a small buffer for what is received."""
    parts = urlsplit(url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    client.connect((parts.hostname, parts.port))
    client.setblocking(False)
    return client
