"""Restore a model to Redis from a snapshot: one that is not live, or in place of a live one (rewind).

Owns the order of the steps::

    (lost?) ─▶ list the row log ─▶ find the document ─▶ read and verify the blob ─▶ replay logged requests
        ─▶ allocate a generation
        not live:                     sign for the new generation ─▶ mark, set idempotency keys, install ─▶ save
        … newest, nothing to replay:  install unchanged
        live, and requested:          sign for the new generation ─▶ mark, rewind ─▶ save

Never replaces a live model but by a script that finds it as the caller saw it. Invariants: a model is live with all
logged requests, or not at all; the restored state is the newest snapshot from then on. Data comes from the storage,
MongoDB and the row log, and goes to Redis (`docs/concepts/restore.md`).
"""

import asyncio
import time
from dataclasses import dataclass, field, replace

import structlog

from keepfit.errors import (
    ConflictError,
    EnvelopeError,
    NotConfirmedError,
    NotFoundError,
    StaleModelError,
    UnavailableError,
)
from keepfit.history import Document, RegistryEntry
from keepfit.history.registry.lineage import Link
from keepfit.observability import failpoints
from keepfit.recipe import uploads
from keepfit.restore import idempotency, learning_again, replay_source
from keepfit.restore.generations import Generations
from keepfit.restore.reader import LoadGuard, SnapshotReader
from keepfit.restore.replay import Replayed, Replayer
from keepfit.restore.replay_source import LoggedRequest, ReplaySource
from keepfit.restore.requests import NEWEST, PreviousState, RestoreRequest, RestoreResult
from keepfit.restore.snapshot_bundle import to_install, to_rewind
from keepfit.rowlog.row_log import View
from keepfit.security import envelope
from keepfit.settings import Settings
from keepfit.snapshots.resources import Resources
from keepfit.snapshots.save import save
from keepfit.store import events, idle
from keepfit.store.models import Model

log = structlog.get_logger(__name__)

# Tries to rewind a model that keeps learning, or to restore one that other processes restore too.
TRIES = 20
PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Restorer:
    """Restores models; the caller owns the connections in `resources`."""

    resources: Resources
    settings: Settings = field(default_factory=Settings.model_construct)
    guard: LoadGuard = field(default_factory=LoadGuard)
    reader: SnapshotReader = field(init=False)
    generations: Generations = field(init=False)
    replayer: Replayer = field(init=False)

    def __post_init__(self) -> None:
        """Create what the restores of this process share."""
        object.__setattr__(self, "reader", SnapshotReader(self.resources, self.guard))
        object.__setattr__(self, "generations", Generations(self.resources.registry))
        upload_keys = uploads.upload_keyring(self.settings.upload_keys.get_secret_value())
        replayer = Replayer(self.resources.keyring, upload_keys, self.settings.call_timeout_s)
        object.__setattr__(self, "replayer", replayer)

    def close(self) -> None:
        """End the replay process; the connections stay open."""
        self.replayer.close()

    async def restore(
        self,
        registered: RegistryEntry,
        request: RestoreRequest = NEWEST,
        preferred: Document | None = None,
        view: View | None = None,
    ) -> RestoreResult:
        """Restore a model that is not live, with the requests logged after its snapshot.

        A caller that restores many models passes a `view` of the row log that it listed after it found the model lost,
        and as `preferred` the document that it found after that.

        Raises
        ------
        NotFoundError
            If the model has no such snapshot, or was deleted in the meantime.
        RuntimeMismatchError, UnloadableError
            If the snapshot was written by versions that this process cannot load, or workers died of loading it.
        UnavailableError
            If a dependency is unavailable, or none of the model's snapshots is good.
        """
        current: RegistryEntry | None = registered
        for _ in range(TRIES):
            if current is None:
                raise NotFoundError(f"The model {registered.hash} was deleted in the meantime.")
            try:
                return await self._restore(current, request, preferred, view)
            except StaleModelError:
                # Another process restores it too. It may have been live, and lost again, since the caller read it.
                await asyncio.sleep(PAUSE_S)
                preferred, view = None, None
                current = await self.resources.registry.find(registered.hash)
        raise UnavailableError(f"Other processes keep restoring {registered.hash}; try again.")

    async def _restore(
        self, registered: RegistryEntry, request: RestoreRequest, preferred: Document | None, view: View | None
    ) -> RestoreResult:
        store = self.resources.store
        live = await store.describe(registered.hash)
        if live is not None and live.generation >= registered.born:
            return RestoreResult(registered.hash, None, live=True, corrupt=0)
        # Before the snapshot is looked up: one that was saved before the model left is then found (install compares).
        seen = await idle.read_record(store.client, registered.hash)
        if seen is not None:
            preferred, view = None, None
        source = await replay_source.read_source(self.reader, registered, request, preferred, view)
        replayed = await self._replay(registered, source, source.requests())
        document = None if source.snapshot is None else source.snapshot.document
        is_changed = bool(replayed.requests) or (
            document is not None and await self._is_older(registered, request, document)
        )
        has_row_log = self.resources.row_log is not None
        # Exactly the bundle that left Redis comes back: the sequences continue, and idempotency keys stay known.
        continues = not is_changed and seen is not None and document is not None and document["sha256"] == seen.digest
        link = replayed.link(seen.origin if continues and seen is not None else 0) if has_row_log else None
        generation = await self.allocate_generation(registered, link)
        if replayed.bundle is not None and is_changed:
            signed = replayed.bundle.sign(
                self.resources.keyring, generation, replayed.position.sequence, replayed.request_digest
            )
            replayed = replace(replayed, bundle=signed)
            await store.mark_changed(registered.hash, 0, 1)
        if has_row_log:
            if generation != registered.generation + 1:
                raise StaleModelError("Another process took a generation since the row log was listed.")
            await self._restore_answers(registered, generation, source)
        installed = await store.install(
            to_install(
                registered,
                generation,
                replayed.bundle,
                is_saved=not is_changed,
                sequence=replayed.position.sequence,
                request_digest=replayed.request_digest,
                seen=seen,
                continues=continues,
            )
        )
        failpoints.reach("restore.installed")
        if not installed:
            return RestoreResult(registered.hash, document, live=True, corrupt=source.corrupt)
        _log_restored(registered.hash, generation, replayed)
        await self._announce(registered, generation, replayed)
        skipped = [each.request.payload for each in replayed.skipped]
        await idempotency.enqueue(store.client, registered.hash, generation, skipped)
        saved = await self.save_restored(registered.hash) if is_changed else True
        return RestoreResult(
            registered.hash, document, False, source.corrupt, saved, replayed.rows, replayed.position.sequence
        )

    async def _is_older(self, registered: RegistryEntry, request: RestoreRequest, document: Document) -> bool:
        """Return whether a restore of this snapshot may forget something, so that it has to become the newest."""
        if not request.is_named:
            return False
        newest = await self.resources.registry.newest(registered.hash, registered.born)
        return self.resources.row_log is not None or newest is None or _version_of(newest) != _version_of(document)

    async def _restore_answers(self, registered: RegistryEntry, generation: int, source: ReplaySource) -> None:
        answered = replay_source.answered(source.calls, source.lineage)
        await idempotency.restore_answers(
            self.resources.store.client,
            registered,
            generation,
            answered,
            self.settings,
            time.time(),
        )
        failpoints.reach("restore.remembered")

    async def rewind(
        self,
        registered: RegistryEntry,
        request: RestoreRequest,
        live: Model,
        *,
        follow: bool,
        preferred: Document | None = None,
        view: View | None = None,
    ) -> RestoreResult:
        """Replace the `live` model by a snapshot; pending requests are learned on top of it.

        If a time is requested, the requests logged up to that time are replayed first. With `follow` a model that
        learns in the meantime is rewound too, as long as its generation stays the same.

        Raises
        ------
        StaleModelError
            If the live model has changed.
        NotFoundError, RuntimeMismatchError, UnavailableError
            As of :meth:`restore`.
        """
        source = await replay_source.read_source(self.reader, registered, request, preferred, view)
        if source.snapshot is None:
            raise request.missing(registered.hash)
        replayed = await self.replace_live(registered, live, source, follow=follow)
        _log_restored(registered.hash, 0, replayed)
        saved, document = await self.save_restored(registered.hash), source.snapshot.document
        return RestoreResult(
            registered.hash, document, False, source.corrupt, saved, replayed.rows, replayed.position.sequence
        )

    async def restore_or_rewind(self, model_hash: str, request: RestoreRequest) -> PreviousState:
        """Restore one model by its hash; if the request names a time or version, rewind it if it is live.

        Raises
        ------
        NotFoundError
            If there is no such model or snapshot.
        NotConfirmedError
            If the request names neither time nor version, and the live model has learned since its newest snapshot.
        """
        resources = self.resources
        registered = await resources.registry.find(model_hash)
        if registered is None:
            raise NotFoundError(f"There is no model {model_hash}.")
        live = await resources.store.describe(model_hash)
        if live is not None and live.generation < registered.born:
            live = None
        # Of a live model only a time is restored with logged requests; a version is restored as it is.
        needs_row_log = request.version is None and (live is None or request.at is not None)
        view = await replay_source.list_row_log(resources) if needs_row_log else None
        document = await replay_source.find_document(resources, registered, request)
        if document is None and request.is_named:
            raise request.missing(model_hash)
        if live is None:
            restored = await self.restore(registered, request, document, view)
            return PreviousState(
                restored.document, not restored.live, restored.corrupt, 0, restored.replayed, restored.sequence
            )
        _, is_at = await replay_source.preview(resources, registered, request, document, live, view)
        # A bundle whose loading has killed workers is tried again at once, if it gets another generation.
        is_tried_again = live.is_unloadable and request.is_named
        if is_at and document is not None and not is_tried_again:
            return PreviousState(document, restored=False, sequence=int(document["sequence"]))
        if document is None or not request.is_named:
            raise NotConfirmedError(
                f"The model {model_hash} is live at version {live.version} and has learned since its newest snapshot; "
                "name the version or time to restore."
            )
        restored = await self.rewind(registered, request, live, follow=True, preferred=document, view=view)
        previous = restored.document or document
        forgotten = max(live.rows_seen - int(previous["rows_seen"]) - restored.replayed, 0)
        return PreviousState(previous, True, restored.corrupt, forgotten, restored.replayed, restored.sequence)

    async def replace_live(
        self, registered: RegistryEntry, live: Model, source: ReplaySource, *, follow: bool
    ) -> Replayed:
        """Replace a live model by what the source holds, as its next generation.

        Raises StaleModelError if the live model has changed.
        """
        current: Model | None = live
        generation, replayed = 0, None
        for _ in range(TRIES if follow else 1):
            if current is None or current.generation != live.generation:
                break
            requests = source.requests(current)
            if replayed is None or replayed.requests != len(requests):
                replayed = await self._replay(registered, source, requests)
            link = None if self.resources.row_log is None else replayed.link(current.origin, current.learned)
            if not generation:
                generation = await self.allocate_generation(registered, link)
            elif link is not None:
                await self.resources.registry.set_link(registered.hash, generation, link)
            if replayed.bundle is None:
                raise UnavailableError(f"None of the logged requests of {live.hash} could be learned again.")
            bundle = replayed.bundle.sign(
                self.resources.keyring, generation, current.learned, await self._request_digest(current)
            )
            if await self.resources.store.rewind(current, to_rewind(bundle)):
                failpoints.reach("restore.rewound")
                replayed = replace(replayed, bundle=bundle)
                await self._announce(registered, generation, replayed)
                return replayed
            current = await self.resources.store.describe(live.hash)
        state = "is gone" if current is None else f"is at version {current.version} of generation {current.generation}"
        raise StaleModelError(
            f"The model {live.hash} was at version {live.version} of generation {live.generation} when it was read, "
            f"and {state} now; nothing was changed."
        )

    async def _replay(self, registered: RegistryEntry, source: ReplaySource, requests: list[LoggedRequest]) -> Replayed:
        replayed = await learning_again.replay(self.replayer, registered, source, requests)
        failpoints.reach("restore.replayed")
        return replayed

    async def _announce(self, registered: RegistryEntry, generation: int, replayed: Replayed) -> None:
        header = None if replayed.bundle is None else replayed.bundle.header
        restored = events.entry(
            "restored",
            registered.hash,
            registered.metadata_text,
            generation=generation,
            version=0 if header is None else header.version,
            rows_seen=0 if header is None else header.rows_seen,
        )
        await events.announce(self.resources.store.client, restored)

    async def allocate_generation(self, registered: RegistryEntry, link: Link | None) -> int:
        """Allocate the next generation of a model; raises NotFoundError if the model was deleted."""
        generation = await self.generations.allocate(registered, link)
        if generation is None:
            raise NotFoundError(f"The model {registered.hash} was deleted in the meantime.")
        failpoints.reach("restore.numbered")
        return generation

    async def _request_digest(self, live: Model) -> str:
        """Return the request digest of the last request that a live model has learned; '' if it is not known."""
        found = await self.resources.store.bundle(live.hash)
        if found is None:
            return ""
        try:
            header, _ = self.resources.keyring.open(found[1], envelope.BUNDLE)
        except EnvelopeError:
            return ""
        return header.chain if header.sequence == live.learned else ""

    async def save_restored(self, model_hash: str) -> bool:
        """Save a restored model as its newest snapshot; return False if that is left to the next pass."""
        try:
            await save(self.resources, model_hash)
        except (UnavailableError, ConflictError) as error:
            log.warning("restored_not_saved", hash=model_hash, reason=str(error))
            return False
        return True


async def restore(resources: Resources, model_hash: str, at: float | None = None) -> RestoreResult:
    """Restore a model from its newest good snapshot (not later than `at`, seconds since 1970), if it is not live.

    Raises
    ------
    NotFoundError
        If no such model is registered, or it has no snapshot as old as `at`.
    RuntimeMismatchError, UnavailableError
        As of :meth:`Restorer.restore`.
    """
    registered = await resources.registry.find(model_hash)
    if registered is None:
        raise NotFoundError(f"There is no model {model_hash}.")
    return await Restorer(resources).restore(registered, RestoreRequest(at))


def _version_of(document: Document) -> tuple[int, int]:
    return document["generation"], document["version"]


def _log_restored(model_hash: str, generation: int, replayed: Replayed) -> None:
    """Log a restore; `generation` is that of a model without a bundle."""
    header = None if replayed.bundle is None else replayed.bundle.header
    log.info(
        "model_restored",
        hash=model_hash,
        generation=generation if header is None else header.generation,
        version=0 if header is None else header.version,
        rows_seen=0 if header is None else header.rows_seen,
        replayed=replayed.rows,
        skipped=len(replayed.skipped),
    )
