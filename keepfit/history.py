"""The register of models and the history of their snapshots, in MongoDB.

Owns two collections: ``models`` (one document per model: metadata, recipe, generation) and ``history`` (one
funtime-style document per snapshot: ``type``, ``timestamp``, …). The only module that knows motor. Never holds learned
state. Invariants: (hash, generation, version) is unique in the history; a generation is given out once; what users
send as a filter is compared as a value, never interpreted.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import pymongo
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ASCENDING, DESCENDING, ReturnDocument, WriteConcern
from pymongo.errors import AutoReconnect, ConfigurationError, DuplicateKeyError, PyMongoError

from keepfit.errors import SettingsError, UnavailableError
from keepfit.identity import INTEGER_MAX

SERVER_SELECTION_MS = 3000
# One call altogether, with what the driver repeats; a server that hangs would hold up its caller for half a minute.
CALL_TIMEOUT_MS = 4000
# An index over a long history takes its time, and a build that is cut off begins anew.
INDEX_TIMEOUT_S = 30
PENDING, COMMITTED, CORRUPT = "pending", "committed", "corrupt"

# What of a history document the model itself remembers, for `GET /v1/models/{hash}`.
NOTED = ("timestamp", "version", "rows_seen", "uri", "sha256", "size_bytes")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Registered:
    """A model's entry in the register. `born` is the generation since which its snapshots count."""

    hash: str
    metadata_text: str
    recipe_text: str
    generation: int
    born: int

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata as an object."""
        parsed: dict[str, Any] = json.loads(self.metadata_text)
        return parsed


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


class History:
    """Async access to register and history; make one inside the event loop that uses it."""

    def __init__(self, url: str) -> None:
        try:
            self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
                url,
                serverSelectionTimeoutMS=SERVER_SELECTION_MS,
                connectTimeoutMS=SERVER_SELECTION_MS,
                timeoutMS=CALL_TIMEOUT_MS,
                tz_aware=True,
            )
            database = self._client.get_default_database("keepfit")
        except (ConfigurationError, ValueError, OSError) as error:
            raise SettingsError(f"KEEPFIT_MONGO_URL cannot be used: {error}") from None
        # Written to disk before it is believed: a committed document is a promise that a restore relies on.
        journaled: WriteConcern = WriteConcern(w="majority", j=True)
        self._models = database.get_collection("models", write_concern=journaled)
        self._history = database.get_collection("history", write_concern=journaled)
        self._indexing = asyncio.Lock()
        self._indexed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    async def ping(self) -> None:
        """Raise UnavailableError unless MongoDB answers."""
        with unavailable():
            await self._client.admin.command("ping")

    async def ensure_indexes(self) -> None:
        """Make the indexes that every query here uses, once."""
        async with self._indexing:
            if self._indexed:
                return
            # Of one that is away this tells sooner: within its time limit the driver tries again and again.
            await self.ping()
            with unavailable(), pymongo.timeout(INDEX_TIMEOUT_S):
                await self._models.create_index([("labels.k", ASCENDING), ("labels.v", ASCENDING), ("_id", ASCENDING)])
                await self._history.create_index(
                    [("hash", ASCENDING), ("generation", DESCENDING), ("version", DESCENDING)], unique=True
                )
                await self._history.create_index([("type", ASCENDING), ("timestamp", DESCENDING)])
                await self._history.create_index([("timestamp", DESCENDING)])
            self._indexed = True

    async def register(self, model_hash: str, metadata_text: str, recipe_text: str) -> tuple[Registered, bool]:
        """Enter a model; return its entry (the one there was, if it exists) and whether it was made by this call."""
        fresh = {
            "metadata": metadata_text,
            "labels": _labels(json.loads(metadata_text)),
            "recipe": recipe_text,
            "deleted": False,
        }
        # Never both at once: SecantusDB 0.7 stands still where an index is made while a document is written.
        await self.ensure_indexes()
        with unavailable():
            while True:
                document = await self._models.find_one({"_id": model_hash})
                if document is None:
                    try:
                        await self._models.insert_one({"_id": model_hash, **fresh, "generation": 1, "born": 1})
                    except DuplicateKeyError:
                        continue
                    return Registered(model_hash, metadata_text, recipe_text, 1, 1), True
                if not document["deleted"]:
                    return _registered(document), False
                born = document["generation"] + 1
                again = await self._models.find_one_and_update(
                    {"_id": model_hash, "deleted": True, "generation": document["generation"]},
                    {"$set": {**fresh, "generation": born, "born": born}},
                    return_document=ReturnDocument.AFTER,
                )
                if again is not None:
                    return _registered(again), True

    async def registered(self, model_hash: str) -> Registered | None:
        """Find a model's entry; None where it was never made or is deleted."""
        with unavailable():
            document = await self._models.find_one({"_id": model_hash, "deleted": False})
        return None if document is None else _registered(document)

    async def unregister(self, model_hash: str) -> bool:
        """Mark a model as deleted; its snapshots stay. Tell whether it was there."""
        with unavailable():
            result = await self._models.update_one({"_id": model_hash, "deleted": False}, {"$set": {"deleted": True}})
        return bool(result.matched_count)

    async def next_generation(self, model_hash: str, born: int) -> int | None:
        """Give out the next generation of the model that was `born` so; None where it is deleted or made again."""
        with unavailable():
            document = await self._models.find_one_and_update(
                {"_id": model_hash, "deleted": False, "born": born},
                {"$inc": {"generation": 1}},
                return_document=ReturnDocument.AFTER,
            )
        return None if document is None else int(document["generation"])

    async def models(self, filters: Mapping[str, str], limit: int, after: str = "") -> list[Registered]:
        """List models by hash, those after `after`, whose metadata holds every key with the value that the text means.

        ``{"year": "2001"}`` finds the number 2001 as well as the string; only top-level scalars are looked at.
        """
        query: Document = {"_id": {"$gt": after}, "deleted": False}
        if filters:
            query["$and"] = [
                {"labels": {"$elemMatch": {"k": key, "v": {"$in": _meanings(text)}}}} for key, text in filters.items()
            ]
        with unavailable():
            found = await self._models.find(query).sort("_id", ASCENDING).limit(limit).to_list(limit)
        return [_registered(document) for document in found]

    async def begin(self, document: Document) -> Document | None:
        """Write a snapshot's intent, taking over one that was left; None, or what is committed under its key already.

        The key is (hash, generation, version).
        """
        key = {name: document[name] for name in ("hash", "generation", "version")}
        stored = {
            **document,
            "metadata": json.dumps(document["metadata"]),
            "labels": _labels(document["metadata"]),
            "status": PENDING,
        }
        with unavailable():
            while True:
                try:
                    await self._history.update_one({**key, "status": {"$ne": COMMITTED}}, {"$set": stored}, upsert=True)
                except DuplicateKeyError:
                    # Committed; or begun by another in this very moment, and then it is to be taken over after all.
                    committed = await self._history.find_one({**key, "status": COMMITTED})
                    if committed is not None:
                        return _public(committed)
                else:
                    return None

    async def commit(self, document: Document) -> bool:
        """Turn the intent into a committed document; False where somebody else took the intent over."""
        with unavailable():
            result = await self._history.update_one(
                {**_same(document), "status": PENDING}, {"$set": {"status": COMMITTED}}
            )
        return bool(result.matched_count)

    async def mark_corrupt(self, document: Document) -> None:
        """Note that a committed snapshot's blob is missing or damaged."""
        with unavailable():
            await self._history.update_one(_same(document), {"$set": {"status": CORRUPT}})

    async def snapshots(
        self, model_hash: str, born: int = 0, at: float | None = None, limit: int = 0
    ) -> AsyncGenerator[Document]:
        """Yield a model's committed snapshots, newest (generation, version) first, none later than `at` (seconds).

        At most `limit` of them; 0 means all.
        """
        query: Document = {"hash": model_hash, "generation": {"$gte": born}, "status": COMMITTED}
        if at is not None:
            query["timestamp"] = {"$lte": at}
        newest_first = [("generation", DESCENDING), ("version", DESCENDING)]
        with unavailable():
            async for document in self._history.find(query).sort(newest_first).limit(limit):
                yield _public(document)

    async def newest(self, model_hash: str, born: int, at: float | None = None) -> Document | None:
        """Find a model's newest committed snapshot, not later than `at` (seconds)."""
        async with aclosing(self.snapshots(model_hash, born, at, limit=1)) as documents:
            return await anext(documents, None)

    async def documents(
        self, type_: str | None = None, model_hash: str | None = None, limit: int = 100
    ) -> list[Document]:
        """List committed history documents, newest first."""
        query: Document = {"status": COMMITTED}
        if type_ is not None:
            query["type"] = type_
        if model_hash is not None:
            query["hash"] = model_hash
        with unavailable():
            found = await self._history.find(query).sort("timestamp", DESCENDING).limit(limit).to_list(limit)
        return [_public(document) for document in found]


def _labels(metadata: Mapping[str, Any]) -> list[Document]:
    """Top-level scalars as key-value pairs: searched by value, so that no key of a user's is ever an operator."""
    return [
        {"k": key, "v": float(value) if isinstance(value, int) and not isinstance(value, bool) else value}
        for key, value in metadata.items()
        if isinstance(value, str | int | float | bool)
    ]


def _meanings(text: str) -> list[str | float | bool]:
    """What a value in a query string may stand for in metadata.

    >>> _meanings("nike"), _meanings("2001"), _meanings("true")
    (['nike'], ['2001', 2001.0], ['true', True])
    """
    meanings: list[str | float | bool] = [text]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return meanings
    if isinstance(value, bool):
        meanings.append(value)
    elif isinstance(value, int | float) and abs(value) <= INTEGER_MAX:
        meanings.append(float(value))
    return meanings


def _registered(document: Document) -> Registered:
    return Registered(
        document["_id"], document["metadata"], document["recipe"], document["generation"], document["born"]
    )


def _same(document: Document) -> Document:
    # The timestamp tells whose intent it is where two snapshotters save the same version.
    return {name: document[name] for name in ("hash", "generation", "version", "sha256", "timestamp")}


def _public(document: Document) -> Document:
    """Return the document as users see it: metadata an object again, bookkeeping left out."""
    shown = {key: value for key, value in document.items() if key not in ("_id", "labels", "status")}
    shown["metadata"] = json.loads(document["metadata"])
    return shown
