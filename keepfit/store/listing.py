"""Models as JSON documents: live ones, and those that only have a snapshot.

Owns the fields of ``GET /v1/models/{hash}`` and of `keepfit models`. Reads Redis and the registry; changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from keepfit.conditions import Conditions
from keepfit.history import SUMMARY_FIELDS, Registry, RegistryEntry
from keepfit.recipe import uploads
from keepfit.recipe.patch import with_changes
from keepfit.recipe.recipe import Recipe, from_text
from keepfit.recipe.recipe_warnings import warnings_of
from keepfit.store.models import Model, Store

UNLOADABLE = (
    "bundle: workers died, or one hung, while they loaded this model, so it is not loaded for an hour: rows wait, and "
    "predictions fail. Give workers the memory or libraries that it needs, or restore an earlier version."
)


def describe(model: Model, *, with_object: bool = True) -> dict[str, Any]:
    """Return the document of a live model; `with_object` with the bytes of an uploaded object."""
    described = _recipe_and_warnings(with_changes(model.recipe, model.changed), model.metrics, with_object=with_object)
    if model.is_unloadable:
        described["warnings"] = [UNLOADABLE, *described["warnings"]]
    return {
        "hash": model.hash,
        "metadata": model.metadata,
        **described,
        "version": model.version,
        "rows_seen": model.rows_seen,
        "metrics": model.metrics,
        "inbox": model.inbox,
        **({"open_rows": model.open_rows} if model.open_rows else {}),
        "snapshot": model.snapshot,
    }


def _recipe_and_warnings(recipe: Recipe, metrics: dict[str, Any], *, with_object: bool) -> dict[str, Any]:
    document = {"recipe": msgspec.to_builtins(recipe), "warnings": warnings_of(recipe, metrics)}
    if recipe.object is not None:
        found = _summary(recipe.object)
        document["object"] = found
        # The bytes are in the bundle only, if it was uploaded trained or its code was replaced.
        if not with_object or uploads.is_in_bundle(recipe.object):
            document["recipe"]["object"] = f"sha256:{found['sha256']}"
    return document


def _summary(text: str) -> dict[str, Any]:
    """Describe an uploaded object: the name of its class, the size of the upload, and its digest.

    The digest is that of the base64 text, or of the file in which the object was uploaded trained.
    """
    header = uploads.header_of(text)
    size = header.code or header.trained
    return {
        "name": header.name,
        "size_bytes": uploads.size_of(text) if size is None else size.size_bytes,
        "sha256": uploads.digest_of(text),
        **({"format": header.trained.format} if header.trained is not None and header.code is None else {}),
    }


async def _describe_saved(history: Registry, registered: RegistryEntry) -> dict[str, Any]:
    """Return the document of a model that is not live, from its newest snapshot."""
    newest = await history.newest(registered.hash, registered.born)
    changed = msgspec.json.decode(newest["changed"]) if newest and "changed" in newest else {}
    metrics = newest["metrics"] if newest else {}
    return {
        "hash": registered.hash,
        "metadata": registered.metadata,
        **_recipe_and_warnings(with_changes(from_text(registered.recipe_text), changed), metrics, with_object=False),
        "version": newest["version"] if newest else 0,
        "rows_seen": newest["rows_seen"] if newest else 0,
        "metrics": metrics,
        "inbox": 0,
        "snapshot": {name: newest[name] for name in SUMMARY_FIELDS} if newest else None,
    }


async def page(
    store: Store, history: Registry, filters: Mapping[str, str], limit: int, after: str = "", where: Conditions = ()
) -> tuple[list[dict[str, Any]], str | None]:
    """Return up to `limit` models by hash, and the hash to continue after (None at the end).

    Only models whose metadata match the filters and fulfil `where`. The bytes of an uploaded object are replaced by
    their digest: they have up to a megabyte, and the document of a single model has them.
    """
    found = await history.models(filters, limit + 1, after, where)
    shown = found[:limit]
    live = await store.describe_many([registered.hash for registered in shown])
    models = [
        describe(model, with_object=False) if model is not None else await _describe_saved(history, registered)
        for registered, model in zip(shown, live, strict=True)
    ]
    return models, shown[-1].hash if len(found) > limit else None


async def describe_all(store: Store, history: Registry, hashes: Sequence[str]) -> list[dict[str, Any] | None]:
    """Return the documents of these models, as :func:`page` does; None for one that no longer exists."""
    documents: list[dict[str, Any] | None] = []
    for model_hash, model in zip(hashes, await store.describe_many(list(hashes)), strict=True):
        registered = await history.find(model_hash) if model is None else None
        if model is not None:
            documents.append(describe(model, with_object=False))
        else:
            documents.append(None if registered is None else await _describe_saved(history, registered))
    return documents
