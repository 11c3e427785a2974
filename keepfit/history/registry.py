"""The register of models and the history of their snapshots, in MongoDB.

Owns two collections: ``models`` (one document per model: metadata, recipe, generation) and ``history`` (one
funtime-style document per snapshot: ``type``, ``timestamp``, …). Never holds learned state. Invariants: (hash,
generation, version) is unique in the history; a generation is given out once; what users send as a filter is compared
as a value, never interpreted.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import pymongo
from pymongo import ASCENDING, DESCENDING, ReturnDocument, UpdateOne, WriteConcern
from pymongo.errors import BulkWriteError, DuplicateKeyError

from keepfit.history.lineage import Link, Links
from keepfit.history.metadata_labels import labels_of, meanings_of
from keepfit.history.mongo import INDEX_TIMEOUT_S, Collection, Document, open_database, unavailable
from keepfit.history.states import COMMITTED, CORRUPT, PENDING, public
from keepfit.history.timeline import Timeline

DUPLICATE_KEY = 11000
# For a group of documents, each of which a slow disk may sync by itself.
MANY_TIMEOUT_S = 20

# Generations of a model of which it is known how they began: further back than anybody's snapshots go.
LINKS_MAX = 200

# What of a history document the model itself remembers, for `GET /v1/models/{hash}`.
SUMMARY_FIELDS = ("timestamp", "version", "rows_seen", "uri", "sha256", "size_bytes")


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """A model's entry in the register. `born` is the generation since which its snapshots count.

    `links` tells how generations began that a restore made (:mod:`keepfit.history.lineage`).
    """

    hash: str
    metadata_text: str
    recipe_text: str
    generation: int
    born: int
    links: Links = field(default_factory=dict, compare=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata as an object."""
        parsed: dict[str, Any] = json.loads(self.metadata_text)
        return parsed


class Registry:
    """Async access to register and history; make one inside the event loop that uses it."""

    def __init__(self, url: str) -> None:
        self._client, database = open_database(url)
        # Written to disk before it is believed: a committed document is a promise that a restore relies on.
        journaled: WriteConcern = WriteConcern(w="majority", j=True)
        self._models = database.get_collection("models", write_concern=journaled)
        self._history = database.get_collection("history", write_concern=journaled)
        self._about = database.get_collection("about", write_concern=journaled)
        self.timeline = Timeline(database)
        self._indexing = asyncio.Lock()
        self._indexed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def collection(self, name: str) -> Collection:
        """Return `models` or `history`, for what looks after them; every write waits for the journal."""
        return {"models": self._models, "history": self._history}[name]

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
            await self.timeline.ensure_indexes()
            self._indexed = True

    async def register(self, model_hash: str, metadata_text: str, recipe_text: str) -> tuple[RegistryEntry, bool]:
        """Enter a model; return its entry (the one there was, if it exists) and whether it was made by this call."""
        fresh = {
            "metadata": metadata_text,
            "labels": labels_of(json.loads(metadata_text)),
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
                    return RegistryEntry(model_hash, metadata_text, recipe_text, 1, 1), True
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

    async def find(self, model_hash: str) -> RegistryEntry | None:
        """Find a model's entry; None where it was never made or is deleted."""
        with unavailable():
            document = await self._models.find_one({"_id": model_hash, "deleted": False})
        return None if document is None else _registered(document)

    async def unregister(self, model_hash: str) -> bool:
        """Mark a model as deleted; its snapshots stay. Tell whether it was there."""
        with unavailable():
            result = await self._models.update_one(
                {"_id": model_hash, "deleted": False}, {"$set": {"deleted": True, "deleted_s": time.time()}}
            )
        return bool(result.matched_count)

    async def next_generation(self, model_hash: str, born: int, count: int = 1) -> int | None:
        """Give out the next `count` generations of the model that was `born` so; return the last of them.

        None where it is deleted or made again.
        """
        with unavailable():
            document = await self._models.find_one_and_update(
                {"_id": model_hash, "deleted": False, "born": born},
                {"$inc": {"generation": count}},
                return_document=ReturnDocument.AFTER,
            )
        return None if document is None else int(document["generation"])

    async def set_link(self, model_hash: str, generation: int, link: Link) -> None:
        """Note how a generation begins, before it goes live."""
        with unavailable():
            await self._models.update_one({"_id": model_hash}, {"$set": _link(generation, link)})

    async def advance_generations(self, models: Sequence[RegistryEntry], links: Sequence[Link | None] = ()) -> bool:
        """Give each of these models its next generation; tell whether all were still as they were looked up.

        `links` tells of each how that begins, None where nobody needs to know. Where one was not, numbers may be used
        up that nobody was given, which does no harm.
        """
        with unavailable():
            result = await self._models.bulk_write(
                [
                    UpdateOne(
                        {"_id": one.hash, "deleted": False, "born": one.born, "generation": one.generation},
                        _next(one, link),
                    )
                    for one, link in zip(models, links or [None] * len(models), strict=True)
                ],
                ordered=False,
            )
        return bool(result.matched_count == len(models))

    async def models(self, filters: Mapping[str, str], limit: int, after: str = "") -> list[RegistryEntry]:
        """List models by hash, those after `after`, whose metadata holds every key with the value that the text means.

        ``{"year": "2001"}`` finds the number 2001 as well as the string; only top-level scalars are looked at.
        """
        query: Document = {"_id": {"$gt": after}, "deleted": False}
        if filters:
            query["$and"] = [
                {"labels": {"$elemMatch": {"k": key, "v": {"$in": meanings_of(text)}}}} for key, text in filters.items()
            ]
        with unavailable():
            found = await self._models.find(query).sort("_id", ASCENDING).limit(limit).to_list(limit)
        return [_registered(document) for document in found]

    async def write_intent(self, document: Document) -> Document | None:
        """Write a snapshot's intent, taking over one that was left; None, or what is committed under its key already.

        The key is (hash, generation, version).
        """
        where, change = _intent(document)
        with unavailable():
            while True:
                try:
                    await self._history.update_one(where, change, upsert=True)
                except DuplicateKeyError:
                    # Committed; or begun by another in this very moment, and then it is to be taken over after all.
                    committed = await self._history.find_one({**where, "status": COMMITTED})
                    if committed is not None:
                        return public(committed)
                else:
                    return None

    async def write_intents(self, documents: Sequence[Document]) -> list[Document | None]:
        """Do what :meth:`write_intent` does for each of many, in one trip for all that are new."""
        refused: set[int] = set()
        # New documents go in with a plain insert: SecantusDB 0.7 takes five times as long for an update that makes one.
        new = [_intent(document)[1]["$set"] for document in documents]
        with unavailable(), pymongo.timeout(MANY_TIMEOUT_S):
            try:
                await self._history.insert_many(new, ordered=False)
            except BulkWriteError as error:
                failures = error.details["writeErrors"]
                if error.details.get("writeConcernErrors") or {one["code"] for one in failures} != {DUPLICATE_KEY}:
                    raise
                refused = {one["index"] for one in failures}
        return [
            await self.write_intent(document) if number in refused else None
            for number, document in enumerate(documents)
        ]

    async def commit(self, document: Document) -> bool:
        """Turn the intent into a committed document; False where it is another's by now, or was aborted."""
        with unavailable():
            result = await self._history.update_one(
                {**_same(document), "status": PENDING}, {"$set": {"status": COMMITTED}}
            )
        return bool(result.matched_count)

    async def commit_many(self, documents: Sequence[Document]) -> list[bool]:
        """Do what :meth:`commit` does for each of many that name their attempt, in one trip."""
        # No two attempts have the same name. The hash is there for the index.
        where = {name: {"$in": [document[name] for document in documents]} for name in ("hash", "attempt")}
        with unavailable(), pymongo.timeout(MANY_TIMEOUT_S):
            changed = await self._history.update_many({**where, "status": PENDING}, {"$set": {"status": COMMITTED}})
            if changed.matched_count == len(documents):
                return [True] * len(documents)
            return [
                await self._history.find_one({**_same(document), "status": COMMITTED}, {"_id": 1}) is not None
                for document in documents
            ]

    async def mark_corrupt(self, document: Document) -> bool:
        """Note that a committed snapshot's blob is missing or damaged; False where it was deleted or saved anew."""
        with unavailable():
            result = await self._history.update_one(
                {**_same(document), "status": {"$in": [COMMITTED, CORRUPT]}}, {"$set": {"status": CORRUPT}}
            )
        return bool(result.matched_count)

    async def identity(self) -> str:
        """Return the name that this history gave itself when it was first asked."""
        with unavailable():
            while True:
                found = await self._about.find_one({"_id": "history"})
                if found is not None:
                    return str(found["name"])
                with suppress(DuplicateKeyError):
                    await self._about.insert_one({"_id": "history", "name": uuid.uuid4().hex})

    async def snapshots(
        self,
        model_hash: str,
        born: int = 0,
        at: float | None = None,
        limit: int = 0,
        version: int | None = None,
        before: tuple[int, int] | None = None,
    ) -> AsyncGenerator[Document]:
        """Yield a model's committed snapshots, newest (generation, version) first, none later than `at` (seconds).

        At most `limit` of them, 0 means all; only those of `version`, or older than the place `before`, where named.
        """
        query: Document = {"hash": model_hash, "generation": {"$gte": born}, "status": COMMITTED}
        if at is not None:
            query["timestamp"] = {"$lte": at}
        if version is not None:
            query["version"] = version
        if before is not None:
            older = {"generation": before[0], "version": {"$lt": before[1]}}
            query["$or"] = [{"generation": {"$lt": before[0]}}, older]
        newest_first = [("generation", DESCENDING), ("version", DESCENDING)]
        with unavailable():
            async for document in self._history.find(query).sort(newest_first).limit(limit):
                yield public(document)

    async def newest(
        self, model_hash: str, born: int, at: float | None = None, version: int | None = None
    ) -> Document | None:
        """Find a model's newest committed snapshot, not later than `at` (seconds), of a `version` if one is named."""
        async with aclosing(self.snapshots(model_hash, born, at, limit=1, version=version)) as documents:
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
        return [public(document) for document in found]


def _registered(document: Document) -> RegistryEntry:
    links = {int(generation): Link(*fields) for generation, fields in document.get("links", {}).items()}
    return RegistryEntry(
        document["_id"], document["metadata"], document["recipe"], document["generation"], document["born"], links
    )


def _link(generation: int, link: Link) -> Document:
    return {f"links.{generation}": [link.origin, link.after, link.base, link.until]}


def _next(one: RegistryEntry, link: Link | None) -> Document:
    """Change that gives a model its next generation; of those before it only so many are told of."""
    change: Document = {"$set": {"generation": one.generation + 1}}
    if link is not None:
        change["$set"] |= _link(one.generation + 1, link)
        if len(one.links) >= LINKS_MAX:
            change["$unset"] = {f"links.{min(one.links)}": ""}
    return change


_KEY = ("hash", "generation", "version")


def _intent(document: Document) -> tuple[Document, Document]:
    """Which document an intent may take the place of, and the change that writes it."""
    stored = {
        **document,
        "metadata": json.dumps(document["metadata"]),
        "labels": labels_of(document["metadata"]),
        "begun": time.time(),
        "status": PENDING,
    }
    return {**{name: document[name] for name in _KEY}, "status": {"$ne": COMMITTED}}, {"$set": stored}


def _same(document: Document) -> Document:
    # Timestamp and attempt tell whose intent it is where two snapshotters save the same version.
    return {name: document[name] for name in (*_KEY, "sha256", "timestamp", "attempt") if name in document}
