"""The metadata of many models, without their recipes.

Owns one query. A recipe may hold an object of a megabyte, which a list of
all models does not read. Never writes. Invariant: metadata belong to a hash for ever, so a result may be kept.
"""

import json
from collections.abc import Sequence
from typing import Any

from keepfit.history.mongo import unavailable
from keepfit.history.registry.registry import Registry


async def metadata_of(registry: Registry, hashes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the metadata of those of these models that are registered, by their hashes.

    Raises
    ------
    UnavailableError
        If MongoDB is unavailable.
    """
    with unavailable():
        found = registry.collection("models").find({"_id": {"$in": list(hashes)}}, {"metadata": 1})
        return {document["_id"]: json.loads(document["metadata"]) async for document in found}
