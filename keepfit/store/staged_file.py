"""Files that pass through the queue's Redis: written in pieces by one process, and read by another one.

Owns a key with a time to live. Never holds more of a file than one piece. Invariants: a file of a process that died
expires; Redis serves other clients between the pieces. Gateways write the files that clients upload, and read those
that workers write.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import redis
import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.errors import UnavailableError

PIECE_BYTES = 1 << 20


def piece(key: str, offset: int, data: bytes | memoryview, ttl_ms: int) -> tuple[Command, ...]:
    """Return the commands that write a piece of a value, which then lives for `ttl_ms`.

    Written at an offset and not appended, because a round trip may be repeated. The first command is for a process that
    dies while it sends them: Redis executes those that have arrived, and no key may be left without a time to live.
    """
    return (
        ("SET", key, b"", "NX", "PX", ttl_ms),
        ("SETRANGE", key, offset, data),
        ("PEXPIRE", key, ttl_ms),
    )


def store(client: redis.Redis, key: str, data: bytes, ttl_ms: int) -> None:
    """Write a file that is in memory, in pieces; raise UnavailableError if Redis is unavailable."""
    for offset in range(0, len(data), PIECE_BYTES):
        redis_scripts.run(client, *piece(key, offset, data[offset : offset + PIECE_BYTES], ttl_ms))


async def read(client: redis.asyncio.Redis, key: str, size_bytes: int) -> AsyncIterator[bytes]:
    """Yield a file in pieces; raise UnavailableError if it is no longer there, or Redis is unavailable."""
    for offset in range(0, size_bytes, PIECE_BYTES):
        end = min(offset + PIECE_BYTES, size_bytes)
        (data,) = await redis_scripts.run_async(client, ("GETRANGE", key, offset, end - 1))
        if len(data) != end - offset:
            raise UnavailableError("The file is no longer in Redis; ask for it again.")
        yield data


class StagedFile:
    """A file that is being written; `size_bytes` of it have arrived. It lives for `ttl_ms` after each piece.

    `client_of` returns the client of the server of a key.
    """

    def __init__(self, client_of: Callable[[str], redis.asyncio.Redis], ttl_ms: int) -> None:
        self.key = redis_keys.staged_file(uuid.uuid4().hex)
        self.size_bytes = 0
        self.client = client_of(self.key)
        self._ttl_ms = ttl_ms
        self._digest = hashlib.sha256()
        self._piece = bytearray()
        self._written = 0

    async def write(self, part: bytes) -> None:
        """Add bytes to the end; raise UnavailableError if Redis is unavailable."""
        self._piece += part
        self.size_bytes += len(part)
        while len(self._piece) >= PIECE_BYTES:
            await self._send(bytes(self._piece[:PIECE_BYTES]))
            del self._piece[:PIECE_BYTES]

    async def finish(self) -> str:
        """Write what is left, and return the SHA-256 (hex) of the file; UnavailableError as of :meth:`write`."""
        if self._piece:
            await self._send(bytes(self._piece))
            self._piece.clear()
        return self._digest.hexdigest()

    async def _send(self, data: bytes) -> None:
        await asyncio.to_thread(self._digest.update, data)
        await redis_scripts.run_async(self.client, *piece(self.key, self._written, data, self._ttl_ms))
        self._written += len(data)

    async def delete(self) -> None:
        """Delete the file; if Redis is unavailable, it expires."""
        with suppress(UnavailableError):
            await redis_scripts.run_async(self.client, ("UNLINK", self.key))
