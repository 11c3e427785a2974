"""Files with trained objects on their way through this gateway.

Owns how many pass at a time, and their time limits. Never reads what is in a file, and holds one piece of it at a time.
Invariant: a file is deleted from Redis when its request ends, or expires. Files pass through the queue's Redis: from
clients to workers, and from workers to clients.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import redis.asyncio
from aiohttp import web

from keepfit.errors import InvalidError, UnavailableError
from keepfit.jobs.messages import WorkerReply
from keepfit.settings import Settings
from keepfit.store import staged_file
from keepfit.store.staged_file import StagedFile
from keepfit_gateway.web import bodies
from keepfit_gateway.web.large_requests import Lane

# Loading half a gigabyte, saving it as a snapshot and writing it to Redis takes a minute on a slow disk.
WORKER_TIMEOUT_S = 300.0
FILES_MAX = 1
# Time for a client to read a file.
READ_S = 600.0
# "" is a body without a media type. ZIP is what a file of skops is.
MEDIA_TYPES = ("application/octet-stream", "application/zip", "")


class FileTransfer:
    """The transfers of one gateway. One file passes in each direction at a time; others wait for it.

    `client_of` returns the client of the server of the queue that serves a key: a file passes through one of them.
    """

    def __init__(self, client_of: Callable[[str], redis.asyncio.Redis], settings: Settings) -> None:
        self._client_of = client_of
        self._settings = settings
        self._incoming, self._outgoing = Lane(FILES_MAX), Lane(FILES_MAX)

    @asynccontextmanager
    async def receive(self, request: web.Request) -> AsyncIterator[tuple[StagedFile, str]]:
        """Store the body of a request in Redis; yield the file, which is deleted at the end, and its SHA-256 (hex).

        Raises
        ------
        DeadlineError
            If other files kept this one waiting for too long.
        MalformedError, web.HTTPException
            As of :func:`keepfit_gateway.web.bodies.copy`.
        InvalidError
            If the body is empty.
        UnavailableError
            If Redis is unavailable.
        """
        bodies.check_file(request, self._settings, MEDIA_TYPES)
        async with self._incoming.turn(1, WORKER_TIMEOUT_S):
            ttl_s = WORKER_TIMEOUT_S + self._settings.body_timeout_s
            file = StagedFile(self._client_of, round(ttl_s * 1000))
            try:
                await bodies.copy(request, self._settings, file.write)
                if not file.size_bytes:
                    raise InvalidError("The body is empty; send the bytes of a file.")
                yield file, await file.finish()
            finally:
                await file.delete()

    async def send(
        self, write: Callable[[str, int], Awaitable[WorkerReply]]
    ) -> tuple[WorkerReply, AsyncIterator[bytes]]:
        """Have a worker write a file; return its reply, and the bytes as they are read from Redis.

        `write` asks the worker: with the key of the file, and its time to live in milliseconds.

        Raises
        ------
        DeadlineError
            If other files kept this one waiting for too long.
        KeepfitError
            The error of the worker.
        """
        await self._outgoing.begin(1, WORKER_TIMEOUT_S)
        file = StagedFile(self._client_of, round(READ_S * 1000))
        try:
            reply = await write(file.key, round(READ_S * 1000))
        except BaseException:
            self._outgoing.end(1)
            await file.delete()
            raise
        # Also if the client does not read the answer; then the file has expired.
        turn = asyncio.get_running_loop().call_later(READ_S, self._outgoing.end, 1)
        return reply, self._read(file, int(reply.result["size_bytes"]), turn)

    async def _read(self, file: StagedFile, size_bytes: int, turn: asyncio.TimerHandle) -> AsyncIterator[bytes]:
        try:
            async for piece in staged_file.read(file.client, file.key, size_bytes):
                yield piece
        except UnavailableError as error:
            # The answer has begun: it ends without the bytes that its length announces.
            raise ConnectionResetError(str(error)) from None
        finally:
            if not turn.cancelled() and turn.when() > asyncio.get_running_loop().time():
                turn.cancel()
                self._outgoing.end(1)
            await file.delete()
