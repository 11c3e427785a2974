"""Handlers of a model's snapshots: make one now, list them, put one back.

Owns the translation between HTTP and workers' work, and nothing else: what reads or writes a bundle is done by a
worker, which has the keys. Invariants: nothing here unpickles or signs; a live model goes back only where the request
names the version or time.
"""

import re
from typing import Any

from aiohttp import web

from keepfit.errors import MalformedError, NotFoundError
from keepfit.history import Document, times
from keepfit.jobs.messages import RestoreOptions
from keepfit_gateway import schemas
from keepfit_gateway.handlers.models import NUMBER, PAGE, PAGE_MAX, named_hash
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.bodies import read_json
from keepfit_gateway.web.responses import json_response

FORM_BYTES_MAX = 4096
# Storage may be slow, and bundles large; who asks for these is an operator.
TIMEOUT_S = 60.0
PLACE = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")


async def make_snapshot(request: web.Request) -> web.Response:
    """POST …/snapshot: save the model as it is now."""
    service, model_hash = request.app[SERVICE], named_hash(request)
    # A model that is only in a snapshot comes back first.
    await service.models.describe(model_hash)
    answer = await service.worker_client.ask(model_hash, "snapshot", timeout_s=TIMEOUT_S)
    headers = {"Location": f"/v1/models/{model_hash}/snapshots"}
    return json_response(_shown(answer.result), 201, headers=headers)


async def list_snapshots(request: web.Request) -> web.Response:
    """GET …/snapshots: list a model's snapshots, newest first."""
    service, model_hash, query = request.app[SERVICE], named_hash(request), dict(request.query)
    limit, after = query.pop("limit", str(PAGE)), query.pop("after", "")
    if query or len(request.query) > len(set(request.query)):
        raise MalformedError("The query parameters are limit and after, once each.")
    if not NUMBER.fullmatch(limit) or not 1 <= int(limit) <= PAGE_MAX:
        raise MalformedError(f"limit must be a whole number from 1 to {PAGE_MAX}.")
    place = PLACE.fullmatch(after)
    if after and place is None:
        raise MalformedError("after must be what the page before named as next.")
    registered = await service.history.find(model_hash)
    if registered is None:
        raise NotFoundError(f"There is no model {model_hash}; make it with POST /v1/models.")
    live = await service.store.describe(model_hash)
    before = None if place is None else (int(place[1]), int(place[2]))
    snapshots = service.history.snapshots(model_hash, registered.born, limit=int(limit) + 1, before=before)
    found = [_shown(document) async for document in snapshots]
    shown = found[: int(limit)]
    newest = await service.history.newest(model_hash, registered.born) if live is None else None
    version = live.version if live is not None else newest["version"] if newest is not None else 0
    following = f"{shown[-1].generation}-{shown[-1].version}" if len(found) > len(shown) else None
    return json_response(schemas.SnapshotList(hash=model_hash, version=version, snapshots=shown, next=following))


async def restore_model(request: web.Request) -> web.Response:
    """POST …/restore: put an older snapshot back, or what Redis lost."""
    service, model_hash = request.app[SERVICE], named_hash(request)
    document = await read_json(request, service.settings, FORM_BYTES_MAX) if request.body_exists else {}
    form = schemas.convert(document, schemas.RestoreModel)
    wish = RestoreOptions(None if form.at is None else times.parse_time(form.at, words=False), form.version)
    if await service.history.find(model_hash) is None:
        raise NotFoundError(f"There is no model {model_hash}; make it with POST /v1/models.")
    answer = await service.worker_client.ask(model_hash, "put_back", timeout_s=TIMEOUT_S, restore=wish)
    service.models.invalidate(model_hash)
    service.cache.observe_version(model_hash, answer.generation, answer.version)
    done: dict[str, Any] = answer.result
    snapshot = None if done["document"] is None else _shown(done["document"])
    restored = schemas.RestoredAnswer(
        hash=model_hash,
        version=answer.version,
        rows_seen=answer.rows_seen,
        generation=answer.generation,
        sequence=done["sequence"],
        restored=done["restored"],
        rows_forgotten=done["rows_forgotten"],
        replayed=done["replayed"],
        damaged=done["corrupt"],
        snapshot=snapshot,
    )
    return json_response(restored)


def _shown(document: Document) -> schemas.SnapshotAnswer:
    return schemas.SnapshotAnswer(**{name: document[name] for name in schemas.SnapshotAnswer.__struct_fields__})
