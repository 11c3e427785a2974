"""What requests write to the history, one object for a gateway process.

Owns the number of writes at a time, and the order of a write: quota, documents. Never reads a request, and never
touches the document of a snapshot. Invariant: documents count for the quota of their API key before they are written;
those of a request that is repeated after it has finished are not written, and count once.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence

from keepfit.errors import UnavailableError
from keepfit.history import Registry
from keepfit.history.mongo import Document
from keepfit.history.queries.filters import Filter
from keepfit.history.writing.sent import Quotas, Sent, SentRequests
from keepfit.history.writing.writer import Deleted, Existing
from keepfit.security.api_keys import UNRESTRICTED, Key
from keepfit.settings import Settings

# Batches of documents, and deletions, that one process has in progress.
WRITES_MAX = 4


class HistoryWrites:
    """Writes documents for callers, and deletes them."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._timeline = registry.timeline
        self._gate = asyncio.Semaphore(WRITES_MAX)
        self._sent = SentRequests(registry.timeline.collection("history_requests"), settings.idempotency_ttl_s)
        self._quotas = Quotas(
            registry.timeline.collection("history_quotas"),
            settings.history_daily_entries_max,
            settings.history_daily_bytes_max,
        )

    async def begin(self, key: str, digest: str) -> Sent:
        """Note a request with this Idempotency-Key; raises as :meth:`SentRequests.begin`."""
        return await self._sent.begin(key, digest, time.time())

    async def finish(self, key: str, stored: int, content: str | None = None) -> None:
        """Note that all documents of a request are stored. Without this note, a repeated one writes the same again."""
        with contextlib.suppress(UnavailableError):
            await self._sent.finish(key, stored, content)

    async def write(self, caller: Key, documents: Sequence[Document], existing: Existing, size_bytes: int) -> None:
        """Write documents that take `size_bytes` as they were sent.

        Raises
        ------
        QuotaError
            If they are more than the caller may write today.
        InvalidError
            If MongoDB cannot store one of them.
        UnavailableError
            If MongoDB is unavailable.
        """
        if not documents:
            return
        if caller is not UNRESTRICTED:
            await self._quotas.take(caller.name, len(documents), size_bytes, time.time())
        await self._timeline.ensure_indexes()
        async with self._gate:
            await self._timeline.writer.write(documents, existing)

    async def delete(self, where: Filter, start: float | None, stop: float | None) -> Deleted:
        """Delete documents of users that match; raise UnavailableError if MongoDB is unavailable."""
        await self._timeline.ensure_indexes()
        async with self._gate:
            return await self._timeline.writer.delete(where, start, stop)
