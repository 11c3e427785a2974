"""Heads of requests to predict, recognised by the bytes that were parsed before.

A client that keeps its connection open sends the same head with each of its requests: only the body differs, and the
hash of the model. Parsing the head again takes longer than most predictions.

Owns which heads are known. Never parses one, never judges a hash, and never holds a head whose body is chunked.
Invariant: the bytes of a known head were parsed by aiohttp at the beginning of a request whose body followed in one
piece, so parsing them there again gives the same.
"""

from dataclasses import dataclass

from keepfit_gateway.web.fields import Headers
from keepfit_gateway.web.small_body import BODY_BYTES_MAX

BY_HASH, BY_METADATA = "/v1/models/{hash}/predict", "/v1/predict"
# The path of BY_HASH before and after the hash, which has 64 digits.
BEFORE, AFTER = BY_HASH.split("{hash}")
BEGIN, END = len(BEFORE), len(BEFORE) + 64

METHOD = b"POST "
BEGINS_BY_HASH, BEGINS_BY_METADATA = METHOD + BEFORE.encode(), METHOD + BY_METADATA.encode() + b" "
# Where the path begins in a head, where the hash ends, and where the path ends.
PATH_BEGIN, HASH_END, PATH_END = len(METHOD), len(METHOD) + END, len(METHOD) + END + len(AFTER)
END_OF_HEAD = b"\r\n\r\n"
# Longer heads are parsed each time; so many of them take a few megabytes.
HEAD_BYTES_MAX, HEADS_MAX = 1024, 1024
REQUEST_BYTES_MAX = HEAD_BYTES_MAX + len(END_OF_HEAD) + BODY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class KnownHead:
    """The fields of a head, and the size of the body that they announce."""

    headers: Headers
    body_bytes: int


def is_predict(path: str) -> bool:
    """Return whether a path is one of the two.

    >>> is_predict("/v1/predict"), is_predict("/v1/models")
    (True, False)
    """
    return (path[END:] == AFTER and path[:BEGIN] == BEFORE) or path == BY_METADATA


class KnownHeads:
    """The heads of one gateway, at most :data:`HEADS_MAX`; heads with different hashes are one."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, data: bytes) -> tuple[str, Headers, bytes] | None:
        """Return the path of a request, its fields and its body, if `data` is one whose head is known, and no more.

        `data` must begin where a request begins. The hash in a path that is found is 64 bytes of any kind.
        """
        if len(data) > REQUEST_BYTES_MAX:
            return None
        head, _, body = data.partition(END_OF_HEAD)
        if head.startswith(BEGINS_BY_HASH):
            known, path = self._heads.get(head[HASH_END:]), head[PATH_BEGIN:PATH_END].decode("latin-1")
        else:
            known, path = self._heads.get(head), BY_METADATA
        return None if known is None or len(body) != known.body_bytes else (path, known.headers, body)

    def note(self, data: bytes, headers: Headers, body: bytes) -> None:
        """Note the head of a request to predict that was parsed from `data`, which begins where it begins."""
        head, _, rest = data.partition(END_OF_HEAD)
        by_hash = head.startswith(BEGINS_BY_HASH)
        # A chunked body, or the beginning of a next request, is not what was decoded; an empty line may come first.
        if rest != body or len(head) > HEAD_BYTES_MAX or not (by_hash or head.startswith(BEGINS_BY_METADATA)):
            return
        if len(self._heads) >= HEADS_MAX:
            # Heads that are still sent are known again after one request each.
            self._heads.clear()
        self._heads[head[HASH_END:] if by_hash else head] = KnownHead(headers, len(body))
