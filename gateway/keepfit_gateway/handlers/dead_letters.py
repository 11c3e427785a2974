"""Handlers of what was put aside: list it, retry it, discard it.

Owns the translation between HTTP and :mod:`keepfit.store.dead_letters`, and nothing else. Invariant: what an answer
says was retried stands in the inbox by then, and in the row log, and the learn room is told.
"""

from aiohttp import web

from keepfit.errors import MalformedError, UnavailableError
from keepfit.store import dead_letters
from keepfit.store.dead_letters import Entry, RetryResult
from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.handlers.models import NUMBER, PAGE, PAGE_MAX, named_hash
from keepfit_gateway.learning.recorder import Recorder
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.bodies import read_json
from keepfit_gateway.web.offload import run_in_thread_if_large
from keepfit_gateway.web.responses import json_response

# 128 ids are 5 kB.
IDS_BYTES_MAX = 64 * 1024


async def list_dead(request: web.Request) -> web.Response:
    """GET …/dead: list what was put aside, oldest first."""
    service, query = request.app[SERVICE], dict(request.query)
    limit, after = query.pop("limit", str(PAGE)), query.pop("after", "")
    if query or len(request.query) > len(set(request.query)):
        raise MalformedError("The query parameters are limit and after, once each.")
    if not NUMBER.fullmatch(limit) or not 1 <= int(limit) <= PAGE_MAX:
        raise MalformedError(f"limit must be a whole number from 1 to {PAGE_MAX}.")
    if after and not dead_letters.ID.fullmatch(after):
        raise MalformedError("after must be the id that the page before named as next.")
    model = await service.models.describe(named_hash(request))
    entries, following = await service.dead_letters.page(model.hash, int(limit), after)
    size_bytes = sum(len(entry.payload) for entry in entries)
    return await run_in_thread_if_large(size_bytes, _listed, model, entries, following)


def _listed(model: Model, entries: list[Entry], following: str | None) -> web.Response:
    described = [
        schemas.DeadEntry(
            id=entry.id,
            generation=entry.generation,
            sequence=entry.sequence,
            timestamp=entry.timestamp,
            reason=entry.reason,
            rows=entry.rows,
            size_bytes=entry.size_bytes,
            **(dead_letters.shown(model.recipe, entry.payload) if entry.payload else {}),
        )
        for entry in entries
    ]
    return json_response(schemas.DeadAnswer(hash=model.hash, version=model.version, dead=described, next=following))


async def retry_dead(request: web.Request) -> web.Response:
    """POST …/dead/retry: move requests back to the inbox."""
    service = request.app[SERVICE]
    form = schemas.convert(await read_json(request, service.settings, IDS_BYTES_MAX), schemas.RetryDead)

    async def retry(model: Model) -> tuple[Model, RetryResult]:
        logged = service.recorder is not None
        return model, await service.dead_letters.retry(model, service.settings, form.ids, logged=logged)

    if service.recorder is not None:
        await service.recorder.check()
    model, retried = await service.models.run(named_hash(request), retry)
    if retried.sequences:
        service.acceptor.tell(model.hash)
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
            f"{len(retried.sequences)} requests wait in the inbox again and will be learned. The row log did not take "
            "them: they would be lost with Redis until a snapshot has them."
        ) from error


async def discard_dead(request: web.Request) -> web.Response:
    """POST …/dead/discard: forget requests for good."""
    service, model_hash = request.app[SERVICE], named_hash(request)
    form = schemas.convert(await read_json(request, service.settings, IDS_BYTES_MAX), schemas.DiscardDead)
    count, version = await service.dead_letters.discard(model_hash, form.ids)
    return json_response(schemas.DiscardedAnswer(hash=model_hash, version=version, discarded=count))
