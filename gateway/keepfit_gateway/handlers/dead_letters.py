"""Handlers of dead letters: list, retry, discard.

Owns the translation between HTTP and :mod:`keepfit.store.dead_letters`, and nothing else. Invariant: a request that an
answer reports as retried is in the inbox, and in the row log if there is one, and the learn queue is notified.
"""

from aiohttp import web

from keepfit.errors import UnavailableError
from keepfit.store import dead_letters
from keepfit.store.dead_letters import DeadLetter, RetryResult
from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import model_hash_of, page_parameters, read_form
from keepfit_gateway.learning.recorder import Recorder
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.offload import compute
from keepfit_gateway.web.responses import json_response

# 128 ids are 5 kB.
IDS_BYTES_MAX = 64 * 1024


async def list_dead(request: web.Request) -> web.Response:
    """GET …/dead: list dead letters, oldest first."""
    service, page = request.app[SERVICE], page_parameters(request, dead_letters.ID)
    model = await service.models.describe(await model_hash_of(request))
    entries, following = await service.dead_letters.page(model.hash, page.limit, page.after)
    size_bytes = sum(len(entry.payload) for entry in entries)
    return await compute(size_bytes, _page_response, model, entries, following)


def _page_response(model: Model, entries: list[DeadLetter], following: str | None) -> web.Response:
    described = [
        schemas.DeadEntry(
            id=entry.id,
            generation=entry.generation,
            sequence=entry.sequence,
            timestamp=entry.timestamp,
            reason=entry.reason,
            rows=entry.rows,
            size_bytes=entry.size_bytes,
            **(dead_letters.decode_payload(model.recipe, entry.payload) if entry.payload else {}),
        )
        for entry in entries
    ]
    return json_response(schemas.DeadAnswer(hash=model.hash, version=model.version, dead=described, next=following))


async def retry_dead(request: web.Request) -> web.Response:
    """POST …/dead/retry: move dead letters back to the inbox."""
    service = request.app[SERVICE]
    model_hash, form = await read_form(request, schemas.RetryDead, IDS_BYTES_MAX)

    async def retry(model: Model) -> tuple[Model, RetryResult]:
        logged = service.recorder is not None
        return model, await service.dead_letters.retry(model, service.settings, form.ids, logged=logged)

    if service.recorder is not None:
        await service.recorder.check()
    model, retried = await service.models.run(model_hash, retry)
    if retried.sequences:
        service.acceptor.notify(model.hash)
        service.cache.observe_version(model.hash, model.generation, retried.version)
    if service.recorder is not None:
        await _record(service.recorder, retried)
    answer = schemas.RetriedAnswer(
        hash=model.hash,
        version=retried.version,
        generation=model.generation,
        accepted=len(retried.sequences),
        sequence=retried.sequences[-1] if retried.sequences else None,
        refused=[schemas.RefusedRetry(id=name, reason=why) for name, why in retried.refused.items()],
        left=retried.left,
    )
    return json_response(answer, 202)


async def _record(recorder: Recorder, retried: RetryResult) -> None:
    try:
        await recorder.record(retried.calls)
    except UnavailableError as error:
        raise UnavailableError(
            f"{len(retried.sequences)} requests are in the inbox again and will be learned. The row log did not store "
            "them: if Redis loses its data before a snapshot contains them, they are lost."
        ) from error


async def discard_dead(request: web.Request) -> web.Response:
    """POST …/dead/discard: delete dead letters."""
    service = request.app[SERVICE]
    model_hash, form = await read_form(request, schemas.DiscardDead, IDS_BYTES_MAX)

    async def discard(model: Model) -> tuple[int, int]:
        return await service.dead_letters.discard(model.hash, form.ids)

    count, version = await service.models.run(model_hash, discard)
    return json_response(schemas.DiscardedAnswer(hash=model_hash, version=version, discarded=count))
