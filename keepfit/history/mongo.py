"""The connection to MongoDB: how it is opened, how long a call may take, what its errors mean.

The only module that knows motor, whose successor is PyMongo's own AsyncMongoClient. Never knows a document. Invariant:
an error of the driver reaches nobody; what is away is an UnavailableError that says what was tried.
"""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo.errors import AutoReconnect, ConfigurationError, DuplicateKeyError, PyMongoError

from keepfit.errors import SettingsError, UnavailableError

SERVER_SELECTION_MS = 3000
# One call altogether, with what the driver repeats; a server that hangs would hold up its caller for half a minute.
CALL_TIMEOUT_MS = 4000
# An index over a long history takes its time, and a build that is cut off begins anew.
INDEX_TIMEOUT_S = 30

T = TypeVar("T")
Document = dict[str, Any]
Client = AsyncIOMotorClient[Document]
Database = AsyncIOMotorDatabase[Document]
Collection = AsyncIOMotorCollection[Document]


def open_database(url: str) -> tuple[Client, Database]:
    """Open the database that `url` names, ``keepfit`` where it names none; connects with the first call.

    Raises
    ------
    SettingsError
        If `url` cannot be used; never shows it.
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
    """Turn errors of a MongoDB that is away into UnavailableError."""
    try:
        yield
    except DuplicateKeyError:
        raise
    except (AutoReconnect, PyMongoError) as error:
        # The driver goes on with its time limits and its picture of the cluster; the first part says what is wrong.
        reason = str(error).partition(" (configured timeouts")[0]
        raise UnavailableError(f"MongoDB is away or cannot write: {reason[:200]}") from error


async def together(*asked: Awaitable[T]) -> list[T]:
    """Wait for all; raise the first error when all have come to an end: one that is left behind is told by nobody."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    answers = []
    for one in found:
        if isinstance(one, BaseException):
            raise one
        answers.append(one)
    return answers
