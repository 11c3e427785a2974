"""Delete idle models from Redis whose newest snapshot is good; their next use restores them.

Owns the check that the snapshot is good::

    find idle models ─▶ registry, newest document ─▶ compare the digest of the blob ─▶ script `unload`

Never deletes a model whose bundle it has not found in the storage. Invariants: whatever happens between the steps, the
script deletes only the model that was read, while nothing uses it; a failure of one model does not keep the others
from leaving. Several snapshotters at the same time do no harm. No blob is in memory as a whole, however large.
"""

import asyncio
import secrets
from dataclasses import dataclass, field

import structlog

from keepfit.errors import EnvelopeError, UnavailableError
from keepfit.snapshots.resources import Resources
from keepfit.snapshots.save import UNAVAILABLE_COUNT
from keepfit.snapshots.stored_bundle import check_bundle
from keepfit.store import idle
from keepfit.store.idle import IdleModel

log = structlog.get_logger(__name__)

# Keys of Redis that one pass looks at, and idle models that it deletes; later passes look at the others.
LOOKED_AT_MAX, UNLOADED_MAX = 50_000, 1000
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class IdleRules:
    """After how many seconds without use a model leaves Redis (0: never), and how long idempotency keys live."""

    idle_after_s: int = 0
    idempotency_ttl_s: int = 86_400


@dataclass(slots=True)
class Unloaded:
    """How many models left Redis, the cursor at which the next pass begins, and why some stayed, by hash."""

    count: int = 0
    cursor: int = 0
    failed: dict[str, Exception] = field(default_factory=dict)


async def unload_idle(resources: Resources, rules: IdleRules, cursor: int) -> Unloaded:
    """Delete idle models from Redis, beginning at a cursor.

    A dependency that is unavailable is unavailable for all models: after the first failures in a row the others are
    left to later passes.

    Raises
    ------
    SettingsError
        If Redis does not count how long a key was not used.
    UnavailableError
        If Redis is unavailable while idle models are looked for.
    """
    if not rules.idle_after_s:
        return Unloaded()
    models, after = await idle.find(resources.store.client, cursor, LOOKED_AT_MAX, rules.idle_after_s)
    # Any of them, in any order: those that fail must not keep the same others from being tried in each pass.
    models = secrets.SystemRandom().sample(models, min(len(models), UNLOADED_MAX))
    unloaded, gate, unavailable_in_a_row = Unloaded(cursor=after), asyncio.Semaphore(AT_ONCE), 0

    async def one(model: IdleModel) -> None:
        nonlocal unavailable_in_a_row
        async with gate:
            if unavailable_in_a_row >= UNAVAILABLE_COUNT:
                return
            try:
                has_left = await _unload(resources, model, rules)
            except Exception as error:  # noqa: BLE001 - an error of one model must not affect the others
                unloaded.failed[model.hash] = error
                unavailable_in_a_row += isinstance(error, UnavailableError)
            else:
                unloaded.count += has_left
                unavailable_in_a_row = 0

    async with asyncio.TaskGroup() as group:
        for model in models:
            group.create_task(one(model))
    return unloaded


async def _unload(resources: Resources, model: IdleModel, rules: IdleRules) -> bool:
    registered = await resources.registry.find(model.hash)
    if registered is None or model.generation < registered.born:
        return False
    newest = await resources.registry.newest(model.hash, registered.born)
    if newest is None or newest["sha256"] != model.digest:
        return False
    try:
        await asyncio.to_thread(check_bundle, resources.storage, newest)
    except EnvelopeError as error:
        # It stays, and the next pass saves it again: this snapshot could not bring it back.
        log.warning("snapshot_corrupt", hash=model.hash, version=model.version, reason=str(error))
        if await resources.registry.mark_corrupt(newest):
            await resources.store.mark_changed(model.hash, model.generation, model.version)
        return False
    unloaded = await idle.unload(
        resources.store.client,
        model.hash,
        model.generation,
        model.digest,
        rules.idle_after_s,
        rules.idempotency_ttl_s,
    )
    if unloaded:
        log.info("model_unloaded", hash=model.hash, version=model.version, rows_seen=model.rows_seen)
    return unloaded
