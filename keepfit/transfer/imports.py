"""Import models from a file that another deployment exported.

Owns the order of the steps for one model: register ─▶ save its snapshots, newest first, each signed with this
deployment's key ─▶ restore to Redis. Never unpickles anything that was not signed with a given key. Invariants: a model
that exists here is not overwritten unless that is requested; an interrupted import can be repeated with the same
result. :mod:`keepfit.transfer.archive` owns the file format.
"""

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from keepfit.backends.files import open_regular
from keepfit.errors import ConflictError, KeepfitError, NotFoundError, SettingsError
from keepfit.history import Document, RegistryEntry
from keepfit.identity import canonical, parse_json
from keepfit.model import recipe_check
from keepfit.observability.progress import Progress, no_progress
from keepfit.recipe import uploads
from keepfit.recipe.recipe import from_text
from keepfit.restore import replay_source
from keepfit.restore.bulk import for_each
from keepfit.restore.requests import NEWEST
from keepfit.restore.restorer import Restorer
from keepfit.restore.snapshot_bundle import verify
from keepfit.security import envelope
from keepfit.security.envelope import IMPORT_KEYS, Keyring
from keepfit.settings import Settings
from keepfit.snapshots.resources import open_resources
from keepfit.snapshots.save import path_of
from keepfit.store.models import Model
from keepfit.transfer.archive import ArchivedModel, ArchivedSnapshot, Reader
from keepfit.transfer.exports import TransferResult


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A model in the file, and what exists here under its hash."""

    hash: str
    metadata: dict[str, Any]
    recipe_text: str
    model: ArchivedModel
    registered: RegistryEntry | None
    live: Model | None
    newest: Document | None

    @property
    def is_imported(self) -> bool:
        """Whether its newest snapshot was imported before, and is still the newest here."""
        return self.newest is not None and self.newest.get("imported") == self.model.snapshots[0].sha256

    @property
    def existing(self) -> str:
        """Description of what an import would overwrite; '' if nothing."""
        if self.live is not None and (self.live.version or self.live.inbox):
            return f"version {self.live.version} with {self.live.rows_seen} rows, live"
        if self.newest is not None:
            return f"version {self.newest['version']} with {self.newest['rows_seen']} rows, in a snapshot"
        return ""

    def result(self, outcome: str, *, failed: bool = False) -> TransferResult:
        """Return the result with this outcome."""
        snapshots = self.model.snapshots
        return TransferResult(self.hash, self.metadata, snapshots[0].version, len(snapshots), outcome, failed)


async def import_many(
    settings: Settings,
    path: Path,
    import_keys: Keyring | None,
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> list[TransferResult]:
    """Import all models of a file that was signed with one of the `import_keys` or with a key of this deployment.

    With `force` models that exist here are overwritten. A model that cannot be imported has a result that says why.

    Raises
    ------
    InvalidError, EnvelopeError, UnavailableError
        If the file cannot be read, as of :class:`keepfit.transfer.archive.Reader`, or MongoDB is unavailable.
    """
    async with open_resources(settings) as resources:
        await resources.registry.ensure_indexes()
        restorer = Restorer(resources, settings)
        recipes = _Recipes(uploads.upload_keyring(settings.upload_keys.get_secret_value()))
        keyrings = [keyring for keyring in (import_keys, resources.keyring) if keyring is not None]
        try:
            with await asyncio.to_thread(Reader, path, keyrings) as reader:

                async def import_one(model_hash: str) -> TransferResult:
                    return await _import(restorer, reader, recipes, model_hash, force=force, dry_run=dry_run)

                return await for_each(reader.hashes, import_one, progress)
        finally:
            restorer.close()


async def _import(
    restorer: Restorer, reader: Reader, recipes: "_Recipes", model_hash: str, *, force: bool, dry_run: bool
) -> TransferResult:
    try:
        incoming = await _inspect(restorer, reader, recipes, model_hash)
    except KeepfitError as error:
        return TransferResult(model_hash, {}, None, 0, str(error), failed=True)
    if incoming.registered is not None and incoming.registered.recipe_text != incoming.recipe_text:
        return incoming.result("refused: it exists here with another recipe", failed=True)
    if incoming.existing and not incoming.is_imported and not force:
        return incoming.result(f"refused: {incoming.existing}, exists here; --force overwrites it", failed=True)
    try:
        if dry_run:
            await asyncio.to_thread(reader.blob, model_hash, incoming.model.snapshots[0])
            return incoming.result(_planned(incoming))
        return incoming.result(await _install(restorer, reader, incoming, force=force))
    except KeepfitError as error:
        return incoming.result(str(error), failed=True)


def _planned(incoming: _Incoming) -> str:
    if incoming.is_imported:
        return "kept: it was imported before"
    return f"would overwrite {incoming.existing}" if incoming.existing else "would be imported"


class _Recipes:
    """Checks recipes as if a client had sent them, each distinct one once: many models have the same recipe."""

    def __init__(self, upload_keys: Keyring | None) -> None:
        self._upload_keys = upload_keys
        self._texts: dict[str, str] = {}

    async def text(self, recipe: str) -> str:
        """Return a recipe's text with all defaults; raises InvalidError if it cannot be built here."""
        if recipe not in self._texts:
            stored = from_text(recipe)
            if uploads.trained_file(stored.object) is None:
                stored = await asyncio.to_thread(recipe_check.check, parse_json(recipe.encode()), self._upload_keys)
            # No client can send the recipe of a trained object: the file's signature vouches for it, and its snapshots
            # have the object.
            self._texts[recipe] = stored.text()
        return self._texts[recipe]


async def _inspect(restorer: Restorer, reader: Reader, recipes: _Recipes, model_hash: str) -> _Incoming:
    """Read the entry of a model, check its recipe as if a client had sent it, and read what exists here."""
    resources = restorer.resources
    model = await asyncio.to_thread(reader.read, model_hash)
    recipe_text = await recipes.text(model.recipe)
    registered = await resources.registry.find(model_hash)
    live = newest = None
    if registered is not None:
        newest = await replay_source.find_document(resources, registered, NEWEST)
        live = await resources.store.describe(model_hash)
        if live is not None and live.generation < registered.born:
            live = None
    metadata = parse_json(model.metadata.encode())
    return _Incoming(model_hash, metadata, recipe_text, model, registered, live, newest)


async def _install(restorer: Restorer, reader: Reader, incoming: _Incoming, *, force: bool) -> str:
    """Register a model, save its snapshots, and restore it to Redis; return the outcome."""
    registry = restorer.resources.registry
    text = canonical(incoming.metadata).decode()
    registered, _ = await registry.register(incoming.hash, text, incoming.recipe_text)
    if registered.recipe_text != incoming.recipe_text:
        raise ConflictError("refused: it was created with another recipe in the meantime")
    # The generations of the file are renumbered here, in their order: no two lifetimes of a model share a generation.
    generations = sorted({snapshot.generation for snapshot in incoming.model.snapshots})
    if incoming.is_imported and incoming.newest is not None:
        first = incoming.newest["generation"] - len(generations) + 1
    else:
        last = await registry.next_generation(incoming.hash, registered.born, len(generations))
        if last is None:
            raise NotFoundError(f"The model {incoming.hash} was deleted in the meantime.")
        first = last - len(generations) + 1
    newest: Document | None = None
    for snapshot in incoming.model.snapshots:
        generation = first + generations.index(snapshot.generation)
        document = await _save(restorer, reader, incoming, registered, snapshot, generation)
        newest = newest or document
    if incoming.live is None:
        await restorer.restore(registered, NEWEST, newest)
        return "kept: it was imported before, and is live" if incoming.is_imported else "imported"
    if incoming.is_imported:
        return "kept: it was imported before"
    await restorer.rewind(registered, NEWEST, incoming.live, follow=force, preferred=newest)
    return f"imported over {incoming.existing}" if incoming.existing else "imported"


async def _save(
    restorer: Restorer,
    reader: Reader,
    incoming: _Incoming,
    registered: RegistryEntry,
    snapshot: ArchivedSnapshot,
    generation: int,
) -> Document:
    """Save a snapshot under the given generation, signed with this deployment's key: intent, blob, commit."""
    resources = restorer.resources
    header, payload = await asyncio.to_thread(reader.blob, incoming.hash, snapshot)
    header = msgspec.structs.replace(header, generation=generation)
    data = await asyncio.to_thread(resources.keyring.seal, header, payload)
    document: Document = {
        "type": incoming.metadata["type"],
        "hash": incoming.hash,
        "metadata": incoming.metadata,
        **{name: value for name, value in msgspec.structs.asdict(snapshot).items() if value is not None},
        "generation": generation,
        "sha256": envelope.digest_of(data),
        "size_bytes": len(data),
        "imported": snapshot.sha256,
        # A path that no other attempt writes, as for every attempt to save.
        "attempt": uuid.uuid4().hex[:16],
    }
    document["uri"] = resources.storage.uri(path_of(document))
    if snapshot is incoming.model.snapshots[0]:
        # A bundle that cannot be loaded here is refused before anything is saved.
        await asyncio.to_thread(verify, data, resources.keyring, registered, document)
    committed = await resources.registry.write_intent(document)
    if committed is not None:
        return committed
    await asyncio.to_thread(resources.storage.put, path_of(document), data)
    if not await resources.registry.commit(document):
        raise ConflictError(f"Another process imports {incoming.hash} at the same time.")
    return document


def read_keyring(path: Path) -> Keyring:
    """Read the signing keys of another deployment from a file, in the format of KEEPFIT_SIGNING_KEYS.

    Raises
    ------
    SettingsError
        If the file cannot be read, or does not hold keys.
    """
    try:
        with open_regular(path) as file:
            text = file.read().decode()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not text.") from None
    if not text.strip():
        raise SettingsError(f"{path} holds no key.")
    try:
        return Keyring.from_text(text.replace("\n", ","), IMPORT_KEYS)
    except SettingsError as error:
        raise SettingsError(str(error).replace(IMPORT_KEYS, str(path))) from None
