"""Files with trained objects on their way through this gateway.

Owns how many pass at a time, and their time limits. Never reads what is in a file, and holds one piece of it at a time.
Invariant: a file is deleted from Redis when its request ends, however it ends. Files come from clients and go to
workers, through the queue's Redis.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
from aiohttp import web

from keepfit.errors import InvalidError
from keepfit.settings import Settings
from keepfit.store.staged_file import StagedFile
from keepfit_gateway.web import bodies
from keepfit_gateway.web.large_requests import Lane

# Loading half a gigabyte, saving it as a snapshot and writing it to Redis takes a minute on a slow disk.
WORKER_TIMEOUT_S = 300.0
FILES_MAX = 1
# "" is a body without a media type. ZIP is what a file of skops is.
MEDIA_TYPES = ("application/octet-stream", "application/zip", "")


class FileTransfer:
    """The transfers of one gateway. One file passes at a time; others wait for it."""

    def __init__(self, queue: redis.asyncio.Redis, settings: Settings) -> None:
        self._queue = queue
        self._settings = settings
        self._lane = Lane(FILES_MAX)

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
        async with self._lane.turn(1, WORKER_TIMEOUT_S):
            ttl_s = WORKER_TIMEOUT_S + self._settings.body_timeout_s
            file = StagedFile(self._queue, round(ttl_s * 1000))
            try:
                await bodies.copy(request, self._settings, file.write)
                if not file.size_bytes:
                    raise InvalidError("The body is empty; send the bytes of a file.")
                yield file, await file.finish()
            finally:
                await file.delete()
