"""Snapshots: one bundle saved, one bundle restored.

Owns the order of the steps::

    save:    read bundle ─▶ history document "pending" ─▶ blob, looked at ─▶ "committed" ─▶ note it in Redis
    restore: register ─▶ newest committed document ─▶ blob: size, SHA-256, signature, versions, one predict ─▶ install

Never restores over a live model. Invariants: a committed document never points to a missing or damaged blob (intent
first, `docs/snapshots.md`); a damaged snapshot is passed over for the one before, and said. Data comes from Redis and
goes to storage and MongoDB, and back.
"""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec
import structlog

from keepfit import bundle as bundles
from keepfit import envelope, faults
from keepfit.envelope import Header, Keyring
from keepfit.errors import (
    ConflictError,
    EnvelopeError,
    NotFoundError,
    RuntimeMismatchError,
    UnavailableError,
    UnknownKeyError,
)
from keepfit.history import NOTED, Document, History, Registered
from keepfit.recipe import from_text
from keepfit.storage import Storage
from keepfit.store import Install, Store

log = structlog.get_logger(__name__)


def path_of(document: Document) -> str:
    """Blob's path below the storage's URL; built from the document's checked parts, never read from it."""
    return f"{document['hash']}/{document['generation']}/{document['version']}-{document['sha256']}"


async def save(store: Store, history: History, storage: Storage, keyring: Keyring, model_hash: str) -> Document | None:
    """Save the live bundle of a model, if it is not saved yet.

    Returns
    -------
    document
        The history document, or None where there was nothing new to save or another snapshotter saved it.

    Raises
    ------
    UnavailableError
        If Redis, MongoDB or the storage is away. Saving again later is right, whatever was done until then.
    EnvelopeError
        If what is in Redis was not signed by us.
    ConflictError
        If the history has another bundle under this generation and version: Redis lost a tail and learned other rows.
    """
    found = await store.bundle(model_hash)
    if found is None:
        # The mark comes before the commit that it announces, so it stays while there may be one under way.
        if await history.registered(model_hash) is None:
            await store.forget_change(model_hash)
        return None
    model, data = found
    header, _ = keyring.open(data, envelope.BUNDLE)
    document: Document = {
        "type": model.metadata["type"],
        "timestamp": time.time(),
        "hash": model_hash,
        "metadata": model.metadata,
        # The bundle's own: one that was restored and has learned nothing since is in storage already.
        "generation": header.generation,
        "version": header.version,
        "sequence": header.sequence,
        "rows_seen": header.rows_seen,
        "metrics": model.metrics,
        "sha256": envelope.digest_of(data),
        "size_bytes": len(data),
        "runtime": header.runtime,
    }
    document["uri"] = storage.uri(path_of(document))
    faults.reach("snapshot.read")
    committed = await history.begin(document)
    if committed is None:
        faults.reach("snapshot.begun")
        await asyncio.to_thread(storage.put, path_of(document), data)
        faults.reach("snapshot.stored")
        if not await history.commit(document):
            return None
        faults.reach("snapshot.committed")
    elif committed["sha256"] != document["sha256"]:
        raise ConflictError(
            f"Version {document['version']} of {model_hash} is in the history with another bundle: Redis lost what it "
            "had learned. The model is saved again once it has learned more than that."
        )
    noted = {name: (committed or document)[name] for name in NOTED}
    await store.note_snapshot(model_hash, model.generation, model.version, noted)
    faults.reach("snapshot.noted")
    return None if committed else document


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
                data, header, width = await _fetch(storage, keyring, registered, document)
            except (RuntimeMismatchError, UnknownKeyError):
                # This process is not set up for a good snapshot; marking it would spoil it for those that are.
                raise
            except EnvelopeError as error:
                corrupt += 1
                log.warning("snapshot_corrupt", hash=model_hash, version=document["version"], reason=str(error))
                await history.mark_corrupt(document)
                continue
            return await _install(store, history, registered, corrupt, (document, header, data, width))
    if corrupt:
        raise UnavailableError(f"None of the {corrupt} snapshots of {model_hash} is good; see the log for each reason.")
    if at is not None:
        raise NotFoundError(f"The model {model_hash} has no snapshot that old.")
    return await _install(store, history, registered, corrupt)


async def _fetch(
    storage: Storage, keyring: Keyring, registered: Registered, document: Document
) -> tuple[bytes, Header, int | None]:
    """Read a snapshot's blob and check all that can be checked without installing it; tell the width of its rows."""
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
    header, bundle = await asyncio.to_thread(bundles.unseal, data, keyring, recipe, registered.hash)
    if (header.generation, header.version) != (document["generation"], document["version"]):
        raise EnvelopeError("the blob holds another version than its document names")
    await asyncio.to_thread(bundles.try_predict, bundle)
    faults.reach("restore.fetched")
    return data, header, bundle.width


async def _install(
    store: Store,
    history: History,
    registered: Registered,
    corrupt: int,
    fetched: tuple[Document, Header, bytes, int | None] | None = None,
) -> Restored:
    generation = await history.next_generation(registered.hash, registered.born)
    if generation is None:
        raise NotFoundError(f"The model {registered.hash} was deleted meanwhile.")
    faults.reach("restore.numbered")
    new = Install(registered.hash, registered.metadata_text, registered.recipe_text, generation, born=registered.born)
    document = None
    if fetched is not None:
        document, header, data, width = fetched
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
            width=width,
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
