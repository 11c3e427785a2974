"""Which snapshot a version or a time means, for predictions of the past of a model.

Owns this choice and what its errors say. Never reads a bundle, and never changes a document. Invariant: the snapshot is
the one that a restore of the same version or time would try first, or there is an error: one that is damaged is not
replaced by another, and one of a deleted model of the same metadata does not exist.
"""

from collections.abc import Sequence
from contextlib import aclosing

from pymongo import DESCENDING

from keepfit.errors import EnvelopeError, NotFoundError
from keepfit.history.mongo import Document, unavailable
from keepfit.history.registry.registry import Registry, RegistryEntry
from keepfit.history.states import COMMITTED, CORRUPT
from keepfit.times import format_time

# Snapshots, from the newest on, among which the versions nearest to a missing one are looked for.
NEAREST_MAX = 1000

_NEWEST_FIRST = [("generation", DESCENDING), ("version", DESCENDING)]


async def choose(
    registry: Registry, registered: RegistryEntry, at: float | None = None, version: int | None = None
) -> Document:
    """Return the document of the newest snapshot, not later than `at` (seconds) and of `version`, where given.

    Raises
    ------
    NotFoundError
        If there is none; the message names the nearest versions, or the time of the first snapshot.
    EnvelopeError
        If it is known to be damaged.
    UnavailableError
        If MongoDB is unavailable.
    """
    document = await registry.newest(registered.hash, registered.born, at, version)
    if document is not None and document["timestamp"] == at:
        return document
    corrupt = await _newest_corrupt(registry, registered, at, version)
    if corrupt is not None and (document is None or _position(document) < _position(corrupt)):
        raise damaged(corrupt, "its bytes in the storage were found missing or changed")
    if document is None:
        raise NotFoundError(await _describe_missing(registry, registered, at, version))
    return document


async def find(registry: Registry, registered: RegistryEntry, generation: int, version: int) -> Document | None:
    """Return the document of exactly this snapshot of a model; None if there is none (any more)."""
    if generation < registered.born:
        return None
    found = registry.snapshots(registered.hash, generation, limit=1, version=version, before=(generation, version + 1))
    async with aclosing(found) as documents:
        return await anext(documents, None)


def damaged(document: Document, reason: str) -> EnvelopeError:
    """Return the error for a question about a damaged snapshot."""
    version, taken = document["version"], format_time(document["timestamp"])
    return EnvelopeError(
        f"The snapshot of version {version} of the model {document['hash']}, taken at {taken}, is damaged: {reason}."
    )


async def _newest_corrupt(
    registry: Registry, registered: RegistryEntry, at: float | None, version: int | None
) -> Document | None:
    found = registry.snapshots(registered.hash, registered.born, at, limit=1, version=version, status=CORRUPT)
    async with aclosing(found) as documents:
        return await anext(documents, None)


async def _describe_missing(
    registry: Registry, registered: RegistryEntry, at: float | None, version: int | None
) -> str:
    query: Document = {"hash": registered.hash, "generation": {"$gte": registered.born}, "status": COMMITTED}
    fields = {"version": 1, "timestamp": 1}
    with unavailable():
        found = registry.collection("history").find(query, fields).sort(_NEWEST_FIRST).limit(NEAREST_MAX)
        saved = await found.to_list(NEAREST_MAX)
    of_version = "" if version is None else f" of version {version}"
    until = "" if at is None else f" at or before {format_time(at)}"
    hint = "it has no snapshots"
    if saved and version is not None:
        hint = nearest([each["version"] for each in saved], version)
    elif saved:
        first = min(saved, key=lambda each: float(each["timestamp"]))
        hint = f"the first is that of version {first['version']}, taken at {format_time(first['timestamp'])}"
    return f"The model {registered.hash} has no snapshot{of_version}{until}: {hint}."


def nearest(versions: Sequence[int], wanted: int) -> str:
    """Describe the saved versions just below and just above another one.

    >>> nearest([1, 3, 7], 4), nearest([1, 3], 4), nearest([4], 4)
    ('the nearest saved versions are 3 and 7', 'the nearest saved version is 3', 'the nearest saved version is 4')
    """
    below, above = [each for each in versions if each <= wanted], [each for each in versions if each > wanted]
    found = [str(choice) for choice in (max(below, default=None), min(above, default=None)) if choice is not None]
    if len(found) == 1:
        return f"the nearest saved version is {found[0]}"
    return f"the nearest saved versions are {' and '.join(found)}"


def _position(document: Document) -> tuple[int, int]:
    return int(document["generation"]), int(document["version"])
