"""Connect to MongoDB: open the database, limit the time of calls, translate errors.

The only module that imports motor, whose successor is PyMongo's own AsyncMongoClient. Never knows the content of a
document. Invariant: no error of the driver leaves :mod:`keepfit.history`; an outage is an UnavailableError that says
what was tried.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pymongo
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo.errors import AutoReconnect, ConfigurationError, DuplicateKeyError, PyMongoError
from pymongo.uri_parser import parse_uri

from keepfit.errors import SettingsError, UnavailableError

SERVER_SELECTION_MS = 3000
# Limit of one call with all its retries. Without it, a server that hangs blocks its caller for half a minute.
CALL_TIMEOUT_MS = 4000
# An index over a long history takes long to build, and a build that is interrupted starts again.
INDEX_TIMEOUT_S = 30
# Limit of a call that maintains the history: the documents of a moment, which no window divides, may be many.
UPKEEP_TIMEOUT_S = 600.0
# The code of the error of a second document with the same value in a unique index.
DUPLICATE_KEY = 11000

FORM = "mongodb://user:password@host:27017/keepfit, with special characters of both percent-encoded"

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
    check_url(url)
    try:
        client: Client = AsyncIOMotorClient(
            url,
            serverSelectionTimeoutMS=SERVER_SELECTION_MS,
            connectTimeoutMS=SERVER_SELECTION_MS,
            timeoutMS=CALL_TIMEOUT_MS,
            tz_aware=True,
        )
        return client, client.get_default_database("keepfit")
    except (ConfigurationError, ValueError, OSError):
        raise SettingsError(f"KEEPFIT_MONGO_URL cannot be used; write {FORM}.") from None


def check_url(url: str) -> None:
    """Check the address of a MongoDB without connecting.

    Raises
    ------
    SettingsError
        If it, or one of its options, cannot be used. The message quotes nothing that may be a password.
    """
    # A name of an SRV record would be looked up.
    plain = url.replace("mongodb+srv://", "mongodb://", 1)
    try:
        parsed = parse_uri(plain, warn=False)
        reason = "the database's name has a dot" if parsed["collection"] else ""
    except (PyMongoError, ValueError) as error:
        # A password with an unescaped character is taken for another part of the address, and would be quoted.
        reason = "the address cannot be read" if {"@", '"'} & set(str(error)) else str(error).rstrip(".")
    except OSError as error:
        reason = f"a file that it names cannot be read: {error.strerror}"
    if reason:
        raise SettingsError(f"KEEPFIT_MONGO_URL cannot be used: {reason}; write {FORM}.")


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
        failure = "MongoDB is unavailable or cannot write"
        raise UnavailableError(f"{failure}: {reason[:200]}", f"{failure}.") from error


@asynccontextmanager
async def long_call(database: Database, timeout_s: float = INDEX_TIMEOUT_S) -> AsyncIterator[None]:
    """Allow calls in the block more time, but fail as early as others if MongoDB is unavailable."""
    with unavailable():
        # Ping first: within the longer time limit the driver would retry.
        await database.command("ping")
        with pymongo.timeout(timeout_s):
            yield


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
