"""Save bundles of live models, as they are in Redis, to the storage and the history.

Owns the order of the steps for one model, and takes many models through them together::

    read bundle ─▶ history document "pending" ─▶ write and verify blob ─▶ "committed" ─▶ note it in Redis

Never unpickles and never stops learning. Invariants: a committed document never points to a missing or damaged blob
(intent first, `docs/concepts/snapshots.md`); each attempt writes to its own path; a failure of one
model does not affect others.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import msgspec

from keepfit.backends.blobs import Entry, Storage
from keepfit.backends.redis_scripts import Command
from keepfit.errors import ConflictError, StaleModelError, UnavailableError
from keepfit.history import SUMMARY_FIELDS, Document
from keepfit.identity import canonical
from keepfit.observability import failpoints
from keepfit.security import envelope
from keepfit.snapshots.resources import Resources
from keepfit.store import events
from keepfit.store.models import Model
from keepfit.store.retained import RetentionNote

# After this many failed writes in a row the storage counts as unavailable for all models.
UNAVAILABLE_COUNT = 8

# Result for one model: its document; None if nothing changed or another snapshotter saved it; or the error that kept
# it from being saved.
Outcome = Document | None | Exception


def path_of(document: Document) -> str:
    """Return a blob's path below the storage's URL, built from the document's checked fields, never read from it."""
    path = f"{document['hash']}/{document['generation']}/{document['version']}-{document['sha256']}"
    attempt = document.get("attempt")
    # Documents of older releases have one path for all attempts to save a version.
    return path if attempt is None else f"{path}-{attempt}"


@dataclass(frozen=True, slots=True)
class SaveLimits:
    """Bound of how many blobs are written at once, and the threads that write them (None: asyncio's own)."""

    gate: asyncio.Semaphore
    threads: Executor | None = None


@dataclass(slots=True)
class _Batch:
    """Models that go through the steps together, and the outcomes of those that are done.

    All fields are by hash; a model is in `document` until it has an outcome.
    """

    model: dict[str, Model] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    chain: dict[str, str] = field(default_factory=dict)
    document: dict[str, Document] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)


async def save(resources: Resources, model_hash: str) -> Document | None:
    """Save the live bundle of a model, if it is not saved yet.

    Returns
    -------
    document
        The history document, or None if nothing changed since the last snapshot or another snapshotter saved it.

    Raises
    ------
    UnavailableError
        If Redis, MongoDB or the storage is unavailable. Saving can be repeated, whatever was done until then.
    EnvelopeError
        If the bundle in Redis was not signed with one of the keyring's keys.
    ConflictError
        If the history has another bundle under this generation and version: Redis lost its last writes, and the model
        learned other rows since.
    """
    limits = SaveLimits(asyncio.Semaphore(1))
    outcome = (await save_many(resources, [model_hash], limits))[model_hash]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def save_first(resources: Resources, model: Model, data: bytes) -> Document:
    """Save the bundle `data` of a `model` that is not live yet, in a generation of its own; return its document.

    Raises
    ------
    UnavailableError
        If MongoDB or the storage is unavailable. What was written is deleted as abandoned.
    StaleModelError
        If the intent was replaced or aborted meanwhile.
    """
    document, _ = _document(model, data, resources)
    await resources.registry.ensure_indexes()
    if await resources.registry.write_intent(document) is not None:
        raise StaleModelError(f"Another process has saved a first version of {model.hash}.")
    failpoints.reach("upload.begun")
    await asyncio.to_thread(resources.storage.put, path_of(document), data)
    failpoints.reach("upload.stored")
    if not await resources.registry.commit(document):
        raise StaleModelError(f"The snapshot of {model.hash} took so long that it was deleted as abandoned.")
    failpoints.reach("upload.saved")
    return document


async def save_many(resources: Resources, hashes: Sequence[str], limits: SaveLimits) -> dict[str, Outcome]:
    """Save each of many models as :func:`save` does; their bundles are in memory at the same time.

    An error that :func:`save` would raise is the model's outcome. A model without an outcome was not tried, because
    the storage is unavailable.
    """
    batch = _Batch()
    try:
        await _read(batch, resources, hashes)
        await _begin(batch, resources)
        await _put(batch, resources.storage, limits)
        await _commit(batch, resources)
    except UnavailableError as error:
        for model_hash in hashes:
            batch.outcomes.setdefault(model_hash, error)
    return batch.outcomes


async def _read(batch: _Batch, resources: Resources, hashes: Sequence[str]) -> None:
    """Read states and bundles, and check the signatures."""
    for model_hash, found in zip(hashes, await resources.store.bundles(hashes), strict=True):
        if isinstance(found, Exception):
            batch.outcomes[model_hash] = found
        elif found is None:
            # The mark of a change is written before its commit, so it stays while a commit may be under way.
            if await resources.registry.find(model_hash) is None:
                await resources.store.unmark_changed(model_hash)
            batch.outcomes[model_hash] = None
        else:
            try:
                document, chain = _document(*found, resources)
            except Exception as error:  # noqa: BLE001 - an error of one model must not affect the others
                batch.outcomes[model_hash] = error
            else:
                batch.model[model_hash], batch.data[model_hash] = found
                batch.document[model_hash], batch.chain[model_hash] = document, chain
    failpoints.reach("snapshot.read")


def _document(model: Model, data: bytes, resources: Resources) -> tuple[Document, str]:
    """Build the history document of a bundle; return it with the request digest of the last request learned."""
    header, _ = resources.keyring.open(data, envelope.BUNDLE)
    document: Document = {
        "type": model.metadata["type"],
        "timestamp": time.time(),
        "hash": model.hash,
        "metadata": model.metadata,
        # From the bundle's own header: a restored bundle that has learned nothing since is in the storage already.
        "generation": header.generation,
        "version": header.version,
        "sequence": header.sequence,
        # A bundle may be older than the generation in which its model's sequences began; then that is all we know.
        "origin": min(header.generation, model.origin),
        "rows_seen": header.rows_seen,
        "metrics": model.metrics,
        "sha256": envelope.digest_of(data),
        "size_bytes": len(data),
        "runtime": header.runtime,
        # They stay in Redis.
        "open_rows": model.open_rows,
        # A path that no other attempt writes, now or later: deleting it can delete nothing else.
        "attempt": uuid.uuid4().hex[:16],
    }
    if model.changed:
        # Stored as JSON text: its names may be any label, and MongoDB restricts field names.
        document["changed"] = msgspec.json.encode(model.changed).decode()
    document["uri"] = resources.storage.uri(path_of(document))
    return document, header.chain


async def _begin(batch: _Batch, resources: Resources) -> None:
    """Write the intents; models that are saved already get their outcome here and leave the batch."""
    documents = list(batch.document.values())
    if not documents:
        return
    saved = []
    for document, committed in zip(documents, await resources.registry.write_intents(documents), strict=True):
        if committed is None:
            continue
        model_hash = document["hash"]
        if committed["sha256"] == document["sha256"]:
            batch.outcomes[model_hash] = None
            saved.append(committed)
        else:
            batch.outcomes[model_hash] = ConflictError(
                f"The history has another bundle for version {document['version']} of {model_hash}: Redis lost its "
                "last writes, and the model learned other rows since. It is saved again when it is past that version."
            )
        del batch.document[model_hash]
    await _note(batch, resources, saved)
    failpoints.reach("snapshot.begun")


async def _put(batch: _Batch, storage: Storage, limits: SaveLimits) -> None:
    """Write the blobs; a model whose blob could not be written leaves the batch."""
    loop = asyncio.get_running_loop()
    failed_in_a_row = 0

    async def put_one(model_hash: str) -> None:
        nonlocal failed_in_a_row
        async with limits.gate:
            if failed_in_a_row >= UNAVAILABLE_COUNT:
                del batch.document[model_hash]
                return
            path = path_of(batch.document[model_hash])
            try:
                await loop.run_in_executor(limits.threads, storage.put, path, batch.data[model_hash])
            except Exception as error:  # noqa: BLE001 - an error of one model must not affect the others
                batch.outcomes[model_hash] = error
                del batch.document[model_hash]
                failed_in_a_row += isinstance(error, UnavailableError)
            else:
                failed_in_a_row = 0
                failpoints.reach("snapshot.stored")

    async with asyncio.TaskGroup() as group:
        for model_hash in list(batch.document):
            group.create_task(put_one(model_hash))


async def _commit(batch: _Batch, resources: Resources) -> None:
    """Turn intents into committed documents, and note them in the models' state."""
    documents = list(batch.document.values())
    if not documents:
        return
    is_committed = await resources.registry.commit_many(documents)
    failpoints.reach("snapshot.committed")
    committed = [document for document, is_ours in zip(documents, is_committed, strict=True) if is_ours]
    await _note(batch, resources, committed)
    failpoints.reach("snapshot.noted")
    await events.announce(resources.store.client, *map(_event, committed))
    batch.outcomes |= dict.fromkeys(batch.document) | {document["hash"]: document for document in committed}
    # Another snapshotter has begun the version again, or garbage collection has aborted the intent as abandoned: no
    # document names the blob that was written here.
    lost = [Entry(path_of(document)) for document, is_ours in zip(documents, is_committed, strict=True) if not is_ours]
    if lost:
        await asyncio.to_thread(resources.storage.delete, lost)


def _event(document: Document) -> Command:
    fields = {name: document[name] for name in ("generation", "version", "rows_seen", "size_bytes")}
    return events.entry("snapshot", document["hash"], canonical(document["metadata"]), **fields)


async def _note(batch: _Batch, resources: Resources, saved: Sequence[Document]) -> None:
    """Note snapshots in the state of their models, and what of the retained requests they cover."""
    await resources.store.note_snapshots(
        [
            RetentionNote(
                model.hash,
                model.generation,
                model.learned,
                model.digest,
                model.retained,
                batch.chain[model.hash],
                (document["generation"], document["version"]),
                {name: document[name] for name in SUMMARY_FIELDS},
            )
            for model, document in ((batch.model[document["hash"]], document) for document in saved)
        ]
    )
