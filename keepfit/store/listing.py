"""Models as JSON documents: live ones, and those that only have a snapshot.

Owns the fields of ``GET /v1/models/{hash}`` and of `keepfit models`. Reads Redis and the registry; changes nothing.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from keepfit.history import SUMMARY_FIELDS, Registry, RegistryEntry
from keepfit.recipe.patch import with_changes
from keepfit.recipe.recipe import from_text
from keepfit.store.models import Model, Store


def describe(model: Model) -> dict[str, Any]:
    """Return the document of a live model."""
    return {
        "hash": model.hash,
        "metadata": model.metadata,
        "recipe": msgspec.to_builtins(with_changes(model.recipe, model.changed)),
        "version": model.version,
        "rows_seen": model.rows_seen,
        "metrics": model.metrics,
        "inbox": model.inbox,
        "snapshot": model.snapshot,
    }


async def _describe_saved(history: Registry, registered: RegistryEntry) -> dict[str, Any]:
    """Return the document of a model that is not live, from its newest snapshot."""
    newest = await history.newest(registered.hash, registered.born)
    changed = msgspec.json.decode(newest["changed"]) if newest and "changed" in newest else {}
    return {
        "hash": registered.hash,
        "metadata": registered.metadata,
        "recipe": msgspec.to_builtins(with_changes(from_text(registered.recipe_text), changed)),
        "version": newest["version"] if newest else 0,
        "rows_seen": newest["rows_seen"] if newest else 0,
        "metrics": newest["metrics"] if newest else {},
        "inbox": 0,
        "snapshot": {name: newest[name] for name in SUMMARY_FIELDS} if newest else None,
    }


async def page(
    store: Store, history: Registry, filters: Mapping[str, str], limit: int, after: str = ""
) -> tuple[list[dict[str, Any]], str | None]:
    """Return up to `limit` models by hash, and the hash to continue after (None at the end).

    An uploaded object is replaced by its digest: it has up to a megabyte, and the document of a single model has it.
    """
    found = await history.models(filters, limit + 1, after)
    shown = found[:limit]
    live = await store.describe_many([registered.hash for registered in shown])
    models = [
        describe(model) if model is not None else await _describe_saved(history, registered)
        for registered, model in zip(shown, live, strict=True)
    ]
    for model in models:
        if model["recipe"]["object"] is not None:
            model["recipe"]["object"] = f"sha256:{hashlib.sha256(model['recipe']['object'].encode()).hexdigest()}"
    return models, shown[-1].hash if len(found) > limit else None
