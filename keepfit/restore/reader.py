"""The shelf: a model's snapshots in storage, found by their documents, read and checked.

Owns which of them is taken, and what becomes of one that is not good. Never talks to Redis. Invariants: a damaged
snapshot is marked and passed over for the one before, and said; one that this process merely cannot load is not marked.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from keepfit.errors import EnvelopeError, RuntimeMismatchError, UnavailableError, UnknownKeyError
from keepfit.history import Document, RegistryEntry
from keepfit.observability import failpoints
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.snapshot_bundle import SnapshotBundle, check
from keepfit.security import envelope
from keepfit.snapshots.resources import Resources
from keepfit.snapshots.save import path_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotReader:
    """What is needed to read snapshots."""

    resources: Resources

    async def find(
        self,
        registered: RegistryEntry,
        wanted: RestoreRequest,
        first: Document | None,
        fits: Callable[[Document], bool] = lambda document: True,
    ) -> tuple[SnapshotBundle | None, int]:
        """Read the newest good snapshot that is wanted, `first` first; count those that were not good.

        Only one that `fits` is taken instead of another.
        """
        corrupt, others = 0, False
        if first is not None:
            try:
                return await self.fetch(registered, first), corrupt
            except EnvelopeError as error:
                corrupt += await self._put_by(first, error)
        documents = self.resources.registry.snapshots(
            registered.hash, registered.born, wanted.at, version=wanted.version
        )
        async with aclosing(documents):
            async for document in documents:
                if corrupt and not fits(document):
                    others = True
                    continue
                try:
                    return await self.fetch(registered, document), corrupt
                except EnvelopeError as error:
                    corrupt += await self._put_by(document, error)
        if corrupt:
            raise UnavailableError(
                f"None of the {corrupt} snapshots of {registered.hash} is good; see the log for each reason. If there "
                "are others, the model has forgotten what they hold: name the version to have one."
                if others
                else f"None of the {corrupt} snapshots of {registered.hash} is good; see the log for each reason."
            )
        if wanted.is_named:
            raise wanted.missing(registered.hash)
        return None, 0

    async def _put_by(self, document: Document, error: EnvelopeError) -> int:
        """Mark a snapshot that is not good; count 1."""
        if isinstance(error, RuntimeMismatchError | UnknownKeyError):
            # This process is not set up for a good snapshot; marking it would spoil it for those that are.
            raise error
        if not await self.resources.registry.mark_corrupt(document):
            # It was let go for a newer one while it was read; that is not yet among those that are looked through.
            raise UnavailableError(f"The snapshots of {document['hash']} have just changed; try again.") from error
        log.warning("snapshot_corrupt", hash=document["hash"], version=document["version"], reason=str(error))
        return 1

    async def fetch(self, registered: RegistryEntry, document: Document) -> SnapshotBundle:
        """Read a snapshot, and check it; EnvelopeError where it is not good."""
        fetched = await asyncio.to_thread(self._read, registered, document)
        failpoints.reach("restore.fetched")
        return fetched

    def _read(self, registered: RegistryEntry, document: Document) -> SnapshotBundle:
        """Read a snapshot's blob and check all that can be checked without installing it."""
        path = path_of(document)
        data = self.resources.storage.get(path)
        if data is None:
            if document["uri"] != self.resources.storage.uri(path):
                # It was saved elsewhere: a wrong setting here must not spoil a good document.
                raise UnavailableError(
                    f"The snapshot is at {document['uri']}, and {self.resources.storage.url} does not have it."
                )
            raise EnvelopeError("the blob is missing")
        if len(data) != document["size_bytes"] or envelope.digest_of(data) != document["sha256"]:
            raise EnvelopeError("the blob is not the one that was saved")
        fetched = check(data, self.resources.keyring, registered, document)
        if (fetched.header.generation, fetched.header.version) != (document["generation"], document["version"]):
            raise EnvelopeError("the blob holds another version than its document names")
        return fetched
