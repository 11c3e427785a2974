"""How a prediction comes about: from what is kept, or by asking the workers.

Owns the order of the two, and that a model is watched from before it is asked. Invariant: see
:mod:`keepfit_gateway.prediction.cache`.
"""

from typing import NamedTuple

import msgspec

from keepfit.jobs.messages import Operation
from keepfit.rows.rows import Rows
from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.cache import Raw
from keepfit_gateway.prediction.http_caching import CacheControl
from keepfit_gateway.service import Service

encode = msgspec.json.Encoder().encode


class CachedReply(NamedTuple):
    """An answer: its ETag and JSON, and for how many seconds it was kept, if it was."""

    etag: str
    body: bytes
    age_s: float | None = None


async def predicted(
    service: Service,
    model: Model,
    operation: Operation,
    rows: Rows,
    key: bytes,
    wanted: CacheControl,
    raw: Raw | None,
    timeout_s: float | None = None,
) -> CachedReply:
    """Predict `rows`, shaped for `model`; `key` names the question, `raw` is the request by its very bytes.

    Raises
    ------
    NotFoundError, StaleModelError
        If the model is not (or no longer) the one that the rows were shaped for.
    QueueFullError, DeadlineError, UnavailableError, ConflictError, InvalidError
        As the workers, or their absence, have it.
    """
    cache = service.cache
    if wanted.use_cached:
        kept = cache.find(key, model.generation, wanted.age_s_max)
        if kept is not None:
            if raw is not None:
                cache.alias(kept, raw)
            return CachedReply(kept.etag, kept.body, cache.age_s(kept))
    with cache.watch(model.hash) as watched:
        found = await service.worker_client.ask(model.hash, operation, model.generation, rows, timeout_s)
        if operation == "proba":
            answer = schemas.PredictAnswer(
                hash=model.hash, version=found.version, rows_seen=found.rows_seen, **found.result
            )
        else:
            answer = schemas.PredictAnswer(
                hash=model.hash, version=found.version, rows_seen=found.rows_seen, predictions=found.result
            )
        body = encode(answer)
        etag = http_caching.etag_of(key, found.generation, found.version)
        if wanted.store:
            kept = cache.store(watched, (found.generation, found.version), key, body, etag)
            if kept is not None and raw is not None:
                cache.alias(kept, raw)
    return CachedReply(etag, body)
