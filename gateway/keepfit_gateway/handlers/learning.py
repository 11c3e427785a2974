"""Handler of learning: accept rows, and wait for their commit if the client prefers that.

Owns :func:`accept_rows`, which the fast path calls too. Invariant: a 202 is sent only after the rows are in Redis, and
in the row log if there is one.
"""

from contextlib import nullcontext
from functools import partial

from aiohttp import web

from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import idempotency_key, preferred_wait_s, read_rows
from keepfit_gateway.schemas import AcceptedAnswer
from keepfit_gateway.service import SERVICE, SETTINGS, Service
from keepfit_gateway.web.bodies import BODY_MEMORY
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, compute_in_thread
from keepfit_gateway.web.responses import json_response
from keepfit_gateway.web.rows_body import RowsBody


async def accept_rows(service: Service, model: Model, rows: RowsBody, key: str | None) -> AcceptedAnswer:
    """Check rows against the model's recipe and accept them; `key` is the Idempotency-Key.

    Raises
    ------
    InvalidError
        If the rows do not fit the recipe.
    NotFoundError, StaleModelError
        If the model was deleted or has another generation by now.
    IdempotencyError, InboxFullError, UnavailableError
        As :meth:`~keepfit_gateway.learning.acceptor.Acceptor.accept`.
    """
    if rows.size <= INLINE_BYTES_MAX:
        shaped = rows.shape(model.recipe, learning=True)
    else:
        shaped = await compute_in_thread(rows.size, rows.shape, model.recipe, learning=True)
    accepted = await service.acceptor.accept(model, shaped, key)
    service.traffic.accepted(model.hash, shaped.n)
    service.cache.observe_version(model.hash, model.generation, accepted.version)
    return AcceptedAnswer(
        hash=model.hash,
        accepted=shaped.n,
        sequence=accepted.sequence,
        generation=model.generation,
        version=accepted.version,
    )


async def partial_fit(request: web.Request) -> web.Response:
    """POST …/partial_fit: accept rows, and wait until they are learned if the client prefers that."""
    service = request.app[SERVICE]
    key, wait_s = idempotency_key(request), preferred_wait_s(request) or 0
    rows = await read_rows(request, schemas.PartialFit, request.app[SETTINGS].body_timeout_s)
    model_hash = rows.model_hash

    # Watch the model before the rows are accepted, or their commit may be missed.
    with service.commit_feed.watch(model_hash) if wait_s else nullcontext() as watch:
        accepted = await service.models.run(model_hash, partial(accept_rows, service, rows=rows, key=key))
        # Release the rows before the wait: they may be many, and the wait long.
        del rows
        request.app[BODY_MEMORY].release(request)
        commit = None
        if watch is not None:
            commit = await service.commit_feed.wait(
                watch, model_hash, accepted.generation, accepted.sequence, wait_s, repeated=key is not None
            )
    if commit is None:
        return json_response(accepted, 202)
    learned = schemas.LearnedAnswer(
        hash=model_hash,
        accepted=accepted.accepted,
        sequence=accepted.sequence,
        version=commit.version,
        rows_seen=commit.rows_seen,
    )
    return json_response(learned, headers={"Preference-Applied": f"wait={wait_s}"})
