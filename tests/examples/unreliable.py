"""A proxy in front of keepfit that fails learning calls as a test says."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Literal

from tests.examples.started import call

Fault = Literal["busy", "away", "lost", None]


class Handler(BaseHTTPRequestHandler):
    """Forward calls; a call that learns or predicts gets the next fault.

    ``busy`` and ``away`` are 503s that ask for a repeat at once and in an hour, ``lost`` is a call that is forwarded
    and whose answer is not, None is a call that is forwarded.
    """

    protocol_version = "HTTP/1.1"
    keepfit_url: str
    faults: list[Fault]

    def do_GET(self) -> None:
        """Forward a question."""
        self._answer(200, call(self.keepfit_url + self.path))

    def do_POST(self) -> None:
        """Forward a call, or fail it."""
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_creation = self.path == "/v1/models"
        fault = None if is_creation or not self.faults else self.faults.pop(0)
        if fault in ("busy", "away"):
            problem = {"type": "urn:keepfit:problem:unavailable", "status": 503, "detail": "of the test"}
            self._answer(503, problem, retry_after_s=0 if fault == "busy" else 3600)
            return
        passed = {name: self.headers[name] for name in ("Idempotency-Key", "Prefer") if name in self.headers}
        answer = call(self.keepfit_url + self.path, document, passed)
        if fault == "lost":
            self.close_connection = True
        else:
            self._answer(200, answer)

    def _answer(self, status: int, document: Any, retry_after_s: int = 0) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Retry-After", str(retry_after_s))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def unreliable(keepfit_url: str, faults: list[Fault]) -> Iterator[str]:
    """Run the proxy until the block ends; yield its address. It removes each fault from the list when it happens."""
    handler = type("Faults", (Handler,), {"keepfit_url": keepfit_url, "faults": faults})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
