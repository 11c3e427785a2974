"""Snapshots: one bundle restored (how it is saved is :mod:`keepfit.saving`).

Owns the order of the steps::

    register ─▶ newest committed document ─▶ blob: size, SHA-256, signature, versions, one predict ─▶ install

Never restores over a live model. Invariant: a damaged snapshot is passed over for the one before, and said. Data comes
from storage and MongoDB and goes to Redis.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec
import structlog

from keepfit import envelope, faults, sealing
from keepfit.bundle import Bundle
from keepfit.envelope import Header, Keyring
from keepfit.errors import (
    EnvelopeError,
    NotFoundError,
    RuntimeMismatchError,
    UnavailableError,
    UnknownKeyError,
)
from keepfit.history import NOTED, Document, History, Registered
from keepfit.recipe import from_text
from keepfit.saving import path_of, save
from keepfit.storage import Storage
from keepfit.store import Install, Store

log = structlog.get_logger(__name__)


__all__ = ["Restored", "path_of", "restore", "save"]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: `document` is None where the model began anew from its recipe; `live` where it was there."""

    hash: str
    document: Document | None
    live: bool
    corrupt: int


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
    RuntimeMismatchError
        If the newest snapshot was written by versions this process cannot load.
    UnavailableError
        If a part is away, or none of the model's snapshots is good.
    """
    registered = await history.registered(model_hash)
    if registered is None:
        raise NotFoundError(f"There is no model {model_hash}.")
    live = await store.describe(model_hash)
    if live is not None and live.generation >= registered.born:
        return Restored(model_hash, None, live=True, corrupt=0)
    corrupt = 0
    async with aclosing(history.snapshots(model_hash, registered.born, at)) as documents:
        async for document in documents:
            try:
                data, header, bundle = await _fetch(storage, keyring, registered, document)
            except (RuntimeMismatchError, UnknownKeyError):
                # This process is not set up for a good snapshot; marking it would spoil it for those that are.
                raise
            except EnvelopeError as error:
                if not await history.mark_corrupt(document):
                    # It was let go for a newer one while it was read; that is not yet among `documents`.
                    raise UnavailableError(f"The snapshots of {model_hash} have just changed; try again.") from error
                corrupt += 1
                log.warning("snapshot_corrupt", hash=model_hash, version=document["version"], reason=str(error))
                continue
            return await _install(store, history, registered, corrupt, (document, header, data, bundle))
    if corrupt:
        raise UnavailableError(f"None of the {corrupt} snapshots of {model_hash} is good; see the log for each reason.")
    if at is not None:
        raise NotFoundError(f"The model {model_hash} has no snapshot that old.")
    return await _install(store, history, registered, corrupt)


async def _fetch(
    storage: Storage, keyring: Keyring, registered: Registered, document: Document
) -> tuple[bytes, Header, Bundle]:
    """Read a snapshot's blob and check all that can be checked without installing it."""
    path = path_of(document)
    data = await asyncio.to_thread(storage.get, path)
    if data is None:
        if document["uri"] != storage.uri(path):
            # It was saved elsewhere: a wrong setting here must not spoil a good document.
            raise UnavailableError(f"The snapshot is at {document['uri']}, and {storage.url} does not have it.")
        raise EnvelopeError("the blob is missing")
    if len(data) != document["size_bytes"] or envelope.digest_of(data) != document["sha256"]:
        raise EnvelopeError("the blob is not the one that was saved")
    recipe = from_text(registered.recipe_text)
    header, bundle = await asyncio.to_thread(sealing.unseal, data, keyring, recipe, registered.hash)
    if (header.generation, header.version) != (document["generation"], document["version"]):
        raise EnvelopeError("the blob holds another version than its document names")
    await asyncio.to_thread(sealing.try_predict, bundle)
    faults.reach("restore.fetched")
    return data, header, bundle


async def _install(
    store: Store,
    history: History,
    registered: Registered,
    corrupt: int,
    fetched: tuple[Document, Header, bytes, Bundle] | None = None,
) -> Restored:
    generation = await history.next_generation(registered.hash, registered.born)
    if generation is None:
        raise NotFoundError(f"The model {registered.hash} was deleted meanwhile.")
    faults.reach("restore.numbered")
    new = Install(registered.hash, registered.metadata_text, registered.recipe_text, generation, born=registered.born)
    document = None
    if fetched is not None:
        document, header, data, bundle = fetched
        new = replace(
            new,
            version=header.version,
            rows_seen=header.rows_seen,
            sequence=header.sequence,
            chain=header.chain,
            digest=envelope.digest_of(data),
            metrics_text=msgspec.json.encode(document["metrics"]).decode(),
            snapshot_text=msgspec.json.encode({name: document[name] for name in NOTED}).decode(),
            bundle=data,
            width=bundle.width,
            changed=bundle.changed,
        )
    installed = await store.install(new)
    faults.reach("restore.installed")
    log.info(
        "model_restored",
        hash=registered.hash,
        generation=generation,
        version=new.version,
        rows_seen=new.rows_seen,
        installed=installed,
    )
    return Restored(registered.hash, document, live=not installed, corrupt=corrupt)
