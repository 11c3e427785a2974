"""Handlers of a model's snapshots: create one now, list them, restore one.

Owns the translation between HTTP and worker requests, and nothing else: workers, which have the keys, read and write
bundles. Invariants: no handler unpickles or signs; a live model is rewound only if the request names a version or time.
"""

import re
from typing import Any

from aiohttp import web

from keepfit import times
from keepfit.errors import NotFoundError
from keepfit.history import Document
from keepfit.jobs.messages import RestoreOptions
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import model_hash_of, page_parameters, read_optional_form
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.responses import json_response

FORM_BYTES_MAX = 4096
# Storage may be slow and bundles large, and the caller is an operator.
TIMEOUT_S = 60.0
POSITION = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")


async def make_snapshot(request: web.Request) -> web.Response:
    """POST …/snapshot: save the current bundle of the model."""
    service = request.app[SERVICE]
    if "hash" in request.match_info:
        model_hash = await model_hash_of(request)
    else:
        model_hash, _ = await read_optional_form(request, schemas.Call, FORM_BYTES_MAX)
    # Restores a model that exists only in a snapshot.
    await service.models.describe(model_hash)
    reply = await service.queues.ask(model_hash, "snapshot", timeout_s=TIMEOUT_S)
    headers = {"Location": f"/v1/models/{model_hash}/snapshots"}
    return json_response(_snapshot_answer(reply.result), 201, headers=headers)


async def list_snapshots(request: web.Request) -> web.Response:
    """GET …/snapshots: list a model's snapshots, newest first."""
    service, model_hash, page = request.app[SERVICE], await model_hash_of(request), page_parameters(request, POSITION)
    position = POSITION.fullmatch(page.after)
    entry = await service.history.find(model_hash)
    if entry is None:
        raise NotFoundError(f"There is no model {model_hash}; create it with POST /v1/models.")
    live = await service.store.describe(model_hash)
    before = None if position is None else (int(position[1]), int(position[2]))
    documents = service.history.snapshots(model_hash, entry.born, limit=page.limit + 1, before=before)
    snapshots = [_snapshot_answer(document) async for document in documents]
    shown = snapshots[: page.limit]
    newest = await service.history.newest(model_hash, entry.born) if live is None else None
    version = live.version if live is not None else newest["version"] if newest is not None else 0
    following = f"{shown[-1].generation}-{shown[-1].version}" if len(snapshots) > len(shown) else None
    answer = schemas.SnapshotList(hash=model_hash, version=version, snapshots=shown, next=following)
    return json_response(answer)


async def restore_model(request: web.Request) -> web.Response:
    """POST …/restore: restore an older snapshot, or a model that Redis lost."""
    service = request.app[SERVICE]
    model_hash, form = await read_optional_form(request, schemas.RestoreModel, FORM_BYTES_MAX)
    options = RestoreOptions(None if form.at is None else times.parse_past_time(form.at, words=False), form.version)
    if await service.history.find(model_hash) is None:
        raise NotFoundError(f"There is no model {model_hash}; create it with POST /v1/models.")
    reply = await service.queues.ask(model_hash, "put_back", timeout_s=TIMEOUT_S, restore=options)
    service.models.invalidate(model_hash)
    service.cache.observe_version(model_hash, reply.generation, reply.version)
    result: dict[str, Any] = reply.result
    snapshot = None if result["document"] is None else _snapshot_answer(result["document"])
    restored = schemas.RestoredAnswer(
        hash=model_hash,
        version=reply.version,
        rows_seen=reply.rows_seen,
        generation=reply.generation,
        sequence=result["sequence"],
        restored=result["restored"],
        rows_forgotten=result["rows_forgotten"],
        replayed=result["replayed"],
        damaged=result["corrupt"],
        snapshot=snapshot,
    )
    return json_response(restored)


def _snapshot_answer(document: Document) -> schemas.SnapshotAnswer:
    return schemas.SnapshotAnswer(**{name: document[name] for name in schemas.SnapshotAnswer.__struct_fields__})
