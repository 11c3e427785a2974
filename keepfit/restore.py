"""Restores: a model put back into Redis from a snapshot, where none is live, or in a live one's place.

Owns the order of the steps::

    committed document ─▶ blob: size, SHA-256, signature, versions, one predict ─▶ new generation
        nothing is live, the newest:  install it as it is
        nothing is live, an older:    sign it for the new generation ─▶ mark, install ─▶ save
        one is live, and asked for:   sign it for the new generation ─▶ mark, rewind ─▶ save

Never replaces a live model but by a script that finds it as the caller saw it. Invariants: a damaged snapshot is passed
over for the one before, and said; an older snapshot that was restored is the newest from then on. Data comes from
storage and MongoDB, and goes to Redis (`docs/restore.md`).
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from keepfit import envelope, faults
from keepfit.envelope import Keyring
from keepfit.errors import (
    ConflictError,
    EnvelopeError,
    NotAgreedError,
    NotFoundError,
    RuntimeMismatchError,
    StaleModelError,
    UnavailableError,
    UnknownKeyError,
)
from keepfit.fetched import Fetched, check, to_install, to_rewind
from keepfit.generations import Generations
from keepfit.history import Document, History, Registered
from keepfit.saving import path_of, save
from keepfit.storage import Storage
from keepfit.store import Model, Store

log = structlog.get_logger(__name__)

# How often a model that learns on while it is to go back is looked at again.
TRIES = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which snapshot: the newest not later than `at` (seconds since 1970), the newest of a `version`, or of all."""

    at: float | None = None
    version: int | None = None

    @property
    def is_named(self) -> bool:
        """Tell whether another one than the newest may be meant."""
        return self.at is not None or self.version is not None

    def missing(self, model_hash: str) -> NotFoundError:
        """Make the error for a model that has no such snapshot."""
        if self.version is not None:
            return NotFoundError(f"The model {model_hash} has no snapshot of version {self.version} by then.")
        return NotFoundError(f"The model {model_hash} has no snapshot that old.")


NEWEST = Wanted()


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: `document` is None where the model began anew from its recipe; `live` where it was there.

    `saved` is False where an older snapshot was restored, and it could not be made the newest yet.
    """

    hash: str
    document: Document | None
    live: bool
    corrupt: int
    saved: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True)
class PutBack:
    """What was put back: a snapshot's `document`, None where the model began anew.

    `restored` is False where just that was live already.
    """

    document: Document | None
    restored: bool
    corrupt: int = 0
    rows_forgotten: int = 0


@dataclass(frozen=True, slots=True)
class Restorer:
    """All that restores need."""

    store: Store
    history: History
    storage: Storage
    keyring: Keyring
    generations: Generations = field(init=False)

    def __post_init__(self) -> None:
        """Make what gives out generations to all that are restored at once."""
        object.__setattr__(self, "generations", Generations(self.history))

    async def bring_back(
        self, registered: Registered, wanted: Wanted = NEWEST, first: Document | None = None
    ) -> Restored:
        """Put a model that is not live into Redis; `first` is the document that was found for it, if one was.

        Raises
        ------
        NotFoundError
            If the model has no snapshot as it is wanted, or was deleted meanwhile.
        RuntimeMismatchError
            If the snapshot was written by versions this process cannot load.
        UnavailableError
            If a part is away, or none of the model's snapshots is good.
        """
        live = await self.store.describe(registered.hash)
        if live is not None and live.generation >= registered.born:
            return Restored(registered.hash, None, live=True, corrupt=0)
        fetched, corrupt = await self._find(registered, wanted, first)
        is_older = False
        if fetched is not None and wanted.is_named:
            newest = await self.history.newest(registered.hash, registered.born)
            is_older = newest is None or _place(newest) != _place(fetched.document)
        generation = await self._next_generation(registered)
        if fetched is not None and is_older:
            fetched = fetched.signed(self.keyring, generation, fetched.header.sequence, fetched.header.chain)
            await self.store.mark(registered.hash, 0, 1)
        installed = await self.store.install(to_install(registered, generation, fetched, is_saved=not is_older))
        faults.reach("restore.installed")
        document = None if fetched is None else fetched.document
        if installed:
            _tell(registered.hash, generation, document)
        saved = await self._saved(registered.hash) if is_older and installed else True
        return Restored(registered.hash, document, live=not installed, corrupt=corrupt, saved=saved)

    async def go_back(
        self, registered: Registered, wanted: Wanted, live: Model, *, follow: bool, first: Document | None = None
    ) -> Restored:
        """Put a snapshot in the place of the model that is `live`; what waits to be learned is learned on top of it.

        With `follow` also where it has learned since, as long as it is of the same generation.

        Raises
        ------
        StaleModelError
            If it is not what it was any more.
        NotFoundError, RuntimeMismatchError, UnavailableError
            As of :meth:`bring_back`.
        """
        fetched, corrupt = await self._find(registered, wanted, first)
        if fetched is None:
            raise wanted.missing(registered.hash)
        generation = await self._next_generation(registered)
        await self.put_in_place(live, fetched, generation, follow=follow)
        _tell(registered.hash, generation, fetched.document)
        return Restored(
            registered.hash, fetched.document, live=False, corrupt=corrupt, saved=await self._saved(registered.hash)
        )

    async def put_back(self, model_hash: str, wanted: Wanted) -> "PutBack":
        """Restore one model for somebody who named it: where an older snapshot is named, over a live one too.

        Raises
        ------
        NotFoundError
            If there is no such model or snapshot.
        NotAgreedError
            If the newest snapshot is wanted, and the live model has learned since.
        """
        registered = await self.history.registered(model_hash)
        if registered is None:
            raise NotFoundError(f"There is no model {model_hash}.")
        live = await self.store.describe(model_hash)
        if live is not None and live.generation < registered.born:
            live = None
        document = await self.find(registered, wanted)
        if document is None and wanted.is_named:
            raise wanted.missing(model_hash)
        if live is None:
            restored = await self.bring_back(registered, wanted, document)
            return PutBack(restored.document, restored=not restored.live, corrupt=restored.corrupt)
        if document is not None and await self.is_at(live, document):
            return PutBack(document, restored=False)
        if document is None or not wanted.is_named:
            raise NotAgreedError(
                f"The model {model_hash} is live at version {live.version} and has learned since its newest snapshot; "
                "name the version or time to go back to."
            )
        restored = await self.go_back(registered, wanted, live, follow=True, first=document)
        went_to = restored.document or document
        return PutBack(
            restored.document,
            restored=True,
            corrupt=restored.corrupt,
            rows_forgotten=max(live.rows_seen - int(went_to["rows_seen"]), 0),
        )

    async def put_in_place(self, live: Model, fetched: Fetched, generation: int, *, follow: bool) -> None:
        """Let a live model be what was fetched, as `generation`; raises StaleModelError where it has changed."""
        now: Model | None = live
        for _ in range(TRIES if follow else 1):
            if now is None or now.generation != live.generation:
                break
            signed = fetched.signed(self.keyring, generation, now.learned, await self._chain(now))
            if await self.store.rewind(now, to_rewind(signed, live.hash)):
                faults.reach("restore.rewound")
                return
            now = await self.store.describe(live.hash)
        became = "is gone" if now is None else f"is at version {now.version} of generation {now.generation} by now"
        raise StaleModelError(
            f"The model {live.hash} was at version {live.version} of generation {live.generation} when it was looked "
            f"at, and {became}; nothing was changed."
        )

    async def find(self, registered: Registered, wanted: Wanted) -> Document | None:
        """Find the document of the snapshot that is wanted, without a look at its blob."""
        return await self.history.newest(registered.hash, registered.born, wanted.at, wanted.version)

    async def is_at(self, live: Model, document: Document) -> bool:
        """Tell whether a live model has learned just what is in a snapshot, under whatever generation."""
        if live.digest == document["sha256"]:
            return True
        if (live.version, live.rows_seen) != (document["version"], document["rows_seen"]):
            return False
        found = await self.store.bundle(live.hash)
        data = await asyncio.to_thread(self.storage.get, path_of(document))
        if found is None or data is None or found[0].digest != live.digest:
            return False
        try:
            here, there = (self.keyring.open(each, envelope.BUNDLE)[1] for each in (found[1], data))
        except EnvelopeError:
            return False
        return here == there

    async def _find(self, registered: Registered, wanted: Wanted, first: Document | None) -> tuple[Fetched | None, int]:
        """Read the newest good snapshot that fits, `first` first; count those that were not good."""
        corrupt = 0
        if first is not None:
            try:
                return await self._fetch(registered, first), corrupt
            except EnvelopeError as error:
                corrupt += await self._put_by(first, error)
        documents = self.history.snapshots(registered.hash, registered.born, wanted.at, version=wanted.version)
        async with aclosing(documents):
            async for document in documents:
                try:
                    return await self._fetch(registered, document), corrupt
                except EnvelopeError as error:
                    corrupt += await self._put_by(document, error)
        if corrupt:
            raise UnavailableError(
                f"None of the {corrupt} snapshots of {registered.hash} is good; see the log for each reason."
            )
        if wanted.is_named:
            raise wanted.missing(registered.hash)
        return None, 0

    async def _put_by(self, document: Document, error: EnvelopeError) -> int:
        """Mark a snapshot that is not good; count 1."""
        if isinstance(error, RuntimeMismatchError | UnknownKeyError):
            # This process is not set up for a good snapshot; marking it would spoil it for those that are.
            raise error
        if not await self.history.mark_corrupt(document):
            # It was let go for a newer one while it was read; that is not yet among those that are looked through.
            raise UnavailableError(f"The snapshots of {document['hash']} have just changed; try again.") from error
        log.warning("snapshot_corrupt", hash=document["hash"], version=document["version"], reason=str(error))
        return 1

    async def _fetch(self, registered: Registered, document: Document) -> Fetched:
        fetched = await asyncio.to_thread(self._read, registered, document)
        faults.reach("restore.fetched")
        return fetched

    def _read(self, registered: Registered, document: Document) -> Fetched:
        """Read a snapshot's blob and check all that can be checked without installing it."""
        path = path_of(document)
        data = self.storage.get(path)
        if data is None:
            if document["uri"] != self.storage.uri(path):
                # It was saved elsewhere: a wrong setting here must not spoil a good document.
                raise UnavailableError(
                    f"The snapshot is at {document['uri']}, and {self.storage.url} does not have it."
                )
            raise EnvelopeError("the blob is missing")
        if len(data) != document["size_bytes"] or envelope.digest_of(data) != document["sha256"]:
            raise EnvelopeError("the blob is not the one that was saved")
        fetched = check(data, self.keyring, registered, document)
        if (fetched.header.generation, fetched.header.version) != _place(document):
            raise EnvelopeError("the blob holds another version than its document names")
        return fetched

    async def _next_generation(self, registered: Registered) -> int:
        generation = await self.generations.next(registered)
        if generation is None:
            raise NotFoundError(f"The model {registered.hash} was deleted meanwhile.")
        faults.reach("restore.numbered")
        return generation

    async def _chain(self, live: Model) -> str:
        """Chain of the last request that a live model has learned; '' where its bundle does not tell."""
        found = await self.store.bundle(live.hash)
        if found is None:
            return ""
        try:
            header, _ = self.keyring.open(found[1], envelope.BUNDLE)
        except EnvelopeError:
            return ""
        return header.chain if header.sequence == live.learned else ""

    async def _saved(self, model_hash: str) -> bool:
        """Make what was restored the newest snapshot; False where that is left to the next pass."""
        try:
            await save(self.store, self.history, self.storage, self.keyring, model_hash)
        except (UnavailableError, ConflictError) as error:
            log.warning("restored_not_saved", hash=model_hash, reason=str(error))
            return False
        return True


async def restore(
    store: Store,
    history: History,
    storage: Storage,
    keyring: Keyring,
    model_hash: str,
    at: float | None = None,
) -> Restored:
    """Put a model back into Redis from its newest good snapshot (none later than `at`, seconds), if it is not live.

    Raises
    ------
    NotFoundError
        If no such model is registered, or it has no snapshot as old as `at`.
    RuntimeMismatchError, UnavailableError
        As of :meth:`Restorer.bring_back`.
    """
    registered = await history.registered(model_hash)
    if registered is None:
        raise NotFoundError(f"There is no model {model_hash}.")
    return await Restorer(store, history, storage, keyring).bring_back(registered, Wanted(at))


def _place(document: Document) -> tuple[int, int]:
    return document["generation"], document["version"]


def _tell(model_hash: str, generation: int, document: Document | None) -> None:
    log.info(
        "model_restored",
        hash=model_hash,
        generation=generation,
        version=document["version"] if document else 0,
        rows_seen=document["rows_seen"] if document else 0,
    )
