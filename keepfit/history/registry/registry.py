"""The registry of models and the history of their snapshots, in MongoDB.

Owns two collections: ``models`` (one document per model: metadata, recipe, generation) and ``history`` (one
funtime-style document per snapshot: ``type``, ``timestamp``, …). Never stores learned state. Invariants: (hash,
generation, version) is unique in the history; each generation is allocated once; values of a user's filter are
compared, never interpreted.
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

from keepfit.conditions import Conditions, possible_values
from keepfit.history.metadata_labels import label_condition, label_conditions, to_labels
from keepfit.history.mongo import INDEX_TIMEOUT_S, Collection, Document, open_database, unavailable
from keepfit.history.registry.lineage import Link, Links
from keepfit.history.states import COMMITTED, CORRUPT, PENDING, to_public
from keepfit.history.timeline import Timeline

DUPLICATE_KEY = 11000
# Limit of a call that writes many documents, each of which a slow disk may sync separately.
BULK_TIMEOUT_S = 20

# Links kept per model: more generations than any retention keeps snapshots of.
LINKS_MAX = 200

# Fields of a history document that are copied to the model, for `GET /v1/models/{hash}`.
SUMMARY_FIELDS = ("timestamp", "version", "rows_seen", "uri", "sha256", "size_bytes")


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """A model's entry in the registry. Snapshots of generations before `born` belong to a deleted predecessor.

    `links` says how generations that a restore made began (:mod:`keepfit.history.registry.lineage`).
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
    """Async access to registry and history; create it inside the event loop that uses it."""

    def __init__(self, url: str) -> None:
        self._client, database = open_database(url)
        # Wait for the journal: a restore relies on a committed document.
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
        """Return the collection `models` or `history`, for maintenance; every write waits for the journal."""
        return {"models": self._models, "history": self._history}[name]

    async def ping(self) -> None:
        """Raise UnavailableError unless MongoDB answers."""
        with unavailable():
            await self._client.admin.command("ping")

    async def ensure_indexes(self) -> None:
        """Create the indexes that the queries use; after the first success do nothing."""
        async with self._indexing:
            if self._indexed:
                return
            # Fail early if MongoDB is unavailable: within the longer time limit the driver retries.
            await self.ping()
            with unavailable(), pymongo.timeout(INDEX_TIMEOUT_S):
                await self._models.create_index([("labels.k", ASCENDING), ("labels.v", ASCENDING), ("_id", ASCENDING)])
                await self._history.create_index(
                    [("hash", ASCENDING), ("generation", DESCENDING), ("version", DESCENDING)], unique=True
                )
            await self.timeline.ensure_indexes()
            self._indexed = True

    async def register(self, model_hash: str, metadata_text: str, recipe_text: str) -> tuple[RegistryEntry, bool]:
        """Register a model; return its entry (the existing one, if any) and whether this call created it."""
        fresh = {
            "metadata": metadata_text,
            "labels": to_labels(json.loads(metadata_text)),
            "recipe": recipe_text,
            "deleted": False,
        }
        # Create the indexes first: SecantusDB 0.7 hangs if a document is written while an index is built.
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
                    return _to_entry(document), False
                born = document["generation"] + 1
                again = await self._models.find_one_and_update(
                    {"_id": model_hash, "deleted": True, "generation": document["generation"]},
                    {"$set": {**fresh, "generation": born, "born": born}},
                    return_document=ReturnDocument.AFTER,
                )
                if again is not None:
                    return _to_entry(again), True

    async def find(self, model_hash: str) -> RegistryEntry | None:
        """Return a model's entry; None if it was never registered or is deleted."""
        with unavailable():
            document = await self._models.find_one({"_id": model_hash, "deleted": False})
        return None if document is None else _to_entry(document)

    async def unregister(self, model_hash: str) -> bool:
        """Mark a model as deleted and return whether it existed; its snapshots stay."""
        with unavailable():
            result = await self._models.update_one(
                {"_id": model_hash, "deleted": False}, {"$set": {"deleted": True, "deleted_s": time.time()}}
            )
        return bool(result.matched_count)

    async def next_generation(self, model_hash: str, born: int, count: int = 1) -> int | None:
        """Allocate the next `count` generations of a model and return the last of them.

        Returns None if the model is deleted, or was created again since (`born` differs).
        """
        with unavailable():
            document = await self._models.find_one_and_update(
                {"_id": model_hash, "deleted": False, "born": born},
                {"$inc": {"generation": count}},
                return_document=ReturnDocument.AFTER,
            )
        return None if document is None else int(document["generation"])

    async def set_link(self, model_hash: str, generation: int, link: Link) -> None:
        """Store how a generation begins, before it goes live."""
        with unavailable():
            await self._models.update_one({"_id": model_hash}, {"$set": _link_fields(generation, link)})

    async def advance_generations(self, models: Sequence[RegistryEntry], links: Sequence[Link | None] = ()) -> bool:
        """Advance each of these models to its next generation; return whether none had changed since it was read.

        `links` says how each new generation begins; None stores no link. If a model had changed, the generations of
        the others are advanced without being used, which does no harm.
        """
        with unavailable():
            result = await self._models.bulk_write(
                [
                    UpdateOne(
                        {"_id": entry.hash, "deleted": False, "born": entry.born, "generation": entry.generation},
                        _generation_change(entry, link),
                    )
                    for entry, link in zip(models, links or [None] * len(models), strict=True)
                ],
                ordered=False,
            )
        return bool(result.matched_count == len(models))

    async def models(
        self, filters: Mapping[str, str], limit: int, after: str = "", where: Conditions = ()
    ) -> list[RegistryEntry]:
        """Return models ordered by hash, from the one after `after` on, whose metadata match all filters and `where`.

        ``{"year": "2001"}`` matches the number 2001 as well as the string; only top-level scalars are compared.
        """
        query: Document = {"_id": {"$gt": after}, "deleted": False}
        if filters or where:
            conditions = [label_condition(key, possible_values(text)) for key, text in filters.items()]
            query["$and"] = conditions + label_conditions(where)
        with unavailable():
            found = await self._models.find(query).sort("_id", ASCENDING).limit(limit).to_list(limit)
        return [_to_entry(document) for document in found]

    async def hashes(
        self, prefix: str = "", limit: int = 0, *, deleted: bool = False, where: Conditions = ()
    ) -> list[str]:
        """Return the hashes of models that begin with `prefix`, in order, at most `limit` (0: all).

        Only of models whose metadata fulfil `where`. Deleted models are among them if `deleted`: their snapshots are
        still in the history.
        """
        query: Document = {} if deleted else {"deleted": False}
        if where:
            query["$and"] = label_conditions(where)
        if prefix:
            # "g" follows the last hexadecimal digit.
            query["_id"] = {"$gte": prefix, "$lt": f"{prefix}g"}
        with unavailable():
            found = self._models.find(query, {"_id": 1}).sort("_id", ASCENDING).limit(limit)
            return [document["_id"] async for document in found]

    async def write_intent(self, document: Document) -> Document | None:
        """Write the intent of a snapshot, replacing an unfinished one with the same key (hash, generation, version).

        Returns None, or the document that is already committed under this key.
        """
        where, change = _intent(document)
        with unavailable():
            while True:
                try:
                    await self._history.update_one(where, change, upsert=True)
                except DuplicateKeyError:
                    # It is committed, or another snapshotter inserted an intent concurrently, which is then replaced.
                    committed = await self._history.find_one({**where, "status": COMMITTED})
                    if committed is not None:
                        return to_public(committed)
                else:
                    return None

    async def write_intents(self, documents: Sequence[Document]) -> list[Document | None]:
        """Do :meth:`write_intent` for many documents, with one call for all new ones."""
        refused: set[int] = set()
        # Insert new documents: an upsert takes five times as long in SecantusDB 0.7.
        new = [_intent(document)[1]["$set"] for document in documents]
        with unavailable(), pymongo.timeout(BULK_TIMEOUT_S):
            try:
                await self._history.insert_many(new, ordered=False)
            except BulkWriteError as error:
                errors = error.details["writeErrors"]
                if error.details.get("writeConcernErrors") or {each["code"] for each in errors} != {DUPLICATE_KEY}:
                    raise
                refused = {each["index"] for each in errors}
        return [
            await self.write_intent(document) if number in refused else None
            for number, document in enumerate(documents)
        ]

    async def commit(self, document: Document) -> bool:
        """Set the state of an intent to committed; return False if another intent replaced it, or it was aborted."""
        where = {**_identity(document), "status": PENDING}
        async with self.timeline.rollup_changes.writing([document]):
            with unavailable():
                result = await self._history.update_one(where, {"$set": {"status": COMMITTED}})
        return bool(result.matched_count)

    async def commit_many(self, documents: Sequence[Document]) -> list[bool]:
        """Do :meth:`commit` for many documents that have an ``attempt``, in one call."""
        # Attempts are unique. The hash is in the condition because it has an index.
        where = {name: {"$in": [document[name] for document in documents]} for name in ("hash", "attempt")}
        with unavailable(), pymongo.timeout(BULK_TIMEOUT_S):
            async with self.timeline.rollup_changes.writing(documents):
                changed = await self._history.update_many({**where, "status": PENDING}, {"$set": {"status": COMMITTED}})
            if changed.matched_count == len(documents):
                return [True] * len(documents)
            return [
                await self._history.find_one({**_identity(document), "status": COMMITTED}, {"_id": 1}) is not None
                for document in documents
            ]

    async def mark_corrupt(self, document: Document) -> bool:
        """Mark a committed snapshot whose blob is missing or damaged; False if it was deleted or saved again."""
        where = {**_identity(document), "status": {"$in": [COMMITTED, CORRUPT]}}
        async with self.timeline.rollup_changes.writing([document]):
            with unavailable():
                result = await self._history.update_one(where, {"$set": {"status": CORRUPT}})
        return bool(result.matched_count)

    async def identity(self) -> str:
        """Return the unique name of this history, which the first call creates."""
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
        status: str = COMMITTED,
    ) -> AsyncGenerator[Document]:
        """Yield a model's committed snapshots, or those of another status, newest (generation, version) first.

        Only snapshots of generation `born` or later, not later than `at` (seconds), of `version`, and before the
        (generation, version) `before`, where given; at most `limit`, 0 means all.
        """
        query: Document = {"hash": model_hash, "generation": {"$gte": born}, "status": status}
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
                yield to_public(document)

    async def newest(
        self, model_hash: str, born: int, at: float | None = None, version: int | None = None
    ) -> Document | None:
        """Return a model's newest committed snapshot, not later than `at` (seconds) and of `version`, where given.

        A snapshot of exactly the time `at` is returned also if a newer version has an earlier time: the clocks of two
        snapshotters may differ.
        """
        if at is not None:
            # Two stages: SecantusDB 0.7 uses an index only for a condition that contains nothing else.
            exact: Document = {"hash": model_hash, "timestamp": at}
            others: Document = {"generation": {"$gte": born}, "status": COMMITTED}
            with unavailable():
                found = await self._history.aggregate([{"$match": exact}, {"$match": others}]).to_list(None)
            named = [document for document in found if version in (None, document["version"])]
            if named:
                return to_public(max(named, key=lambda document: (document["generation"], document["version"])))
        async with aclosing(self.snapshots(model_hash, born, at, limit=1, version=version)) as documents:
            return await anext(documents, None)

    async def documents(
        self, type_: str | None = None, model_hash: str | None = None, limit: int = 100
    ) -> list[Document]:
        """Return committed history documents of a type and a model, where given, newest first."""
        query: Document = {"status": COMMITTED}
        if type_ is not None:
            query["type"] = type_
        if model_hash is not None:
            query["hash"] = model_hash
        with unavailable():
            found = await self._history.find(query).sort("timestamp", DESCENDING).limit(limit).to_list(limit)
        return [to_public(document) for document in found]


def _to_entry(document: Document) -> RegistryEntry:
    links = {int(generation): Link(*fields) for generation, fields in document.get("links", {}).items()}
    return RegistryEntry(
        document["_id"], document["metadata"], document["recipe"], document["generation"], document["born"], links
    )


def _link_fields(generation: int, link: Link) -> Document:
    return {f"links.{generation}": [link.origin, link.after, link.base, link.until]}


def _generation_change(entry: RegistryEntry, link: Link | None) -> Document:
    """Return the update that advances a model to its next generation and keeps at most :data:`LINKS_MAX` links."""
    change: Document = {"$set": {"generation": entry.generation + 1}}
    if link is not None:
        change["$set"] |= _link_fields(entry.generation + 1, link)
        if len(entry.links) >= LINKS_MAX:
            change["$unset"] = {f"links.{min(entry.links)}": ""}
    return change


_KEY = ("hash", "generation", "version")


def _intent(document: Document) -> tuple[Document, Document]:
    """Return the condition for the document that an intent may replace, and the update that writes the intent."""
    stored = {
        **document,
        "metadata": json.dumps(document["metadata"]),
        "labels": to_labels(document["metadata"]),
        "begun": time.time(),
        "status": PENDING,
    }
    return {**{name: document[name] for name in _KEY}, "status": {"$ne": COMMITTED}}, {"$set": stored}


def _identity(document: Document) -> Document:
    # Timestamp and attempt distinguish the intents of two snapshotters that save the same version.
    return {name: document[name] for name in (*_KEY, "sha256", "timestamp", "attempt") if name in document}
