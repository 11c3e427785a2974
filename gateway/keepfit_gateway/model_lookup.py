"""Models as the gateway knows them: looked up, made, deleted, listed; and brought back where Redis lost them.

Owns the cache of recipes. Never unpickles: a model that is in no Redis is restored by a worker. Invariant: what is
cached names a generation, and every script that acts on it compares that first, so a stale recipe costs a second look
and nothing else.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from keepfit import identity
from keepfit.errors import ConflictError, NotFoundError, StaleModelError
from keepfit.history import Registry
from keepfit.observability import failpoints
from keepfit.recipe import uploads
from keepfit.recipe.patch import in_force
from keepfit.recipe.recipe import Recipe, from_text
from keepfit.store import listing
from keepfit.store.models import Install, Model, Store
from keepfit_gateway.worker_client import WorkerClient

T = TypeVar("T")

CACHED_MAX = 20_000


class Models:
    """Look-up of models across cache, Redis, register and snapshots.

    `heard` is called with hash, generation and version of what was read of a model.
    """

    def __init__(
        self, store: Store, history: Registry, asker: WorkerClient, heard: Callable[[str, int, float], None]
    ) -> None:
        self._store = store
        self._history = history
        self._asker = asker
        self._heard = heard
        self._cached: OrderedDict[str, Model] = OrderedDict()

    def forget(self, model_hash: str) -> None:
        """Drop what is cached of a model."""
        self._cached.pop(model_hash, None)

    def cached(self, model_hash: str) -> Model | None:
        """Return the model as it was looked up last; only recipe and generation are to be relied on."""
        found = self._cached.get(model_hash)
        if found is not None:
            self._cached.move_to_end(model_hash)
        return found

    async def find(self, model_hash: str) -> Model:
        """Return the model, as it was looked up last if it was; raises NotFoundError if there is none."""
        return self.cached(model_hash) or await self.describe(model_hash)

    async def act(self, model_hash: str, action: Callable[[Model], Awaitable[T]]) -> T:
        """Do `action` with the model; once more where it turns out that the cache was out of date.

        Only recipe and generation of the model given to `action` are to be relied on.

        Raises
        ------
        NotFoundError
            If there is no such model.
        """
        cached = self.cached(model_hash)
        if cached is not None:
            try:
                return await action(cached)
            except (NotFoundError, StaleModelError):
                self.forget(model_hash)
        return await action(await self.describe(model_hash))

    async def describe(self, model_hash: str) -> Model:
        """Read the model's state as it is now, restoring it first where only a snapshot has it."""
        model = await self._store.describe(model_hash)
        if model is None:
            if await self._history.find(model_hash) is None:
                raise NotFoundError(f"There is no model {model_hash}; make it with POST /v1/models.")
            await self._asker.ask(model_hash, "restore")
            model = await self._store.describe(model_hash)
            if model is None:
                raise NotFoundError(f"The model {model_hash} was deleted just now.")
        self._remember(model)
        self._heard(model.hash, model.generation, model.version)
        return model

    def _remember(self, model: Model) -> None:
        if model.recipe.object is not None:
            # A megabyte of which rows are shaped by the head.
            short = msgspec.structs.replace(model.recipe, object=uploads.head(model.recipe.object))
            model = replace(model, recipe=short)
        self._cached[model.hash] = model
        self._cached.move_to_end(model.hash)
        while len(self._cached) > CACHED_MAX:
            self._cached.popitem(last=False)

    async def create(self, metadata: dict[str, Any], wanted: Recipe) -> tuple[Model, bool]:
        """Make a model, or find it where it exists with the same recipe; tell whether it was made.

        The same is the recipe that it was made with, whatever was changed since, and the one that is in force.

        Raises
        ------
        ConflictError
            If it exists with another recipe.
        """
        text = identity.canonical(metadata).decode()
        model_hash = identity.hash_of(metadata)
        registered, made = await self._history.register(model_hash, text, wanted.text())
        failpoints.reach("model.registered")
        # Read first: a recipe that an older keepfit wrote may lack what has a default since.
        if from_text(registered.recipe_text).text() != wanted.text():
            found = await self.describe(model_hash)
            if in_force(found.recipe, found.changed).text() == wanted.text():
                return found, False
            raise ConflictError(f"The model {model_hash} exists with another recipe; GET it to see which.")
        live = None if made else await self._store.describe(model_hash)
        if made or (live is not None and live.generation < registered.born):
            # The second: a deletion, and then the making of a successor, were cut short.
            self.forget(model_hash)
            new = Install(model_hash, text, wanted.text(), registered.generation, born=registered.born)
            await self._store.install(new)
        return await self.describe(model_hash), made

    async def delete(self, model_hash: str) -> None:
        """Forget a model; its snapshots stay. Raises NotFoundError if there is none."""
        # The register first: from then on nothing brings the model back.
        registered = await self._history.unregister(model_hash)
        failpoints.reach("model.unregistered")
        live = await self._store.delete(model_hash)
        self.forget(model_hash)
        if not registered and not live:
            raise NotFoundError(f"There is no model {model_hash}.")

    async def page(self, filters: Mapping[str, str], limit: int, after: str) -> tuple[list[dict[str, Any]], str | None]:
        """List up to `limit` models by hash, and the hash to go on after (None at the end)."""
        return await listing.page(self._store, self._history, filters, limit, after)
