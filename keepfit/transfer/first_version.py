"""Make an uploaded, trained object the first version of a model that does not exist yet.

Owns the order of the steps::

    (a bundle) ─▶ reserve a generation ─▶ save its bundle as a snapshot ─▶ register the model ─▶ install it

Never changes a model that exists. Invariants: a model that is registered has its snapshot, so that it is restored if it
is not in Redis, also by the next use after a process died here; what was written for a model that was never registered
is found by garbage collection. Bundles come from :mod:`keepfit.model.trained`; workers call this.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from keepfit.errors import ConflictError, StaleModelError, TooLargeError
from keepfit.history import RegistryEntry
from keepfit.history.registry import reservations
from keepfit.model import serialization
from keepfit.model.object_bundle import ObjectBundle
from keepfit.observability import failpoints
from keepfit.recipe import uploads
from keepfit.recipe.recipe import from_text
from keepfit.restore.snapshot_bundle import SnapshotBundle, to_install
from keepfit.security import envelope
from keepfit.security.envelope import Header
from keepfit.snapshots.resources import Resources
from keepfit.snapshots.save import save_first
from keepfit.store import events
from keepfit.store.models import Model
from keepfit.store.retained import RetainedRequests

VERSION = 1


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What an upload made: `created` is False if the model existed and was uploaded as the same file."""

    generation: int
    version: int
    rows_seen: int
    created: bool


async def create(
    resources: Resources, model_hash: str, metadata_text: str, bundle: ObjectBundle, bytes_max: int
) -> Uploaded:
    """Create the model of `metadata_text` with the `bundle` of an uploaded object, of at most `bytes_max` bytes.

    Raises
    ------
    TooLargeError
        If the bundle is larger.
    ConflictError
        If the model exists with another recipe or file, or another process creates it at the same time.
    UnavailableError
        If MongoDB, the storage or Redis is unavailable.
    """
    registered = await resources.registry.find(model_hash)
    if registered is not None:
        return _existing(registered, bundle)
    recipe_text = bundle.recipe.text()
    generation = await reservations.reserve(resources.registry, model_hash, metadata_text, recipe_text)
    if generation is None:
        raise ConflictError(f"The model {model_hash} was created meanwhile; nothing was uploaded.")
    entry = RegistryEntry(model_hash, metadata_text, recipe_text, generation, generation)
    header = Header(envelope.BUNDLE, model_hash, generation, VERSION, 0, bundle.rows_seen, "", bundle.runtime)
    sealed = await asyncio.to_thread(serialization.seal, bundle, resources.keyring, header)
    if len(sealed) > bytes_max:
        raise TooLargeError(
            f"The model would have {len(sealed)} bytes; it may have {bytes_max} (KEEPFIT_BUNDLE_BYTES_MAX)."
        )
    try:
        document = await save_first(resources, _model(entry, bundle, envelope.digest_of(sealed)), sealed)
    except StaleModelError as error:
        raise ConflictError(str(error)) from None
    if not await reservations.activate(resources.registry, model_hash, generation):
        raise ConflictError(f"Another process created the model {model_hash} meanwhile; nothing was uploaded.")
    failpoints.reach("upload.registered")
    snapshot = SnapshotBundle(document, header, sealed, b"", bundle.width)
    # If another process has restored it already, there is nothing to do.
    await resources.store.install(to_install(entry, generation, snapshot, is_saved=True))
    details = {"generation": generation, "version": VERSION, "rows_seen": bundle.rows_seen}
    await events.announce(resources.store.client, events.entry("model_created", model_hash, metadata_text, **details))
    return Uploaded(generation, VERSION, bundle.rows_seen, created=True)


def _existing(registered: RegistryEntry, bundle: ObjectBundle) -> Uploaded:
    """Return the existing model if it was uploaded as the same file; raise ConflictError if it was not."""
    ours, theirs = (
        uploads.trained_file(recipe.object) for recipe in (bundle.recipe, from_text(registered.recipe_text))
    )
    if theirs is None or ours is None or theirs.sha256 != ours.sha256:
        raise ConflictError(
            f"The model {registered.hash} exists with another recipe; upload under other metadata, or delete it first."
        )
    return Uploaded(registered.generation, VERSION, bundle.rows_seen, created=False)


def _model(entry: RegistryEntry, bundle: ObjectBundle, digest: str) -> Model:
    """Return the state of the model as it will be live."""
    metrics: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(bundle.metrics()))
    return Model(
        hash=entry.hash,
        metadata=entry.metadata,
        recipe=bundle.recipe,
        generation=entry.generation,
        version=VERSION,
        rows_seen=bundle.rows_seen,
        learned=0,
        inbox=0,
        metrics=metrics,
        snapshot=None,
        digest=digest,
        changed={},
        origin=entry.generation,
        retained=RetainedRequests(),
    )
