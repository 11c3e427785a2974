"""The timeline: store and query documents by time, as in funtime, and aggregate their numbers, as in InfluxDB.

Owns the collection ``timeline`` (stored documents and roll-ups). Reads the snapshots in the collection ``history`` and
never writes them; :mod:`keepfit.history.timeline_queries` has the queries. Async;
:mod:`keepfit.history.timeline_sync` is the synchronous form. Invariant: an index serves each query.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Self

from pymongo import ASCENDING, DESCENDING, WriteConcern

from keepfit.errors import InvalidError
from keepfit.history import documents as storing
from keepfit.history.mongo import Client, Collection, Database, Document, long_call, open_database
from keepfit.history.queries.arguments import Values, to_filter, to_range
from keepfit.history.queries.filters import DOCUMENT
from keepfit.history.queries.sources import SnapshotSource, StoredSource
from keepfit.history.rollups.answers import Answers
from keepfit.history.rollups.changes import RollupChanges
from keepfit.history.rollups.progress import RollupProgress
from keepfit.history.rollups.thinned import Thinned
from keepfit.history.timeline_queries import TimelineQueries
from keepfit.history.writing import checks
from keepfit.history.writing.incoming import Incoming
from keepfit.history.writing.stored import StoredDocuments
from keepfit.history.writing.writer import DocumentWriter
from keepfit.times import Time

BATCH_DOCUMENTS = 1_000


class Timeline(TimelineQueries):
    """Async access to documents by time; create it inside the event loop that uses it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        journaled: WriteConcern = WriteConcern(w="majority", j=True)
        stored = StoredSource(database.get_collection("timeline", write_concern=journaled))
        self.rollup_changes = RollupChanges(database, journaled)
        progress = database.get_collection("rollups", write_concern=journaled)
        self.rollup_progress = RollupProgress(progress, self.rollup_changes)
        self.rollup_expiries = database.get_collection("rollup_expiries", write_concern=journaled)
        self.thinned = Thinned(database.get_collection("thinned", write_concern=journaled))
        self.stored = StoredDocuments(database, stored, self.rollup_changes)
        self.writer = DocumentWriter(database, stored.collection, self.rollup_changes)
        answers = Answers(database, stored, self.rollup_progress, self.thinned)
        super().__init__(SnapshotSource(database.get_collection("history")), stored, answers)
        self._client: Client | None = None
        self._indexing = asyncio.Lock()
        self._indexed = False

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the timeline of the database that `url` names; the first call connects."""
        client, database = open_database(url)
        opened = cls(database)
        opened._client = client
        return opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, if :meth:`open` opened them."""
        if self._client is not None:
            self._client.close()

    def collection(self, name: str) -> Collection:
        """Return a collection of the database, for records about what is written."""
        return self._database.get_collection(name)

    async def ensure_indexes(self) -> None:
        """Create the indexes that the queries use; after the first success do nothing."""
        async with self._indexing:
            if self._indexed:
                return
            async with long_call(self._database):
                for source in self._sources:
                    await source.collection.create_index([("type", ASCENDING), ("timestamp", DESCENDING)])
                    await source.collection.create_index([("timestamp", DESCENDING)])
                await self._sources[0].collection.create_index([("hash", ASCENDING), ("timestamp", DESCENDING)])
                await self.rollup_changes.ensure_indexes()
            self._indexed = True

    # Writing.

    async def store(self, document: Mapping[str, Any]) -> None:
        """Store one document; it must have ``type`` (str) and ``timestamp`` (float, datetime or text).

        Storing a document that equals a stored one in every field changes nothing.

        Raises
        ------
        InvalidError, MalformedError
            If it is not such a document.
        UnavailableError
            If MongoDB is unavailable. The call can be repeated.
        """
        await self._write([storing.to_stored(document)])

    async def bulk_upsert(
        self,
        documents: Iterable[Mapping[str, Any]],
        keys: Sequence[str] = (),
        in_: Sequence[str] = (),
        *,
        _column_first: Sequence[str] | None = None,
        _in: Sequence[str] | None = None,
    ) -> int:
        """Store many documents; return their number.

        A document replaces the stored one of the same type with equal values of `keys`, and whose value of each `in_`
        field is in the list that the new document has in that field. Without `keys` and `in_`, each is stored as by
        :meth:`store`. Use ``timestamp`` as one of the keys: the lookup of stored documents uses it.

        `_column_first` and `_in` are funtime's names for them; with either, `_in` is ``["timestamp"]`` by default.
        """
        if _column_first is not None or _in is not None:
            keys, in_ = _column_first or keys, ("timestamp",) if _in is None else _in
        for name, names in (("keys", keys), ("in_", in_)):
            if isinstance(names, str):
                raise InvalidError(f"{name} must be a list of names, not {names!r}.")
        wrapped = [storing.to_stored(document, (*keys, *in_)) for document in documents]
        if keys or in_:
            wrapped.sort(key=lambda document: (document["type"], document["timestamp"]))
        for first in range(0, len(wrapped), BATCH_DOCUMENTS):
            batch = wrapped[first : first + BATCH_DOCUMENTS]
            await self._write(batch, await self.stored.reuse_ids(batch, keys, in_) if keys or in_ else ())
        return len(wrapped)

    async def _write(self, batch: Sequence[Document], replaced: Sequence[Document] = ()) -> None:
        await self.ensure_indexes()
        await self.stored.write(batch, replaced)

    async def add(self, documents: Iterable[Mapping[str, Any]], keys: Sequence[str] = ()) -> int:
        """Store documents as ``POST /v1/history`` does; return their number.

        `keys` are names of the fields that identify a document: it replaces one that was stored with the same type,
        the same keys and the same values of them. Without `keys`, a document that equals a stored one changes nothing;
        one without ``timestamp`` gets the present time, and is always stored.

        Raises
        ------
        InvalidError, MalformedError
            If one may not be stored; those before it may be.
        UnavailableError
            If MongoDB is unavailable. With timestamps, or keys, the call can be repeated.
        """
        incoming, count = Incoming(checks.check_keys(keys)), 0
        await self.ensure_indexes()
        remaining = iter(documents)
        while batch := [incoming.prepare(one, count + n) for n, one in enumerate(islice(remaining, BATCH_DOCUMENTS))]:
            await self.writer.write(batch, incoming.existing)
            count += len(batch)
        return count

    async def delete(self, where: Values) -> bool:
        """Delete the newest stored document that matches and return whether there was one; never delete snapshots."""
        return await self.stored.delete_newest(to_filter(where, DOCUMENT))

    async def delete_many(self, where: Values, start: Time | None = None, stop: Time | None = None) -> int:
        """Delete all stored documents that match, from `start` and before `stop` where given; return their number."""
        return await self.stored.delete(to_filter(where, DOCUMENT), *to_range(start, stop))
