"""Read snapshots of a model from the storage, found by their history documents, and verify them.

Owns which snapshot is used and how a damaged one is handled. Never talks to Redis. Invariants: a damaged snapshot is
logged, marked as corrupt, and the one before it is used; a snapshot that only this process cannot load is not marked.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field

import structlog

from keepfit.errors import EnvelopeError, RuntimeMismatchError, UnavailableError, UnknownKeyError, UnloadableError
from keepfit.history import Document, RegistryEntry
from keepfit.history.states import CORRUPT
from keepfit.model.bundle import Bundle
from keepfit.observability import failpoints
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.snapshot_bundle import SnapshotBundle, load, verify
from keepfit.security import envelope
from keepfit.security.envelope import Header
from keepfit.snapshots.resources import Resources
from keepfit.snapshots.stored_bundle import read_bundle

log = structlog.get_logger(__name__)


class LoadGuard:
    """Is asked before a snapshot is read, and told while it is unpickled: that can end the process, or take for ever.

    This one does nothing. `is_named` says whether the restore names a time or version.
    """

    def check(self, document: Document, *, is_named: bool) -> None:
        """Raise UnloadableError if the snapshot must not be loaded."""

    def loading(self, document: Document, *, is_named: bool) -> AbstractContextManager[None]:
        """Return the context in which the snapshot is unpickled; its caller is a thread."""
        return nullcontext()


@dataclass(frozen=True, slots=True)
class SnapshotReader:
    """Reads snapshots of models."""

    resources: Resources
    guard: LoadGuard = field(default_factory=LoadGuard)

    async def find(
        self,
        registered: RegistryEntry,
        request: RestoreRequest,
        preferred: Document | None,
        is_suitable: Callable[[Document], bool] = lambda document: True,
    ) -> tuple[SnapshotBundle | None, int]:
        """Read the newest good snapshot that matches the request, `preferred` first; count the damaged ones.

        In place of a damaged snapshot only one that `is_suitable` is read.

        Raises
        ------
        NotFoundError
            If the request names a time or version, and no snapshot matches.
        UnavailableError
            If no matching snapshot is good, or the storage or MongoDB is unavailable.
        RuntimeMismatchError, UnknownKeyError, UnloadableError
            If this process cannot load the snapshot, or must not.
        """
        corrupt, has_unsuitable = 0, False
        if preferred is not None:
            try:
                return await self.fetch(registered, preferred, is_named=request.is_named), corrupt
            except EnvelopeError as error:
                corrupt += await self._mark_corrupt(preferred, error)
        documents = self.resources.registry.snapshots(
            registered.hash, registered.born, request.at, version=request.version
        )
        async with aclosing(documents):
            async for document in documents:
                if corrupt and not is_suitable(document):
                    has_unsuitable = True
                    continue
                try:
                    return await self.fetch(registered, document, is_named=request.is_named), corrupt
                except EnvelopeError as error:
                    corrupt += await self._mark_corrupt(document, error)
        if corrupt:
            raise UnavailableError(
                f"None of the {corrupt} snapshots of {registered.hash} is good; see the log for each reason."
                + (" There are others, which the model has rewound past: name a version to restore." * has_unsuitable)
            )
        if request.is_named:
            raise request.missing(registered.hash)
        await self._check_no_damage(registered)
        return None, 0

    async def _check_no_damage(self, registered: RegistryEntry) -> None:
        """Raise UnavailableError if an earlier call found that the snapshots are damaged.

        A model whose snapshots are all damaged has learned rows, so it must not come back as one that has none.
        """
        documents = self.resources.registry.snapshots(registered.hash, registered.born, status=CORRUPT)
        async with aclosing(documents):
            corrupt = len([document async for document in documents])
        if corrupt:
            raise UnavailableError(
                f"None of the {corrupt} snapshots of {registered.hash} is good. Without one the model would have "
                "forgotten all rows; to have it begin like that, delete it and create it again."
            )

    async def _mark_corrupt(self, document: Document, error: EnvelopeError) -> int:
        """Mark a damaged snapshot as corrupt and log it; return 1, for the caller's count."""
        if isinstance(error, RuntimeMismatchError | UnknownKeyError | UnloadableError):
            # The snapshot may be good: another process, set up for its versions, key or size, must still find it.
            raise error
        if not await self.resources.registry.mark_corrupt(document):
            # It expired while it was read, in favour of a newer one that is not in the list we go through.
            raise UnavailableError("The snapshots of the model changed meanwhile; try again.") from error
        log.warning("snapshot_corrupt", hash=document["hash"], version=document["version"], reason=str(error))
        return 1

    async def fetch(self, registered: RegistryEntry, document: Document, *, is_named: bool = False) -> SnapshotBundle:
        """Read and verify a snapshot; raises EnvelopeError if it is damaged."""
        snapshot = await asyncio.to_thread(self._read, registered, document, is_named)
        failpoints.reach("restore.fetched")
        return snapshot

    async def load(self, registered: RegistryEntry, document: Document) -> Bundle:
        """Read and verify a snapshot, and return its bundle to predict with; raises as :meth:`fetch`."""
        return await asyncio.to_thread(self._load, registered, document)

    def _read(self, registered: RegistryEntry, document: Document, is_named: bool) -> SnapshotBundle:
        """Read a snapshot's blob and verify all that can be verified without installing it."""
        data = self._read_data(document, is_named)
        with self.guard.loading(document, is_named=is_named):
            snapshot = verify(data, self.resources.keyring, registered, document)
        _check_version(snapshot.header, document)
        return snapshot

    def _load(self, registered: RegistryEntry, document: Document) -> Bundle:
        data = self._read_data(document, is_named=False)
        with self.guard.loading(document, is_named=False):
            header, bundle = load(data, self.resources.keyring, registered)
        _check_version(header, document)
        return bundle

    def _read_data(self, document: Document, is_named: bool) -> bytes:
        self.guard.check(document, is_named=is_named)
        data = read_bundle(self.resources.storage, document)
        # The bytes are those that were saved, so another signature is that of another key.
        self.resources.keyring.check_signer(data, envelope.BUNDLE)
        return data


def _check_version(header: Header, document: Document) -> None:
    if (header.generation, header.version) != (document["generation"], document["version"]):
        raise EnvelopeError("the blob holds another version than its document names")
