"""Small responses, written to the connection in one call.

Owns the bytes of a response without stream, cookies or compression. Never used for an error. Invariant: the bytes on
the wire are those of the equal :class:`aiohttp.web.Response`.
"""

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11
from aiohttp.web_request import BaseRequest

PHRASES = {200: "OK", 202: "Accepted"}


class SmallResponse:
    """A response with a JSON body; `fields` are additional header lines, each terminated by CR LF."""

    __slots__ = ("body", "fields", "keep_alive", "status")

    def __init__(self, status: int, body: bytes, fields: str = "") -> None:
        self.status = status
        self.body = body
        self.fields = fields
        self.keep_alive = False

    def write(self, request: BaseRequest, closes: bool = False) -> bool:
        """Write the response to `request`; return False if the client has disconnected.

        `closes` says that the gateway closes the connection afterwards.
        """
        transport = request.transport
        if transport is None or transport.is_closing():
            return False
        self.keep_alive = request.keep_alive and not closes
        connection = ""
        if request.version != HttpVersion11:
            connection = "Connection: keep-alive\r\n" if self.keep_alive else ""
        elif not self.keep_alive:
            connection = "Connection: close\r\n"
        head = (
            f"HTTP/{request.version.major}.{request.version.minor} {self.status} {PHRASES[self.status]}\r\n"
            f"Content-Type: application/json\r\n{self.fields}Content-Length: {len(self.body)}\r\n"
            f"Date: {rfc822_formatted_time()}\r\nServer: {SERVER_SOFTWARE}\r\n{connection}\r\n"
        )
        transport.write(head.encode("latin-1") + self.body)
        return True
