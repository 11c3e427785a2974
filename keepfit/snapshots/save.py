"""Saving: bundles of live models, as they are in Redis, into storage and history.

Owns the order of the steps, which is that of each model, and takes many models through them together::

    read bundle ─▶ history document "pending" ─▶ blob, looked at ─▶ "committed" ─▶ note it in Redis

Never unpickles and never stops learning. Invariants: a committed document never points to a missing or damaged blob
(intent first, `docs/snapshots.md`); each attempt writes to a path of its own; one model's trouble is not the others'.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import msgspec

from keepfit.backends.blobs import Entry, Storage
from keepfit.errors import ConflictError, UnavailableError
from keepfit.history import NOTED, Document, Registry
from keepfit.observability import failpoints
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.store.models import Model, Store
from keepfit.store.retained import RetentionNote

# So many blobs in a row that the storage did not take tell that it is away for all.
AWAY_COUNT = 8

# What came of a model: its document; None where there was nothing new to save, or another snapshotter saved it; or why
# it was not saved.
Outcome = Document | None | Exception


def path_of(document: Document) -> str:
    """Blob's path below the storage's URL; built from the document's checked parts, never read from it."""
    path = f"{document['hash']}/{document['generation']}/{document['version']}-{document['sha256']}"
    attempt = document.get("attempt")
    # Older versions had one path for all attempts at a version.
    return path if attempt is None else f"{path}-{attempt}"


@dataclass(frozen=True, slots=True)
class SaveLimits:
    """What bounds how many blobs are written at once, and the threads that do it (None: asyncio's own)."""

    gate: asyncio.Semaphore
    threads: Executor | None = None


@dataclass(slots=True)
class _Batch:
    """Models on their way through the steps together, and what has come of those that have left it."""

    model: dict[str, Model] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    chain: dict[str, str] = field(default_factory=dict)
    document: dict[str, Document] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)


async def save(store: Store, history: Registry, storage: Storage, keyring: Keyring, model_hash: str) -> Document | None:
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
    hands = SaveLimits(asyncio.Semaphore(1))
    outcome = (await save_many(store, history, storage, keyring, [model_hash], hands))[model_hash]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def save_many(
    store: Store,
    history: Registry,
    storage: Storage,
    keyring: Keyring,
    hashes: Sequence[str],
    hands: SaveLimits,
) -> dict[str, Outcome]:
    """Do what :func:`save` does for each of many models, whose bundles are in memory together.

    What it would raise is the model's outcome. Models without outcome were not tried: the storage is away.
    """
    batch = _Batch()
    try:
        await _read(batch, store, history, keyring, storage, hashes)
        await _begin(batch, store, history)
        await _put(batch, storage, hands)
        await _commit(batch, store, history, storage)
    except UnavailableError as error:
        for model_hash in hashes:
            batch.outcomes.setdefault(model_hash, error)
    return batch.outcomes


async def _read(
    batch: _Batch, store: Store, history: Registry, keyring: Keyring, storage: Storage, hashes: Sequence[str]
) -> None:
    """Read states and bundles, and check the signatures."""
    for model_hash, found in zip(hashes, await store.bundles(hashes), strict=True):
        if isinstance(found, Exception):
            batch.outcomes[model_hash] = found
        elif found is None:
            # The mark comes before the commit that it announces, so it stays while there may be one under way.
            if await history.registered(model_hash) is None:
                await store.forget_change(model_hash)
            batch.outcomes[model_hash] = None
        else:
            try:
                document, chain = _document(*found, keyring, storage)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one model is not with the others
                batch.outcomes[model_hash] = error
            else:
                batch.model[model_hash], batch.data[model_hash] = found
                batch.document[model_hash], batch.chain[model_hash] = document, chain
    failpoints.reach("snapshot.read")


def _document(model: Model, data: bytes, keyring: Keyring, storage: Storage) -> tuple[Document, str]:
    """Make the history document of a bundle; return it with the chain of the last request that it has learned."""
    header, _ = keyring.open(data, envelope.BUNDLE)
    document: Document = {
        "type": model.metadata["type"],
        "timestamp": time.time(),
        "hash": model.hash,
        "metadata": model.metadata,
        # The bundle's own: one that was restored and has learned nothing since is in storage already.
        "generation": header.generation,
        "version": header.version,
        "sequence": header.sequence,
        # Of a bundle from before its model's sequences began no more is known.
        "origin": min(header.generation, model.origin),
        "rows_seen": header.rows_seen,
        "metrics": model.metrics,
        "sha256": envelope.digest_of(data),
        "size_bytes": len(data),
        "runtime": header.runtime,
        # A path that nobody else writes, now or later: what is deleted there can be nothing but this.
        "attempt": uuid.uuid4().hex[:16],
    }
    if model.changed:
        # A text, because its names may be anything that a label is.
        document["changed"] = msgspec.json.encode(model.changed).decode()
    document["uri"] = storage.uri(path_of(document))
    return document, header.chain


async def _begin(batch: _Batch, store: Store, history: Registry) -> None:
    """Write the intents; models that are saved already are told so, and leave the batch."""
    documents = list(batch.document.values())
    if not documents:
        return
    saved = []
    for document, committed in zip(documents, await history.begin_many(documents), strict=True):
        if committed is None:
            continue
        model_hash = document["hash"]
        if committed["sha256"] == document["sha256"]:
            batch.outcomes[model_hash] = None
            saved.append(committed)
        else:
            batch.outcomes[model_hash] = ConflictError(
                f"Version {document['version']} of {model_hash} is in the history with another bundle: Redis lost what "
                "it had learned. The model is saved again once it has learned more than that."
            )
        del batch.document[model_hash]
    await _note(batch, store, saved)
    failpoints.reach("snapshot.begun")


async def _put(batch: _Batch, storage: Storage, hands: SaveLimits) -> None:
    """Write the blobs; a model whose blob is not there leaves the batch."""
    loop = asyncio.get_running_loop()
    in_a_row = 0

    async def one(model_hash: str) -> None:
        nonlocal in_a_row
        async with hands.gate:
            if in_a_row >= AWAY_COUNT:
                del batch.document[model_hash]
                return
            path = path_of(batch.document[model_hash])
            try:
                await loop.run_in_executor(hands.threads, storage.put, path, batch.data[model_hash])
            except Exception as error:  # noqa: BLE001 - the same
                batch.outcomes[model_hash] = error
                del batch.document[model_hash]
                in_a_row += isinstance(error, UnavailableError)
            else:
                in_a_row = 0
                failpoints.reach("snapshot.stored")

    async with asyncio.TaskGroup() as group:
        for model_hash in list(batch.document):
            group.create_task(one(model_hash))


async def _commit(batch: _Batch, store: Store, history: Registry, storage: Storage) -> None:
    """Turn intents into committed documents, and tell the models of them."""
    documents = list(batch.document.values())
    if not documents:
        return
    ours = await history.commit_many(documents)
    failpoints.reach("snapshot.committed")
    kept = [document for document, mine in zip(documents, ours, strict=True) if mine]
    await _note(batch, store, kept)
    failpoints.reach("snapshot.noted")
    batch.outcomes |= dict.fromkeys(batch.document) | {document["hash"]: document for document in kept}
    # Another has begun the version anew, or it was given up for abandoned: no document names what was written here.
    lost = [Entry(path_of(document)) for document, mine in zip(documents, ours, strict=True) if not mine]
    if lost:
        await asyncio.to_thread(storage.delete, lost)


async def _note(batch: _Batch, store: Store, saved: Sequence[Document]) -> None:
    await store.note_snapshots(
        [
            RetentionNote(
                model.hash,
                model.generation,
                model.learned,
                model.digest,
                model.kept,
                batch.chain[model.hash],
                (document["generation"], document["version"]),
                {name: document[name] for name in NOTED},
            )
            for model, document in ((batch.model[document["hash"]], document) for document in saved)
        ]
    )
