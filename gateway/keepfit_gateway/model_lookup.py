"""Lookup, creation, deletion and listing of models, and their restore on demand.

Owns the cache of recipes. Never unpickles: a worker restores a model that Redis has lost. Invariant: a cached recipe
names its generation, and every script compares the generation first, so a stale recipe costs a second lookup and
nothing else. A second one: for a request with a bound key there are only the models that the key may use; every
method here behaves as if the others did not exist, and takes the same steps for them, so that it takes as long.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from keepfit import identity
from keepfit.errors import ConflictError, NotFoundError, StaleModelError, UnavailableError
from keepfit.history import Registry, RegistryEntry
from keepfit.jobs.messages import UploadOptions
from keepfit.observability import failpoints
from keepfit.recipe import uploads
from keepfit.recipe.patch import is_in_force
from keepfit.recipe.recipe import Recipe, from_text, is_same
from keepfit.recipe.uploads import TrainedFile
from keepfit.store import events, listing
from keepfit.store.models import Install, Model, Store
from keepfit_gateway import bound_key
from keepfit_gateway.file_transfer import WORKER_TIMEOUT_S
from keepfit_gateway.learning.commit_feed import DELETED
from keepfit_gateway.model_overview import ModelOverview, Place, Sort, Wanted
from keepfit_gateway.queue_servers import QueueServers
from keepfit_gateway.web.offload import compute

T = TypeVar("T")

CACHED_MAX = 20_000
HINT_TIMEOUT_S = 0.5
# Looking at a model of the overview takes about as long as parsing so many bytes.
LINE_BYTES = 64


class ModelLookup:
    """Models across cache, Redis, registry and snapshots.

    `observe_version` is called with hash, generation and version of each model that is read.
    """

    def __init__(
        self,
        store: Store,
        history: Registry,
        queues: QueueServers,
        observe_version: Callable[[str, int, float], None],
        overview: ModelOverview,
    ) -> None:
        self._store = store
        self._history = history
        self._queues = queues
        self._observe_version = observe_version
        self._overview = overview
        self._cached: OrderedDict[str, Model] = OrderedDict()

    def invalidate(self, model_hash: str) -> None:
        """Remove a model from the cache."""
        self._cached.pop(model_hash, None)

    def cached(self, model_hash: str) -> Model | None:
        """Return the cached model, or None. Only its metadata, recipe and generation are reliable."""
        found = self._cached.get(model_hash)
        if found is None or not bound_key.may_use(found.metadata):
            return None
        self._cached.move_to_end(model_hash)
        return found

    async def find(self, model_hash: str) -> Model:
        """Return the cached model, or look it up. Raise NotFoundError if it does not exist."""
        return self.cached(model_hash) or await self.describe(model_hash)

    async def run(self, model_hash: str, action: Callable[[Model], Awaitable[T]]) -> T:
        """Run `action` with the model. Run it a second time if the cached model was out of date.

        Only recipe and generation of the model passed to `action` are reliable.

        Raises
        ------
        NotFoundError
            If the model does not exist.
        """
        cached = self.cached(model_hash)
        if cached is not None:
            try:
                return await action(cached)
            except (NotFoundError, StaleModelError):
                self.invalidate(model_hash)
        return await action(await self.describe(model_hash))

    async def describe(self, model_hash: str) -> Model:
        """Return the current state of the model. Restore it first if only a snapshot has it."""
        model = await self._live(model_hash)
        if model is None:
            await self._registered(model_hash)
            await self._queues.ask(model_hash, "restore")
            model = await self._store.describe(model_hash)
            if model is None:
                raise NotFoundError(f"The model {model_hash} has just been deleted.")
        self._cache(model)
        self._observe_version(model.hash, model.generation, model.version)
        return model

    async def check(self, model_hash: str) -> None:
        """Raise NotFoundError unless the model exists, live or not, for a request with a bound key."""
        if self.cached(model_hash) is None:
            live = await self._live(model_hash)
            if live is None:
                await self._registered(model_hash)
            else:
                self._cache(live)

    async def _live(self, model_hash: str) -> Model | None:
        model = await self._store.describe(model_hash)
        return model if model is not None and bound_key.may_use(model.metadata) else None

    async def _registered(self, model_hash: str) -> None:
        entry = await self._history.find(model_hash)
        if entry is None or not bound_key.may_use(entry.metadata):
            raise NotFoundError(f"There is no model {model_hash}; create it with POST /v1/models.")

    def _cache(self, model: Model) -> None:
        if model.recipe.object is not None:
            # An object may have a megabyte, and shaping rows needs its head only.
            short = msgspec.structs.replace(model.recipe, object=uploads.head(model.recipe.object))
            model = replace(model, recipe=short)
        self._cached[model.hash] = model
        self._cached.move_to_end(model.hash)
        while len(self._cached) > CACHED_MAX:
            self._cached.popitem(last=False)

    async def create(
        self, metadata: dict[str, Any], recipe: Recipe, fields_left_out: Collection[str] = ()
    ) -> tuple[Model, bool]:
        """Create a model, or return the existing one with the same recipe. Also return whether it was created.

        The recipe of creation counts as the same, whatever was changed since, and so does the recipe in force. A field
        that the client left out may have the default of an earlier release.

        Raises
        ------
        ConflictError
            If it exists with another recipe.
        ForbiddenError
            If the API key is bound to other metadata.
        """
        bound_key.check_metadata(metadata)
        text = identity.canonical(metadata).decode()
        model_hash = identity.hash_of(metadata)
        registered, created = await self._history.register(model_hash, text, recipe.text())
        failpoints.reach("model.registered")
        # Parsed first: a recipe that an older version wrote may lack fields that have defaults since.
        if not is_same(from_text(registered.recipe_text), recipe, fields_left_out):
            found = await self.describe(model_hash)
            if is_in_force(found.recipe, found.changed, recipe, fields_left_out):
                return found, False
            raise ConflictError(f"The model {model_hash} exists with another recipe; GET it to see its recipe.")
        live = None if created else await self._store.describe(model_hash)
        if created or (live is not None and live.generation < registered.born):
            # Second condition: a deletion and then the creation of a successor were both interrupted.
            self.invalidate(model_hash)
            new = Install(model_hash, text, registered.recipe_text, registered.generation, born=registered.born)
            if await self._store.install(new):
                created_event = events.entry("model_created", model_hash, text, generation=registered.generation)
                await events.announce(self._store.client, created_event)
        return await self.describe(model_hash), created

    async def check_upload(self, metadata: dict[str, Any]) -> None:
        """Raise ConflictError if a file cannot become the model of `metadata`, because that exists with a recipe.

        Raise ForbiddenError if the API key is bound to other metadata.
        """
        self._uploaded_file(await self._history.find(bound_key.hash_of(metadata)))

    async def upload(self, metadata: dict[str, Any], options: UploadOptions) -> tuple[Model, bool]:
        """Create a model from an uploaded file, or return the one that was created from the same file.

        Also return whether it was created.

        Raises
        ------
        ConflictError
            If it exists with a recipe or was created from another file.
        ForbiddenError
            If the API key is bound to other metadata.
        InvalidError
            If a worker refuses the file.
        """
        model_hash = bound_key.hash_of(metadata)
        existing = self._uploaded_file(await self._history.find(model_hash))
        if existing is not None and existing.sha256 != options.sha256:
            raise ConflictError(
                f"The model {model_hash} was created from another file; upload it under other metadata, "
                "or delete the model first."
            )
        if existing is not None:
            return await self.describe(model_hash), False
        reply = await self._queues.ask(model_hash, "upload", timeout_s=WORKER_TIMEOUT_S, upload=options)
        self.invalidate(model_hash)
        return await self.describe(model_hash), bool(reply.result["created"])

    def _uploaded_file(self, registered: RegistryEntry | None) -> TrainedFile | None:
        """Return the file of a model that was uploaded trained; ConflictError if the model has a recipe instead."""
        if registered is None:
            return None
        file = uploads.trained_file(from_text(registered.recipe_text).object)
        if file is None:
            raise ConflictError(
                f"The model {registered.hash} exists with a recipe; upload under other metadata, or delete it first."
            )
        return file

    async def delete(self, model_hash: str) -> None:
        """Delete a model; its snapshots stay. Raise NotFoundError if it does not exist."""
        if bound_key.is_set():
            await self.check(model_hash)
        entry = await self._history.find(model_hash)
        # The registry first: from then on nothing restores the model.
        registered = await self._history.unregister(model_hash)
        failpoints.reach("model.unregistered")
        live = await self._store.delete(model_hash)
        cached = self.cached(model_hash)
        if cached is not None:
            # The commit feed reports the deletion too, but possibly after the response to this request.
            self._observe_version(model_hash, cached.generation, DELETED)
        self.invalidate(model_hash)
        if not registered and not live:
            raise NotFoundError(f"There is no model {model_hash}.")
        if entry is not None:
            # Without an entry, an earlier deletion was interrupted; it was the one to announce.
            deleted = events.entry("model_deleted", model_hash, entry.metadata_text, generation=entry.generation)
            await events.announce(self._store.client, deleted)

    async def beginning_with(self, digits: str, count_max: int) -> list[str]:
        """Return up to `count_max` hashes that begin with `digits`, for a hint in an error.

        None if MongoDB does not answer at once.
        """
        with suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(HINT_TIMEOUT_S):
                return await self._history.hashes(digits, count_max, where=bound_key.conditions())
        return []

    async def page(self, filters: Mapping[str, str], limit: int, after: str) -> tuple[list[dict[str, Any]], str | None]:
        """Return up to `limit` models by hash, and the hash after which the next page begins (None at the end)."""
        return await listing.page(self._store, self._history, filters, limit, after, bound_key.conditions())

    async def ordered_page(
        self, sort: Sort, wanted: Wanted, limit: int, after: Place | None
    ) -> tuple[list[dict[str, Any]], Place | None]:
        """Return up to `limit` models in an order, and the place after which the next page begins (None at the end).

        Raises
        ------
        InvalidError
            If there are too many models to put in order.
        """
        reading = await self._overview.read()
        wanted = wanted._replace(bound=bound_key.conditions())
        size = len(reading.lines) * LINE_BYTES
        found, is_cut = await compute(size, reading.page, sort, wanted, limit, after)
        documents = await listing.describe_all(self._store, self._history, [line.hash for _, line in found])
        models = [
            {**document, "rows_per_s": line.rows_per_s, "error_share": line.error_share}
            for (_, line), document in zip(found, documents, strict=True)
            if document is not None
        ]
        return models, found[-1][0] if is_cut else None
