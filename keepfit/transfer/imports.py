"""Moving house: models written into a file, and taken in from one.

Owns which models go, and the order in which one is taken in: register ─▶ its snapshots, newest first, each signed with
our key ─▶ Redis. Never unpickles anything that was not signed by a key that was given. Invariants: what was here before
is not overwritten unless asked for; cut short and done again, both come to the same end. The format is
:mod:`keepfit.transfer.archive`'s.
"""

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from keepfit.errors import ConflictError, EnvelopeError, KeepfitError, NotFoundError, UnavailableError
from keepfit.history import Document, RegistryEntry
from keepfit.identity import canonical, parse_json
from keepfit.model import recipe_check
from keepfit.recipe import uploads
from keepfit.restore.bulk import Meant, Progress, at_once, registered_of, silent
from keepfit.restore.restorer import NEWEST, Restorer
from keepfit.restore.snapshot_bundle import check
from keepfit.security import envelope
from keepfit.security.envelope import IMPORT_KEYS, Keyring
from keepfit.settings import Settings
from keepfit.snapshots.resources import Resources, open_resources
from keepfit.snapshots.save import path_of, save
from keepfit.store.models import Model
from keepfit.transfer.archive import Archived, ArchivedSnapshot, Reader, Writer

# Bundles of one model that are read at once, and how many bytes of them: the file is written one after another.
BLOBS_AT_ONCE, BYTES_AT_ONCE = 16, 64 * 2**20


@dataclass(frozen=True, slots=True)
class TransferResult:
    """What came of moving one model; `version` and `snapshots` are of what is in the file."""

    hash: str
    metadata: dict[str, Any]
    version: int | None
    snapshots: int
    outcome: str
    failed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "hash": self.hash,
            "metadata": self.metadata,
            "version": self.version,
            "snapshots": self.snapshots,
            "outcome": self.outcome,
        }


# Out.


async def export_many(
    settings: Settings, path: Path, meant: Meant, *, newest_only: bool = False, progress: Progress = silent
) -> list[TransferResult]:
    """Write the models that are meant into a new file: each saved as it is now, with its snapshots.

    Requests that wait to be learned are in no bundle and do not go along. Any error ends it, and there is no file then:
    one that silently lacks a model would be worse.
    """
    async with open_resources(settings) as resources:
        registered = [found async for found in registered_of(resources, meant)]
        outcomes = []
        with Writer(path, resources.keyring) as writer:
            for done, each in enumerate(registered, start=1):
                outcomes.append(await _export(resources, writer, each, newest_only=newest_only))
                progress(done, len(registered))
        return outcomes


async def _export(
    resources: Resources, writer: Writer, registered: RegistryEntry, *, newest_only: bool
) -> TransferResult:
    model_hash = registered.hash
    await save(resources, model_hash)
    live = await resources.store.describe(model_hash)
    documents = [document async for document in resources.registry.snapshots(model_hash, registered.born)]
    kept: list[ArchivedSnapshot] = []
    damaged = 0
    for some in _by_size(documents):
        if newest_only and kept:
            break
        read = await asyncio.gather(*(asyncio.to_thread(_read, resources, document) for document in some))
        for found in read:
            if found is None:
                damaged += 1
            elif not (newest_only and kept):
                shot, data = found
                await asyncio.to_thread(writer.add_blob, model_hash, shot, data)
                kept.append(shot)
    if not kept:
        if damaged:
            raise UnavailableError(f"None of the {damaged} snapshots of {model_hash} is good.")
        return TransferResult(model_hash, registered.metadata, None, 0, "left out: it has learned nothing")
    model = Archived(metadata=registered.metadata_text, recipe=registered.recipe_text, snapshots=kept)
    await asyncio.to_thread(writer.add, model_hash, model)
    words = "exported" + (f", without {damaged} damaged" if damaged else "")
    if live is not None and live.inbox:
        words += f"; {live.inbox} requests that wait to be learned stay here"
    return TransferResult(model_hash, registered.metadata, kept[0].version, len(kept), words)


def _by_size(documents: list[Document]) -> list[list[Document]]:
    """Split documents into lots that may be in memory at once, each of one at least.

    >>> [len(lot) for lot in _by_size([{"size_bytes": 2**25}] * 3 + [{"size_bytes": 2**30}])]
    [2, 1, 1]
    """
    lots: list[list[Document]] = []
    size = 0
    for document in documents:
        size += document["size_bytes"]
        if not lots or size > BYTES_AT_ONCE or len(lots[-1]) == BLOBS_AT_ONCE:
            lots.append([])
            size = document["size_bytes"]
        lots[-1].append(document)
    return lots


def _read(resources: Resources, document: Document) -> tuple[ArchivedSnapshot, bytes] | None:
    """Read a snapshot's bundle, signed with the newest key; None where it is damaged."""
    path = path_of(document)
    data = resources.storage.get(path)
    if data is None and document["uri"] != resources.storage.uri(path):
        raise UnavailableError(f"The snapshot is at {document['uri']}, and {resources.storage.url} does not have it.")
    if data is None or envelope.digest_of(data) != document["sha256"]:
        return None
    header, payload = resources.keyring.open(data, envelope.BUNDLE)
    data = resources.keyring.seal(header, payload)
    said = {name: document[name] for name in ArchivedSnapshot.__struct_fields__ if name in document}
    said |= {"sha256": envelope.digest_of(data), "size_bytes": len(data)}
    return msgspec.convert(said, ArchivedSnapshot), data


# In.


@dataclass(frozen=True, slots=True)
class _Coming:
    """A model in the file, and what is here under its hash."""

    hash: str
    metadata: dict[str, Any]
    recipe_text: str
    model: Archived
    registered: RegistryEntry | None
    live: Model | None
    newest: Document | None

    @property
    def is_here(self) -> bool:
        """Tell whether its newest snapshot was taken in before."""
        return self.newest is not None and self.newest.get("imported") == self.model.snapshots[0].sha256

    @property
    def in_its_place(self) -> str:
        """Say what would be overwritten; '' if nothing would."""
        if self.live is not None and (self.live.version or self.live.inbox):
            return f"version {self.live.version} with {self.live.rows_seen} rows, live"
        if self.newest is not None:
            return f"version {self.newest['version']} with {self.newest['rows_seen']} rows, in a snapshot"
        return ""

    def moved(self, outcome: str, *, failed: bool = False) -> TransferResult:
        """Say what came of it."""
        shots = self.model.snapshots
        return TransferResult(self.hash, self.metadata, shots[0].version, len(shots), outcome, failed)


async def import_many(
    settings: Settings,
    path: Path,
    theirs: Keyring | None,
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> list[TransferResult]:
    """Take in all models of a file that was signed by one of `theirs` or our own keys."""
    async with open_resources(settings) as resources:
        await resources.registry.ensure_indexes()
        restorer = Restorer(resources, settings)
        checked = _Recipes(uploads.keyring_of(settings.upload_keys.get_secret_value()))
        keyrings = [ring for ring in (theirs, resources.keyring) if ring is not None]
        with await asyncio.to_thread(Reader, path, keyrings) as reader:

            async def take_in(model_hash: str) -> TransferResult:
                return await _import(restorer, reader, checked, model_hash, force=force, dry_run=dry_run)

            return await at_once(reader.hashes, take_in, progress)


async def _import(
    restorer: Restorer, reader: Reader, recipes: "_Recipes", model_hash: str, *, force: bool, dry_run: bool
) -> TransferResult:
    try:
        coming = await _look(restorer, reader, recipes, model_hash)
    except KeepfitError as error:
        return TransferResult(model_hash, {}, None, 0, str(error), failed=True)
    if coming.registered is not None and coming.registered.recipe_text != coming.recipe_text:
        return coming.moved("refused: it is here with another recipe", failed=True)
    if coming.in_its_place and not coming.is_here and not force:
        return coming.moved(f"refused: {coming.in_its_place}, is here; --force overwrites it", failed=True)
    try:
        if dry_run:
            await asyncio.to_thread(reader.blob, model_hash, coming.model.snapshots[0])
            return coming.moved(_planned(coming))
        return coming.moved(await _take_in(restorer, reader, coming, force=force))
    except KeepfitError as error:
        return coming.moved(str(error), failed=True)


def _planned(coming: _Coming) -> str:
    if coming.is_here:
        return "kept: it was imported before"
    return f"would overwrite {coming.in_its_place}" if coming.in_its_place else "would be imported"


class _Recipes:
    """Recipes that were checked as if a client had sent them, each once: many models have the same one."""

    def __init__(self, upload_keys: Keyring | None) -> None:
        self._upload_keys = upload_keys
        self._texts: dict[str, str] = {}

    async def text(self, recipe: str) -> str:
        """Return a recipe's text with all defaults; raises InvalidError if it cannot be built here."""
        if recipe not in self._texts:
            parsed = await asyncio.to_thread(recipe_check.check, parse_json(recipe.encode()), self._upload_keys)
            self._texts[recipe] = parsed.text()
        return self._texts[recipe]


async def _look(restorer: Restorer, reader: Reader, recipes: _Recipes, model_hash: str) -> _Coming:
    """Read what the file says of a model, check it as if a client had sent it, and see what is here."""
    model = await asyncio.to_thread(reader.read, model_hash)
    recipe_text = await recipes.text(model.recipe)
    registered = await restorer.resources.registry.find(model_hash)
    live = newest = None
    if registered is not None:
        newest = await restorer.find(registered, NEWEST)
        live = await restorer.resources.store.describe(model_hash)
        if live is not None and live.generation < registered.born:
            live = None
    metadata = parse_json(model.metadata.encode())
    return _Coming(model_hash, metadata, recipe_text, model, registered, live, newest)


async def _take_in(restorer: Restorer, reader: Reader, coming: _Coming, *, force: bool) -> str:
    """Enter a model with its snapshots, and put it into Redis; say what was done."""
    text = canonical(coming.metadata).decode()
    registered, _ = await restorer.resources.registry.register(coming.hash, text, coming.recipe_text)
    if registered.recipe_text != coming.recipe_text:
        raise ConflictError("refused: it was made with another recipe meanwhile")
    # Their generations, in their order, become ours: no two lives of a model have one number.
    theirs = sorted({shot.generation for shot in coming.model.snapshots})
    if coming.is_here and coming.newest is not None:
        first = coming.newest["generation"] - len(theirs) + 1
    else:
        last = await restorer.resources.registry.next_generation(coming.hash, registered.born, len(theirs))
        if last is None:
            raise NotFoundError(f"The model {coming.hash} was deleted meanwhile.")
        first = last - len(theirs) + 1
    newest: Document | None = None
    for shot in coming.model.snapshots:
        document = await _keep(restorer, reader, coming, registered, shot, first + theirs.index(shot.generation))
        newest = newest or document
    if coming.live is None:
        await restorer.bring_back(registered, NEWEST, newest)
        return "kept: it was imported before, and is live" if coming.is_here else "imported"
    if coming.is_here:
        return "kept: it was imported before"
    await restorer.go_back(registered, NEWEST, coming.live, follow=force, first=newest)
    return f"imported over {coming.in_its_place}" if coming.in_its_place else "imported"


async def _keep(
    restorer: Restorer,
    reader: Reader,
    coming: _Coming,
    registered: RegistryEntry,
    shot: ArchivedSnapshot,
    generation: int,
) -> Document:
    """Save a snapshot under a generation of ours, signed with our key, as a snapshotter does: intent, blob, commit."""
    header, payload = await asyncio.to_thread(reader.blob, coming.hash, shot)
    header = msgspec.structs.replace(header, generation=generation)
    data = await asyncio.to_thread(restorer.resources.keyring.seal, header, payload)
    document: Document = {
        "type": coming.metadata["type"],
        "hash": coming.hash,
        "metadata": coming.metadata,
        **{name: value for name, value in msgspec.structs.asdict(shot).items() if value is not None},
        "generation": generation,
        "sha256": envelope.digest_of(data),
        "size_bytes": len(data),
        "imported": shot.sha256,
        # A path that nobody else writes, as every attempt to save has.
        "attempt": uuid.uuid4().hex[:16],
    }
    document["uri"] = restorer.resources.storage.uri(path_of(document))
    if shot is coming.model.snapshots[0]:
        # What cannot be loaded here is refused before anything is kept of it.
        await asyncio.to_thread(check, data, restorer.resources.keyring, registered, document)
    committed = await restorer.resources.registry.write_intent(document)
    if committed is not None:
        return committed
    await asyncio.to_thread(restorer.resources.storage.put, path_of(document), data)
    if not await restorer.resources.registry.commit(document):
        raise ConflictError(f"Somebody else imports {coming.hash} at the same time.")
    return document


def keyring_of(path: Path) -> Keyring:
    """Read the signing keys of another deployment from a file, as KEEPFIT_SIGNING_KEYS has them.

    Raises
    ------
    EnvelopeError
        If it cannot be read.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise EnvelopeError(f"The keys in {path} cannot be read: {error}") from None
    return Keyring.from_text(text.replace("\n", ","), IMPORT_KEYS)
