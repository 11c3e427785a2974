"""Answers to predictions that are kept with their ETag, for the same question asked again.

Owns their space. Invariant: a kept answer is used only as the gateway's header fields allow: after a 304 to its ETag,
or within its ``max-age``; never after ``no-store``. Short answers are not kept: the gateway computes one as fast as it
compares an ETag.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from keepfit.client.transport import http1
from keepfit.client.transport.exchange import Request
from keepfit.client.transport.http1 import Response

ANSWER_BYTES_MIN = 2 << 10
CACHE_BYTES_MAX = 16 << 20


@dataclass(slots=True)
class Kept:
    """An answer with its ETag, and the time (monotonic) up to which it is used without asking."""

    etag: str
    response: Response
    fresh_until: float

    def confirm(self, response: Response) -> None:
        """Take the header fields of a 304."""
        self.fresh_until = _fresh_until(_directives(response))


class AnswerCache:
    """The least recently used answers leave first when there are more than `bytes_max`."""

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._size = 0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        # Threads share a client.
        self._lock = threading.Lock()

    @property
    def is_used(self) -> bool:
        """Whether any answer is kept."""
        return bool(self._kept)

    def find(self, key: bytes) -> Kept | None:
        """Return the answer to a question."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            return kept

    def note(self, key: bytes, response: Response) -> None:
        """Keep an answer if its header fields allow it."""
        control = _directives(response)
        etag, size = response.headers.get("etag"), len(response.body)
        with self._lock:
            replaced = self._kept.pop(key, None)
            if replaced is not None:
                self._size -= len(replaced.response.body)
            if etag is None or "no-store" in control or not ANSWER_BYTES_MIN <= size <= self._bytes_max:
                return
            self._kept[key] = Kept(etag, response, _fresh_until(control))
            self._size += size
            while self._size > self._bytes_max:
                _, oldest = self._kept.popitem(last=False)
                self._size -= len(oldest.response.body)


def key_of(request: Request) -> bytes | None:
    """Return what an answer depends on; None if the body is not at hand."""
    if not isinstance(request.body, bytes):
        return None
    return hashlib.blake2b(request.target.encode() + b"\n" + request.fields + b"\n" + request.body).digest()


def _directives(response: Response) -> dict[str, str]:
    pairs = (one.strip().partition("=") for one in response.headers.get("cache-control", "").split(","))
    return {name.lower(): value for name, _, value in pairs if name}


def _fresh_until(control: dict[str, str]) -> float:
    age_s = http1.number(control.get("max-age", ""))
    return 0.0 if age_s is None or "no-cache" in control else time.monotonic() + age_s
