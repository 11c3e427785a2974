"""Connect to MongoDB: open the database, limit the time of calls, translate errors.

The only module that imports motor, whose successor is PyMongo's own AsyncMongoClient. Never knows the content of a
document. Invariant: no error of the driver leaves :mod:`keepfit.history`; an outage is an UnavailableError that says
what was tried.
"""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo.errors import AutoReconnect, ConfigurationError, DuplicateKeyError, PyMongoError

from keepfit.errors import SettingsError, UnavailableError

SERVER_SELECTION_MS = 3000
# Limit of one call with all its retries. Without it, a server that hangs blocks its caller for half a minute.
CALL_TIMEOUT_MS = 4000
# An index over a long history takes long to build, and a build that is interrupted starts again.
INDEX_TIMEOUT_S = 30

T = TypeVar("T")
Document = dict[str, Any]
Client = AsyncIOMotorClient[Document]
Database = AsyncIOMotorDatabase[Document]
Collection = AsyncIOMotorCollection[Document]


def open_database(url: str) -> tuple[Client, Database]:
    """Return the client and the database that `url` names, ``keepfit`` by default; the first call connects.

    Raises
    ------
    SettingsError
        If `url` cannot be used; the message does not show it.
    """
    try:
        client: Client = AsyncIOMotorClient(
            url,
            serverSelectionTimeoutMS=SERVER_SELECTION_MS,
            connectTimeoutMS=SERVER_SELECTION_MS,
            timeoutMS=CALL_TIMEOUT_MS,
            tz_aware=True,
        )
        return client, client.get_default_database("keepfit")
    except (ConfigurationError, ValueError, OSError) as error:
        raise SettingsError(f"KEEPFIT_MONGO_URL cannot be used: {error}") from None


@contextmanager
def unavailable() -> Iterator[None]:
    """Raise UnavailableError for errors of the driver, except for DuplicateKeyError."""
    try:
        yield
    except DuplicateKeyError:
        raise
    except (AutoReconnect, PyMongoError) as error:
        # The driver appends its time limits and its view of the cluster; the first part names the cause.
        reason = str(error).partition(" (configured timeouts")[0]
        raise UnavailableError(f"MongoDB is unavailable or cannot write: {reason[:200]}") from error


async def gather_all(*calls: Awaitable[T]) -> list[T]:
    """Wait until all calls have finished, then return their results or raise the first error.

    asyncio.gather would raise at the first error and leave the other calls running, with their errors unseen.
    """
    finished = await asyncio.gather(*calls, return_exceptions=True)
    results = []
    for result in finished:
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results
