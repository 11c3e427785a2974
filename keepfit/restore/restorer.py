"""Restores: a model put back into Redis from a snapshot, where none is live, or in a live one's place.

Owns the order of the steps::

    (lost?) ─▶ look into the row log ─▶ snapshot's document ─▶ blob: size, SHA-256, signature, versions, one predict
        ─▶ learn again what was logged since ─▶ new generation
        nothing is live:              sign it for the new generation ─▶ mark, set known keys, install ─▶ save
        … the newest, nothing logged: install it as it is
        one is live, and asked for:   sign it for the new generation ─▶ mark, rewind ─▶ save

Never replaces a live model but by a script that finds it as the caller saw it. Invariants: a model is live with all
that was logged, or not at all; what was restored is the newest from then on. Data comes from storage, MongoDB and the
row log, and goes to Redis (`docs/guides/restore.md`).
"""

import asyncio
import time
from collections.abc import Sequence
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
from keepfit.history.lineage import Link, Span, spans_after
from keepfit.observability import failpoints
from keepfit.recipe import uploads
from keepfit.restore import idempotency
from keepfit.restore.generations import Generations
from keepfit.restore.reader import SnapshotReader
from keepfit.restore.replay import LoggedRequest, Replayed, Replayer, ReplaySource, known, logged, place_of
from keepfit.restore.requests import NEWEST, PreviousState, RestoreRequest, RestoreResult
from keepfit.restore.snapshot_bundle import SnapshotBundle, to_install, to_rewind
from keepfit.rowlog.row_log import View
from keepfit.security import envelope
from keepfit.settings import Settings
from keepfit.snapshots.resources import Resources
from keepfit.snapshots.save import path_of, save
from keepfit.store.models import Model

__all__ = ["NEWEST", "PreviousState", "RestoreRequest", "RestoreResult", "Restorer", "restore"]

log = structlog.get_logger(__name__)

# How often a model that learns on while it is to go back is looked at again, or one that others bring back too.
TRIES = 20
PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Restorer:
    """All that restores need."""

    resources: Resources
    settings: Settings = field(default_factory=Settings.model_construct)
    generations: Generations = field(init=False)
    replayer: Replayer = field(init=False)

    def __post_init__(self) -> None:
        """Create what all restores of this process share."""
        object.__setattr__(self, "generations", Generations(self.resources.registry))
        upload_keys = uploads.keyring_of(self.settings.upload_keys.get_secret_value())
        object.__setattr__(self, "replayer", Replayer(self.resources.keyring, upload_keys))

    def close(self) -> None:
        """End what was begun for restores; the connections are whose they were."""
        self.replayer.close()

    async def look(self) -> View | None:
        """Look into the row log, for models that were found lost before; None where there is none."""
        return None if self.resources.row_log is None else await asyncio.to_thread(self.resources.row_log.look)

    async def bring_back(
        self,
        registered: RegistryEntry,
        wanted: RestoreRequest = NEWEST,
        first: Document | None = None,
        view: View | None = None,
    ) -> RestoreResult:
        """Put a model that is not live into Redis, with what was logged since its snapshot.

        `view` is a look into the row log that was made after the model was found lost, by who restores many; `first`
        the document that was found for it after that look, if one was.

        Raises
        ------
        NotFoundError
            If the model has no snapshot as it is wanted, or was deleted meanwhile.
        RuntimeMismatchError
            If the snapshot was written by versions this process cannot load.
        UnavailableError
            If a part is away, or none of the model's snapshots is good.
        """
        now: RegistryEntry | None = registered
        for _ in range(TRIES):
            if now is None:
                raise NotFoundError(f"The model {registered.hash} was deleted meanwhile.")
            try:
                return await self._bring_back(now, wanted, first, view)
            except StaleModelError:
                # Others bring it back too. It may have been live, and lost again, since anybody looked.
                await asyncio.sleep(PAUSE_S)
                first, view = None, None
                now = await self.resources.registry.find(registered.hash)
        raise UnavailableError(f"Others restore {registered.hash} all the time; try again.")

    async def _bring_back(
        self, registered: RegistryEntry, wanted: RestoreRequest, first: Document | None, view: View | None
    ) -> RestoreResult:
        live = await self.resources.store.describe(registered.hash)
        if live is not None and live.generation >= registered.born:
            return RestoreResult(registered.hash, None, live=True, corrupt=0)
        past = await self.past(registered, wanted, first, view)
        replayed = await self._replay(registered, past, past.requests())
        document = None if past.fetched is None else past.fetched.document
        is_other = bool(replayed.requests) or (
            document is not None and await self._is_older(registered, wanted, document)
        )
        generation = await self.next_generation(registered, None if self.resources.row_log is None else replayed.link())
        fetched = replayed.fetched
        if fetched is not None and is_other:
            fetched = fetched.signed(self.resources.keyring, generation, replayed.place.sequence, replayed.chain)
            await self.resources.store.mark(registered.hash, 0, 1)
        if self.resources.row_log is not None:
            if generation != registered.generation + 1:
                raise StaleModelError("Somebody else was given a generation since the look into the log.")
            ttl_s, now_s = self.settings.idempotency_ttl_s, time.time()
            answered = known(past.calls, past.line)
            await idempotency.remember(self.resources.store.client, registered, generation, answered, ttl_s, now_s)
            failpoints.reach("restore.remembered")
        place, chain = replayed.place, replayed.chain
        installed = await self.resources.store.install(
            to_install(registered, generation, fetched, is_saved=not is_other, sequence=place.sequence, chain=chain)
        )
        failpoints.reach("restore.installed")
        if not installed:
            return RestoreResult(registered.hash, document, live=True, corrupt=past.corrupt)
        _tell(registered.hash, generation, fetched, replayed)
        left_out = [one.request.payload for one in replayed.left_out]
        await idempotency.put_again(self.resources.store.client, registered.hash, generation, left_out)
        saved = await self.saved(registered.hash) if is_other else True
        return RestoreResult(registered.hash, document, False, past.corrupt, saved, replayed.rows, place.sequence)

    async def _is_older(self, registered: RegistryEntry, wanted: RestoreRequest, document: Document | None) -> bool:
        """Tell whether a restore of this snapshot forgets something, so that it has to become the newest."""
        if document is None or not wanted.is_named:
            return False
        newest = await self.resources.registry.newest(registered.hash, registered.born)
        return self.resources.row_log is not None or newest is None or _place(newest) != _place(document)

    async def past(
        self, registered: RegistryEntry, wanted: RestoreRequest, first: Document | None = None, view: View | None = None
    ) -> ReplaySource:
        """Read the snapshot that is wanted, and what was logged since, up to the time that is wanted.

        Where the newest is damaged an older one will do, with more to be learned again; not one of what the model has
        forgotten since.
        """
        if self.resources.row_log is None or wanted.version is not None:
            fetched, corrupt = await self._find(registered, wanted, first)
            return ReplaySource(fetched, corrupt, place_of(registered, None if fetched is None else fetched.document))
        if view is None:
            # In this order: what a later snapshot covers may not be found.
            view, first = await self.look(), None
        first = first or await self.find(registered, wanted)
        calls, line = await logged(registered, wanted.at, first, view, first if wanted.is_named else None)
        fetched, corrupt = await self._find(registered, wanted, first, line)
        document = None if fetched is None else fetched.document
        if corrupt:
            calls, _ = await logged(registered, wanted.at, first, view, document)
        start = place_of(registered, document)
        return ReplaySource(fetched, corrupt, start, calls, line, spans_after(line, start) or ())

    async def ahead(
        self,
        registered: RegistryEntry,
        wanted: RestoreRequest,
        document: Document | None,
        live: Model | None,
        view: View | None,
    ) -> tuple[int, bool]:
        """Tell how many rows a restore would learn again, and whether a `live` model is what it would become."""
        start = place_of(registered, document)
        calls, line = await logged(
            registered,
            wanted.at,
            document,
            None if wanted.version is not None else view,
            document if wanted.is_named else None,
        )
        requests = ReplaySource(None, 0, start, calls, line, spans_after(line, start) or ()).requests(live)
        rows = sum(one.rows for one in requests)
        if live is None:
            return rows, False
        if not requests:
            return 0, document is not None and await self.is_at(live, document)
        # It is that, or has gone there and learned nothing since.
        last, link = requests[-1], registered.links.get(live.generation)
        is_at = (last.generation, last.sequence) == (live.generation, live.learned)
        return rows, is_at or link == Link(live.origin, live.learned, last.generation, last.sequence)

    async def go_back(
        self,
        registered: RegistryEntry,
        wanted: RestoreRequest,
        live: Model,
        *,
        follow: bool,
        first: Document | None = None,
        view: View | None = None,
    ) -> RestoreResult:
        """Put a snapshot in the place of the model that is `live`; what waits to be learned is learned on top of it.

        Where a time is wanted, what was logged from then to that time comes before. With `follow` also where it has
        learned since, as long as it is of the same generation.

        Raises
        ------
        StaleModelError
            If it is not what it was any more.
        NotFoundError, RuntimeMismatchError, UnavailableError
            As of :meth:`bring_back`.
        """
        past = await self.past(registered, wanted, first, view)
        if past.fetched is None:
            raise wanted.missing(registered.hash)
        replayed = await self.put_in_place(registered, live, past, follow=follow)
        _tell(registered.hash, 0, replayed.fetched, replayed)
        saved, document = await self.saved(registered.hash), past.fetched.document
        return RestoreResult(
            registered.hash, document, False, past.corrupt, saved, replayed.rows, replayed.place.sequence
        )

    async def put_back(self, model_hash: str, wanted: RestoreRequest) -> PreviousState:
        """Restore one model for somebody who named it: where an older snapshot is named, over a live one too.

        Raises
        ------
        NotFoundError
            If there is no such model or snapshot.
        NotConfirmedError
            If the newest snapshot is wanted, and the live model has learned since.
        """
        registered = await self.resources.registry.find(model_hash)
        if registered is None:
            raise NotFoundError(f"There is no model {model_hash}.")
        live = await self.resources.store.describe(model_hash)
        if live is not None and live.generation < registered.born:
            live = None
        view = await self.look()
        document = await self.find(registered, wanted)
        if document is None and wanted.is_named:
            raise wanted.missing(model_hash)
        if live is None:
            restored = await self.bring_back(registered, wanted, document, view)
            return PreviousState(
                restored.document, not restored.live, restored.corrupt, 0, restored.replayed, restored.sequence
            )
        _, is_at = await self.ahead(registered, wanted, document, live, view if wanted.is_named else None)
        if is_at and document is not None:
            return PreviousState(document, restored=False, sequence=int(document["sequence"]))
        if document is None or not wanted.is_named:
            raise NotConfirmedError(
                f"The model {model_hash} is live at version {live.version} and has learned since its newest snapshot; "
                "name the version or time to go back to."
            )
        restored = await self.go_back(registered, wanted, live, follow=True, first=document, view=view)
        went_to = restored.document or document
        forgotten = max(live.rows_seen - int(went_to["rows_seen"]) - restored.replayed, 0)
        return PreviousState(went_to, True, restored.corrupt, forgotten, restored.replayed, restored.sequence)

    async def put_in_place(
        self, registered: RegistryEntry, live: Model, past: ReplaySource, *, follow: bool
    ) -> Replayed:
        """Let a live model be what is in the past, as its next generation; StaleModelError where it has changed."""
        now: Model | None = live
        generation, replayed = 0, None
        for _ in range(TRIES if follow else 1):
            if now is None or now.generation != live.generation:
                break
            requests = past.requests(now)
            if replayed is None or replayed.requests != len(requests):
                replayed = await self._replay(registered, past, requests)
            link = None if self.resources.row_log is None else replayed.link(now.origin, now.learned)
            if not generation:
                generation = await self.next_generation(registered, link)
            elif link is not None:
                await self.resources.registry.set_link(registered.hash, generation, link)
            if replayed.fetched is None:
                raise UnavailableError(f"Nothing that was logged of {live.hash} could be learned again.")
            signed = replayed.fetched.signed(self.resources.keyring, generation, now.learned, await self._chain(now))
            if await self.resources.store.rewind(now, to_rewind(signed, live.hash)):
                failpoints.reach("restore.rewound")
                return replace(replayed, fetched=signed)
            now = await self.resources.store.describe(live.hash)
        became = "is gone" if now is None else f"is at version {now.version} of generation {now.generation} by now"
        raise StaleModelError(
            f"The model {live.hash} was at version {live.version} of generation {live.generation} when it was looked "
            f"at, and {became}; nothing was changed."
        )

    async def find(self, registered: RegistryEntry, wanted: RestoreRequest) -> Document | None:
        """Find the document of the snapshot that is wanted, without a look at its blob."""
        return await self.resources.registry.newest(registered.hash, registered.born, wanted.at, wanted.version)

    async def is_at(self, live: Model, document: Document) -> bool:
        """Tell whether a live model has learned just what is in a snapshot, under whatever generation."""
        if live.digest == document["sha256"]:
            return True
        if (live.version, live.rows_seen) != (document["version"], document["rows_seen"]):
            return False
        found = await self.resources.store.bundle(live.hash)
        data = await asyncio.to_thread(self.resources.storage.get, path_of(document))
        if found is None or data is None or found[0].digest != live.digest:
            return False
        try:
            here, there = (self.resources.keyring.open(each, envelope.BUNDLE)[1] for each in (found[1], data))
        except EnvelopeError:
            return False
        return here == there

    async def _find(
        self, registered: RegistryEntry, wanted: RestoreRequest, first: Document | None, line: Sequence[Span] = ()
    ) -> tuple[SnapshotBundle | None, int]:
        """Read the newest good snapshot that fits, `first` first; count those that were not good."""

        def fits(document: Document) -> bool:
            return not line or spans_after(line, place_of(registered, document)) is not None

        return await SnapshotReader(self.resources).find(registered, wanted, first, fits)

    async def _replay(
        self, registered: RegistryEntry, past: ReplaySource, requests: Sequence[LoggedRequest]
    ) -> Replayed:
        replayed = await self.replayer.learn(registered, past.fetched, past.start, requests)
        failpoints.reach("restore.replayed")
        return replayed

    async def next_generation(self, registered: RegistryEntry, link: Link | None) -> int:
        """Take the next generation of a model; NotFoundError where it was deleted."""
        generation = await self.generations.next(registered, link)
        if generation is None:
            raise NotFoundError(f"The model {registered.hash} was deleted meanwhile.")
        failpoints.reach("restore.numbered")
        return generation

    async def _chain(self, live: Model) -> str:
        """Chain of the last request that a live model has learned; '' where that is not known."""
        found = await self.resources.store.bundle(live.hash)
        if found is None:
            return ""
        try:
            header, _ = self.resources.keyring.open(found[1], envelope.BUNDLE)
        except EnvelopeError:
            return ""
        return header.chain if header.sequence == live.learned else ""

    async def saved(self, model_hash: str) -> bool:
        """Make what was restored the newest snapshot; False where that is left to the next pass."""
        try:
            await save(self.resources, model_hash)
        except (UnavailableError, ConflictError) as error:
            log.warning("restored_not_saved", hash=model_hash, reason=str(error))
            return False
        return True


async def restore(resources: Resources, model_hash: str, at: float | None = None) -> RestoreResult:
    """Put a model back into Redis from its newest good snapshot (none later than `at`, seconds), if it is not live.

    Raises
    ------
    NotFoundError
        If no such model is registered, or it has no snapshot as old as `at`.
    RuntimeMismatchError, UnavailableError
        As of :meth:`Restorer.bring_back`.
    """
    registered = await resources.registry.find(model_hash)
    if registered is None:
        raise NotFoundError(f"There is no model {model_hash}.")
    return await Restorer(resources).bring_back(registered, RestoreRequest(at))


def _place(document: Document) -> tuple[int, int]:
    return document["generation"], document["version"]


def _tell(model_hash: str, generation: int, fetched: SnapshotBundle | None, replayed: Replayed) -> None:
    log.info(
        "model_restored",
        hash=model_hash,
        generation=generation if fetched is None else fetched.header.generation,
        version=0 if fetched is None else fetched.header.version,
        rows_seen=0 if fetched is None else fetched.header.rows_seen,
        replayed=replayed.rows,
        left_out=len(replayed.left_out),
    )
