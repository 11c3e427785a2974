"""Rows that are too large for a script call: written to a key of their own, before the call that names the key.

Owns how they are written, read and deleted. Never decides whether a request is accepted: the script `accept` does, and
takes the time to live of accepted rows away. Invariant: rows of a request that is refused do not stay in Redis. Rows
come from gateways and go to workers.
"""

import hashlib
from contextlib import suppress

import numpy as np
import redis
import redis.asyncio

from keepfit.backends import redis_scripts
from keepfit.errors import UnavailableError
from keepfit.rows import acceptance
from keepfit.rows.rows import Rows, numbers_offset
from keepfit.store.staged_file import PIECE_BYTES, piece

# Alignment of what numpy and its libraries compute with.
ALIGNMENT = 64


async def write_in_pieces(
    client: redis.asyncio.Redis,
    key: str,
    rows: Rows,
    ttl_ms: int,
    bytes_max: int | None = None,
    digest: str = "",
    element: bytes = b"",
) -> str:
    """Write the msgpack of `rows` to `key`, and let Redis serve others between the pieces; return its SHA-256 (hex).

    The digest is not computed again if it is known as `digest`. It is that of the rows alone: not of `element`, which
    is written as one more element of their array (:mod:`keepfit.rows.acceptance`).

    Raises
    ------
    TooLargeError
        If the rows have more than `bytes_max` bytes, or more than a value of Redis may have.
    UnavailableError
        If Redis is unavailable.
    """
    rows.check_size(bytes_max)
    computed, offset = None if digest else hashlib.sha256(), 0
    for data in acceptance.pieces(rows, element, computed):
        await redis_scripts.run_async(client, *piece(key, offset, data, ttl_ms))
        offset += len(data)
    return digest if computed is None else computed.hexdigest()


def digest_of(rows: Rows) -> str:
    """Return the digest that :func:`write_in_pieces` returns for these rows."""
    digest = hashlib.sha256()
    for data in rows.pieces():
        digest.update(data)
    return digest.hexdigest()


def read_in_pieces(client: redis.Redis, key: str | bytes, size_bytes: int) -> memoryview:
    """Return the `size_bytes` of msgpack that were written to `key`; nothing if Redis has lost them.

    They are in memory once: the client would need their size twice to receive them as one value. The numbers of the
    rows are aligned, so that :meth:`keepfit.rows.rows.Rows.decode` does not copy them.

    Raises
    ------
    UnavailableError
        If Redis is unavailable.
    """
    read, whole = 0, memoryview(b"")
    while read < size_bytes:
        (data,) = redis_scripts.run(client, ("GETRANGE", key, read, min(read + PIECE_BYTES, size_bytes) - 1))
        if len(data) != min(PIECE_BYTES, size_bytes - read):
            return memoryview(b"")
        if not read:
            whole = _allocate(size_bytes, numbers_offset(data))
        whole[read : read + len(data)] = data
        read += len(data)
    return whole.toreadonly()


def _allocate(size_bytes: int, aligned: int) -> memoryview:
    """Return memory in which the byte number `aligned` has an aligned address."""
    memory = np.empty(size_bytes + ALIGNMENT, np.uint8)
    start = -(memory.ctypes.data + aligned) % ALIGNMENT
    return memory.data[start : start + size_bytes]


async def unstage(store: redis.asyncio.Redis, large_key: str) -> None:
    """Delete the staged rows of a large request that was not accepted; if Redis is unavailable, they expire."""
    with suppress(UnavailableError):
        await redis_scripts.run_async(store, redis_scripts.call("unstage", [large_key]))
