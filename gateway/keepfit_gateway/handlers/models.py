"""Handlers of models: create, describe, change parameters or code, delete.

Owns the translation between HTTP and the library, and nothing else. Invariants: a recipe or a change of parameters is
checked, in the process that checks recipes, before it is accepted; the 202 of a change is sent only after the change is
in Redis, its 200 only after it is committed.
"""

from typing import Any

import msgspec
import structlog
from aiohttp import web

from keepfit import identity
from keepfit.errors import ConflictError, MalformedError, TooLargeError
from keepfit.recipe import patch, uploads
from keepfit.recipe.recipe import left_out
from keepfit.security.api_keys import ADMIN
from keepfit.store import listing
from keepfit.store.inbox import Accepted
from keepfit.store.models import Model
from keepfit_gateway import bound_key, recipe_checker, schemas
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.handlers.inputs import (
    idempotency_key,
    model_hash_of,
    preferred_wait_s,
    read_form,
)
from keepfit_gateway.service import SERVICE, Service
from keepfit_gateway.web.bodies import read_json
from keepfit_gateway.web.problems import REQUEST_ID
from keepfit_gateway.web.responses import json_response

log = structlog.get_logger(__name__)

# Ten thousand labels of about a hundred characters; a document in MongoDB has at most 16 MiB.
RECIPE_BYTES_MAX = 8 * 2**20
# Ten thousand labels with their weights typically; the inbox accepts no more.
PARAMS_BYTES_MAX = 256 * 1024
# The text of the largest object, and the metadata of its model.
PATCH_BYTES_MAX = 2 * 2**20
# A change of parameters takes a worker milliseconds, so the default is to wait for it.
CHANGE_WAIT_S = 5
# A worker lists and reads the whole row log.
CHECK_S_MAX = 60.0


async def create_model(request: web.Request) -> web.Response:
    """POST /v1/models: create a model."""
    service = request.app[SERVICE]
    document = await read_json(request, service.settings, RECIPE_BYTES_MAX)
    form = schemas.convert(document, schemas.CreateModel)
    metadata = identity.check_metadata(form.metadata)
    bound_key.check_metadata(metadata)
    recipe = await recipe_checker.check(form.recipe, service.uploads)
    model, created = await service.models.create(metadata, recipe, left_out(form.recipe))
    headers = {"Location": f"/v1/models/{model.hash}"}
    return json_response(listing.describe(model), 201 if created else 200, headers=headers)


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{hash}: describe a model. The bytes of an uploaded object are for the scope `admin` alone."""
    model = await request.app[SERVICE].models.describe(await model_hash_of(request))
    return json_response(listing.describe(model, with_object=ADMIN in request[CALLER].scopes))


async def delete_model(request: web.Request) -> web.Response:
    """DELETE /v1/models/{hash}: delete a model."""
    await request.app[SERVICE].models.delete(await model_hash_of(request))
    return web.Response(status=204)


async def patch_model(request: web.Request) -> web.Response:
    """PATCH /v1/models/{hash}: change parameters or the object's code, and wait until the change is committed."""
    service = request.app[SERVICE]
    key, preferred_s = idempotency_key(request), preferred_wait_s(request)
    wait_s = CHANGE_WAIT_S if preferred_s is None else preferred_s
    model_hash, form = await read_form(request, schemas.PatchModel, PATCH_BYTES_MAX)
    _check_patch(form)

    async def accept(_: Model) -> tuple[int, Accepted]:
        # Read the current state: which parameters are valid together depends on earlier changes.
        model = await service.models.describe(model_hash)
        if form.params is not None:
            change = await recipe_checker.check_change(model.recipe, model.changed, form.params)
        else:
            change = patch.new_code(model.recipe, model.changed, form.object or "", form.state, service.uploads)
            if form.state == patch.LEARN_AGAIN:
                await _check_rows(service, model_hash)
        accepted = await service.acceptor.accept_change(model_hash, model.generation, change, key)
        service.cache.observe_version(model_hash, model.generation, accepted.version)
        if form.object is not None:
            _log_code(request, model_hash, accepted.sequence, form.object)
        return model.generation, accepted

    # Watch the model before the change is accepted, or its commit may be missed.
    with service.commit_feed.watch(model_hash) as watch:
        generation, accepted = await service.models.run(model_hash, accept)
        commit = None
        if wait_s:
            commit = await service.commit_feed.wait(
                watch, model_hash, generation, accepted.sequence, wait_s, repeated=key is not None
            )
    if commit is None:
        pending = schemas.ChangeAnswer(
            hash=model_hash, sequence=accepted.sequence, generation=generation, version=accepted.version
        )
        return json_response(pending, 202)
    description: dict[str, Any] = listing.describe(await service.models.describe(model_hash))
    headers = {"Preference-Applied": f"wait={wait_s}"} if preferred_s else None
    return json_response(description, headers=headers)


async def _check_rows(service: Service, model_hash: str) -> None:
    """Raise ConflictError unless all rows of a model can be learned again; only workers may read the row log."""
    if service.recorder is None:
        raise ConflictError(
            "There is no row log (KEEPFIT_ROW_LOG_URL), so the rows to learn again are not here; nothing was changed."
        )
    await service.queues.ask(model_hash, "count_rows", timeout_s=CHECK_S_MAX)


def _check_patch(form: schemas.PatchModel) -> None:
    """Raise unless the form has either parameters, not too many, or an object."""
    if (form.params is None) == (form.object is None):
        raise MalformedError("Either params (parameters to change) or object (new code) is required.")
    if form.params is not None and form.state != patch.KEEP:
        raise MalformedError("state belongs to object; parameters always keep what was learned.")
    if form.params is not None and len(msgspec.json.encode(form.params)) > PARAMS_BYTES_MAX:
        raise TooLargeError(f"params has more than {PARAMS_BYTES_MAX} bytes.")


def _log_code(request: web.Request, model_hash: str, sequence: int, text: str) -> None:
    """Log who has sent which code to a model: it runs in workers from then on."""
    log.info(
        "code_accepted",
        hash=model_hash,
        sequence=sequence,
        name=uploads.header_of(text).name,
        sha256=uploads.digest_of(text),
        api_key=request[CALLER].name,
        request_id=request[REQUEST_ID],
    )
