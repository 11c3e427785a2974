"""Requests with an Idempotency-Key that wrote to the history, and what each API key has written today.

Owns the collections ``history_requests`` and ``history_quotas``, whose documents MongoDB deletes when they expire.
Never stores a document of a user. Invariants: a request that is repeated has the time of its first attempt, so that its
documents are the same; of a request that has finished, the answer is known and nothing is written again. If a server
lost its record, a request that is repeated stores nothing twice either (:mod:`keepfit.history.writing.incoming`).
"""

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from keepfit.errors import IdempotencyError, QuotaError
from keepfit.history.mongo import Collection, Document, unavailable

DAY_S = 86_400
OTHER_BODY = "This Idempotency-Key was used with another body; use a new key for a new request."


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: the time of its first attempt (seconds), and how many documents it stored, None until it finished.

    `content` is the digest of the lines of a stream that has finished.
    """

    at: float
    stored: int | None = None
    content: str | None = None

    def check(self, content: str) -> None:
        """Raise IdempotencyError unless a stream is the one that has finished."""
        if self.content not in (None, content):
            raise IdempotencyError(OTHER_BODY)


class _Expiring:
    """A collection whose documents expire at their own time."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self._indexing = asyncio.Lock()
        self._indexed = False

    async def ensure_index(self) -> None:
        """Create the index by which the server deletes expired documents; after the first success do nothing."""
        async with self._indexing:
            if not self._indexed:
                with unavailable():
                    await self.collection.create_index("expires", expireAfterSeconds=0)
                self._indexed = True


class SentRequests:
    """Remembers requests by their Idempotency-Key and caller, for `keep_s` seconds."""

    def __init__(self, collection: Collection, keep_s: float) -> None:
        self._requests = _Expiring(collection)
        self._keep = timedelta(seconds=keep_s)

    async def begin(self, key: str, digest: str, now: float) -> Sent:
        """Note a request and return it as it is known; `digest` is that of its body, empty for a stream.

        Raises
        ------
        IdempotencyError
            If another body was sent with this key.
        UnavailableError
            If MongoDB is unavailable.
        """
        await self._requests.ensure_index()
        expires = datetime.fromtimestamp(now, UTC) + self._keep
        known = await self._find_or_add(key, {"digest": digest, "at": now, "expires": expires})
        if known["expires"].timestamp() <= now:
            # It expired, and the server has not deleted it yet.
            with unavailable():
                await self._requests.collection.delete_one({"_id": key, "expires": known["expires"]})
            known = await self._find_or_add(key, {"digest": digest, "at": now, "expires": expires})
        if known["digest"] != digest:
            raise IdempotencyError(OTHER_BODY)
        return Sent(known["at"], known.get("stored"), known.get("content"))

    async def _find_or_add(self, key: str, record: Mapping[str, object]) -> Document:
        collection = self._requests.collection
        while True:
            with unavailable():
                await _insert(collection, {"_id": key, **record})
                found = await collection.find_one({"_id": key})
            # Another process may have deleted one that had expired.
            if found is not None:
                return dict(found)

    async def finish(self, key: str, stored: int, content: str | None = None) -> None:
        """Note that all documents of a request are stored; raise UnavailableError if MongoDB is unavailable.

        `content` is the digest of the lines of a stream.
        """
        with unavailable():
            await self._requests.collection.update_one({"_id": key}, {"$set": {"stored": stored, "content": content}})


class Quotas:
    """Counts what each API key writes on a day of UTC; 0 as a maximum is no limit."""

    def __init__(self, collection: Collection, documents_max: int, bytes_max: int) -> None:
        self._days = _Expiring(collection)
        self._documents_max = documents_max
        self._bytes_max = bytes_max

    async def take(self, name: str, documents: int, size_bytes: int, now: float) -> None:
        """Count documents of the API key `name` before they are written.

        Raises
        ------
        QuotaError
            If they are more than the key may write today; then they do not count.
        UnavailableError
            If MongoDB is unavailable.
        """
        if not (self._documents_max or self._bytes_max):
            return
        await self._days.ensure_index()
        day = math.floor(now / DAY_S)
        expires = datetime.fromtimestamp((day + 2) * DAY_S, UTC)
        used = await self._add(f"{day} {name}", documents, size_bytes, expires)
        over = [
            f"{most:,} {unit}"
            for most, count, unit in (
                (self._documents_max, used["documents"], "documents"),
                (self._bytes_max, used["bytes"], "bytes"),
            )
            if most and count > most
        ]
        if over:
            await self._add(f"{day} {name}", -documents, -size_bytes, expires)
            raise QuotaError(
                f"The API key {name!r} may write {' and '.join(over)} to the history each day (UTC); it has written "
                f"{used['documents'] - documents:,} documents of {used['bytes'] - size_bytes:,} bytes.",
                math.ceil((day + 1) * DAY_S - now),
            )

    async def _add(self, id_: str, documents: int, size_bytes: int, expires: datetime) -> Document:
        """Count documents and bytes; return what is counted then."""
        collection = self._days.collection
        while True:
            with unavailable():
                found = await collection.find_one_and_update(
                    {"_id": id_},
                    {"$inc": {"documents": documents, "bytes": size_bytes}},
                    return_document=ReturnDocument.AFTER,
                )
                if found is not None:
                    return dict(found)
                await _insert(collection, {"_id": id_, "documents": 0, "bytes": 0, "expires": expires})


async def _insert(collection: Collection, document: Document) -> None:
    """Add a document unless there is one with its id. An upsert is no step: of several at once, one may count twice."""
    with suppress(DuplicateKeyError):
        await collection.insert_one(document)
