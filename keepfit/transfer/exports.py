"""Export models, with their snapshots, into one file.

Owns which snapshots are written and in which order; :mod:`keepfit.transfer.archive` owns the file format. Never
unpickles. Invariant: there is no file unless every selected model is in it.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from keepfit.errors import EnvelopeError, UnavailableError
from keepfit.history import Document, RegistryEntry
from keepfit.observability.progress import Progress, no_progress
from keepfit.restore.bulk import ModelFilter, select_models
from keepfit.security import envelope
from keepfit.settings import Settings
from keepfit.snapshots.resources import Resources, open_resources
from keepfit.snapshots.save import save
from keepfit.snapshots.stored_bundle import read_bundle
from keepfit.transfer.archive import ArchivedModel, ArchivedSnapshot, Writer

# Bundles of one model that are read at once, and how many bytes of them; the file is written sequentially.
BLOBS_AT_ONCE, BYTES_AT_ONCE = 16, 64 * 2**20


@dataclass(frozen=True, slots=True)
class TransferResult:
    """Result of the export or import of one model; `version` and `snapshots` describe what is in the file."""

    hash: str
    metadata: dict[str, Any]
    version: int | None
    snapshots: int
    outcome: str
    failed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON."""
        return {
            "hash": self.hash,
            "metadata": self.metadata,
            "version": self.version,
            "snapshots": self.snapshots,
            "outcome": self.outcome,
        }


async def export_many(
    settings: Settings, path: Path, models: ModelFilter, *, newest_only: bool = False, progress: Progress = no_progress
) -> list[TransferResult]:
    """Write the selected models into a new file: each is saved as it is now, and written with its snapshots.

    Pending requests are in no bundle and are not exported. Any error ends the export without a file: a file that
    silently lacks a model would be worse.

    Raises
    ------
    InvalidError
        If the file exists already.
    UnavailableError
        If a dependency is unavailable, the file cannot be written, or none of a model's snapshots is good.
    """
    async with open_resources(settings) as resources:
        registered = [found async for found in select_models(resources, models)]
        results = []
        with Writer(path, resources.keyring) as writer:
            for done, each in enumerate(registered, start=1):
                results.append(await _export(resources, writer, each, newest_only=newest_only))
                progress(done, len(registered))
        return results


async def _export(
    resources: Resources, writer: Writer, registered: RegistryEntry, *, newest_only: bool
) -> TransferResult:
    model_hash = registered.hash
    await save(resources, model_hash)
    live = await resources.store.describe(model_hash)
    documents = [document async for document in resources.registry.snapshots(model_hash, registered.born)]
    written: list[ArchivedSnapshot] = []
    damaged = 0
    for batch in _by_size(documents):
        if newest_only and written:
            break
        for found in await asyncio.gather(*(asyncio.to_thread(_read, resources, document) for document in batch)):
            if found is None:
                damaged += 1
            elif not (newest_only and written):
                snapshot, data = found
                await asyncio.to_thread(writer.add_blob, model_hash, snapshot, data)
                written.append(snapshot)
    if not written:
        if damaged:
            raise UnavailableError(f"None of the {damaged} snapshots of {model_hash} is good.")
        return TransferResult(model_hash, registered.metadata, None, 0, "skipped: it has learned nothing")
    model = ArchivedModel(metadata=registered.metadata_text, recipe=registered.recipe_text, snapshots=written)
    await asyncio.to_thread(writer.add, model_hash, model)
    words = "exported" + (f", without {damaged} damaged" if damaged else "")
    if live is not None and live.inbox:
        words += f"; {live.inbox} pending requests are not in the file"
    return TransferResult(model_hash, registered.metadata, written[0].version, len(written), words)


def _by_size(documents: list[Document]) -> list[list[Document]]:
    """Split documents into batches whose bundles may be in memory at once, each of at least one.

    >>> [len(batch) for batch in _by_size([{"size_bytes": 2**25}] * 3 + [{"size_bytes": 2**30}])]
    [2, 1, 1]
    """
    batches: list[list[Document]] = []
    size = 0
    for document in documents:
        size += document["size_bytes"]
        if not batches or size > BYTES_AT_ONCE or len(batches[-1]) == BLOBS_AT_ONCE:
            batches.append([])
            size = document["size_bytes"]
        batches[-1].append(document)
    return batches


def _read(resources: Resources, document: Document) -> tuple[ArchivedSnapshot, bytes] | None:
    """Read a snapshot's bundle and sign it with the newest key; return None if it is damaged."""
    try:
        data = read_bundle(resources.storage, document)
    except EnvelopeError:
        return None
    header, payload = resources.keyring.open(data, envelope.BUNDLE)
    data = resources.keyring.seal(header, payload)
    fields = {name: document[name] for name in ArchivedSnapshot.__struct_fields__ if name in document}
    fields |= {"sha256": envelope.digest_of(data), "size_bytes": len(data)}
    return msgspec.convert(fields, ArchivedSnapshot), data
