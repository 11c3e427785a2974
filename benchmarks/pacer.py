"""Load at a fixed rate: requests are due at random times, and latency counts from the time when a request was due.

wrk sends a request when the previous answer arrives, which says nothing about latency at half of the maximum rate. Here
a request that finds all connections busy waits for one, and its wait counts: a stall shows in every delayed request.
Invariant: prints the same line as ``wrk/request.lua``. Runs as a process of its own, on plain sockets, for low
overhead.
"""

import argparse
import bisect
import itertools
import json
import math
import random
import select
import socket
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

RECEIVED_BYTES = 65536
# Time for outstanding answers after the last request.
DRAIN_S = 10.0


class Requests:
    """An endless sequence of different requests, whose paths follow a Zipf distribution."""

    def __init__(self, url: str, template: str, paths: str, exponent: float, seed: int) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._paths = Path(paths).read_text().split() if paths else [parts.path]
        self._shares = list(itertools.accumulate(1 / k**exponent for k in range(1, len(self._paths) + 1)))
        self._template = template
        self._count = template.count("%")
        self._random = random.Random(seed)  # noqa: S311 - data, not secrets

    def next(self) -> bytes:
        """Return the next request."""
        path = self._paths[bisect.bisect_left(self._shares, self._random.random() * self._shares[-1])]
        body = self._template % tuple(self._random.uniform(-2, 2) for _ in range(self._count))
        return (
            f"POST {path} HTTP/1.1\r\nHost: {self.address[0]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def gap_s(self, rate: float) -> float:
        """Return the time until the next request is due, in seconds."""
        return self._random.expovariate(rate)


class Connection:
    """One connection, and the time when its request was due."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._received = b""

    def send(self, due: float, request: bytes) -> None:
        """Send a request that was due at `due`."""
        self.due = due
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """Read available data; return the status of a complete answer, 0 if the connection is closed, else None."""
        chunk = self.socket.recv(RECEIVED_BYTES)
        if not chunk:
            return 0
        self._received += chunk
        if not is_complete(self._received):
            return None
        status = int(self._received[9:12])
        self._received = b""
        return status


def is_complete(answer: bytes) -> bool:
    r"""Return whether an HTTP answer with a Content-Length is complete.

    >>> is_complete(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    True
    >>> is_complete(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n")
    False
    """
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    _, found, rest = head.lower().partition(b"content-length:")
    return bool(found) and len(body) >= int(rest.split(b"\r\n", 1)[0])


class Pacer:
    """Outstanding requests, due requests that wait for a connection, and the results."""

    def __init__(self, requests: Requests, rate: float, connections: int) -> None:
        self._requests = requests
        self._rate = rate
        self._idle = deque(Connection(requests.address) for _ in range(connections))
        self._busy = {connection.socket.fileno(): connection for connection in self._idle}
        self._outstanding = 0
        self._poll = select.epoll()
        for descriptor in self._busy:
            self._poll.register(descriptor, select.EPOLLIN)
        self._waiting: deque[float] = deque()
        self.latencies_s: list[float] = []
        self.counts = {"bad_status": 0, "connect": 0, "read": 0, "write": 0, "timeout": 0}

    def run(self, seconds: float) -> None:
        """Send for `seconds`, then wait for outstanding answers."""
        begin = time.perf_counter()
        due = begin
        end = begin + seconds
        while (now := time.perf_counter()) < end:
            while due <= now:
                self._waiting.append(due)
                due += self._requests.gap_s(self._rate)
            self._send()
            self._receive(min(due, end) - now)
        while (self._waiting or self._outstanding) and time.perf_counter() < end + DRAIN_S:
            self._send()
            self._receive(0.1)
        self.counts["timeout"] = self._outstanding + len(self._waiting)

    def _send(self) -> None:
        while self._waiting and self._idle:
            self._idle.popleft().send(self._waiting.popleft(), self._requests.next())
            self._outstanding += 1

    def _receive(self, seconds: float) -> None:
        # The timeout of epoll has a resolution of milliseconds, that of select of microseconds.
        if not select.select([self._poll], [], [], max(seconds, 0.0))[0]:
            return
        for descriptor, _ in self._poll.poll(0):
            connection = self._busy[descriptor]
            status = connection.receive()
            if status is None:
                continue
            self._outstanding -= 1
            if status == 0:
                self.counts["read"] += 1
                self._poll.unregister(descriptor)
                continue
            self.counts["bad_status"] += not 200 <= status < 300
            self.latencies_s.append(time.perf_counter() - connection.due)
            self._idle.append(connection)


def percentile(values: list[float], share: float) -> float:
    """Return the value that `share` of the sorted `values` do not exceed; 0 for none.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([], 0.5)
    (2.0, 0.0)
    """
    return values[math.ceil(len(values) * share) - 1] if values else 0.0


def main() -> None:
    """Run the command and print the result."""
    parser = argparse.ArgumentParser(prog="benchmarks.pacer", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("template")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", default="")
    parser.add_argument("--exponent", type=float, default=0.0)
    arguments = parser.parse_args()
    requests = Requests(arguments.url, arguments.template, arguments.paths, arguments.exponent, arguments.seed)
    pacer = Pacer(requests, arguments.rate, arguments.connections)
    pacer.run(arguments.seconds)
    latencies = sorted(pacer.latencies_s)
    result = {
        "requests": len(latencies),
        "duration_us": arguments.seconds * 1e6,
        "p50_us": percentile(latencies, 0.5) * 1e6,
        "p99_us": percentile(latencies, 0.99) * 1e6,
        "max_us": percentile(latencies, 1.0) * 1e6,
    }
    print("RESULT", json.dumps(result | pacer.counts))  # noqa: T201 - the harness reads it


if __name__ == "__main__":
    main()
