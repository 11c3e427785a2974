"""PATCH of a model: parameters of its estimator, changed in their place among the rows.

Owns the translation between HTTP and :mod:`keepfit.model.parameters`, and nothing else. Invariants: what can be checked
is checked before the change is accepted, in the process that checks recipes; a 202 is sent only after the change is in
Redis; a 200 only after it is made.
"""

from typing import Any

from aiohttp import web

from keepfit.store import listing
from keepfit.store.inbox import Accepted
from keepfit.store.models import Model
from keepfit_gateway import recipe_checker, schemas
from keepfit_gateway.handlers.models import idempotency_key, named_hash, preferred_wait
from keepfit_gateway.learning import commit_feed
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.bodies import read_json
from keepfit_gateway.web.responses import json_response

# A change is a word with a worker, so it is waited for where nobody says how long.
WAIT_S = 5
# Of ten thousand labels with their weights as a rule, and not more than the inbox takes.
PARAMS_BYTES_MAX = 256 * 1024


async def patch_model(request: web.Request) -> web.Response:
    """PATCH /v1/models/{hash}: change parameters, and wait until it is done."""
    service, model_hash = request.app[SERVICE], named_hash(request)
    document = await read_json(request, service.settings, PARAMS_BYTES_MAX)
    params = schemas.convert(document, schemas.PatchModel).params
    key, wait_s = idempotency_key(request), preferred_wait(request, otherwise=WAIT_S)

    async def accept(_: Model) -> tuple[int, Accepted]:
        # As it is now: what was changed before decides what goes together.
        model = await service.models.describe(model_hash)
        change = await recipe_checker.check_change(model.recipe, model.changed, params)
        accepted = await service.acceptor.accept_change(model_hash, model.generation, change, key)
        service.cache.observe_version(model_hash, model.generation, accepted.version)
        return model.generation, accepted

    # To be told of a commit one listens before the change is accepted.
    with service.commit_feed.watch(model_hash) as watch:
        generation, accepted = await service.models.run(model_hash, accept)
        done = None
        if key is not None and wait_s:
            # A key that came before may stand for a change long made; no commit will tell of it again.
            done = await service.commit_feed.known(model_hash, generation, accepted.sequence)
        if done is None and wait_s:
            done = await commit_feed.learned(watch, generation, accepted.sequence, wait_s)
    if done is None:
        waiting = schemas.ChangeAnswer(
            hash=model_hash, sequence=accepted.sequence, generation=generation, version=accepted.version
        )
        return json_response(waiting, 202)
    described: dict[str, Any] = listing.describe(await service.models.describe(model_hash))
    headers = {"Preference-Applied": f"wait={wait_s}"} if "Prefer" in request.headers else None
    return json_response(described, headers=headers)
