"""Reserve a generation for a model that does not exist yet, so that its first version can be saved before it is seen.

Owns the transition from "no such model" to a registered model with a snapshot::

    reserve ─▶ (a snapshot of that generation is saved) ─▶ activate

A reserved model is stored as a deleted one: nothing finds it, and what was saved for it and is never activated is
deleted like the snapshots of a deleted model. Invariant: of several processes that reserve a model, the last one alone
can activate it; a model that was created meanwhile stays as it is.
"""

import json
import time

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from keepfit.history.metadata_labels import to_labels
from keepfit.history.mongo import unavailable
from keepfit.history.registry.registry import Registry


async def reserve(registry: Registry, model_hash: str, metadata_text: str, recipe_text: str) -> int | None:
    """Reserve the next generation of a model that is not registered, and return it; None if it is registered."""
    fields = {
        "metadata": metadata_text,
        "labels": to_labels(json.loads(metadata_text)),
        "recipe": recipe_text,
        "deleted": True,
        "deleted_s": time.time(),
    }
    models = registry.collection("models")
    await registry.ensure_indexes()
    with unavailable():
        try:
            found = await models.find_one_and_update(
                # A registered model does not match, and cannot be inserted again.
                {"_id": model_hash, "deleted": True},
                {"$set": fields, "$setOnInsert": {"born": 1}, "$inc": {"generation": 1}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            return None
        generation = int(found["generation"])
        # Snapshots of earlier generations are those of predecessors.
        await models.update_one(
            {"_id": model_hash, "deleted": True, "generation": generation}, {"$set": {"born": generation}}
        )
    return generation


async def activate(registry: Registry, model_hash: str, generation: int) -> bool:
    """Register a model in the generation that was reserved for it; return False if another process came first."""
    with unavailable():
        result = await registry.collection("models").update_one(
            {"_id": model_hash, "deleted": True, "generation": generation, "born": generation},
            {"$set": {"deleted": False}},
        )
    return bool(result.matched_count)
