"""How a prediction comes about: from what is kept, or by asking the workers.

Owns the order of the two, and that a model is watched from before it is asked. Invariant: see :mod:`gateway.cache`.
"""

from typing import NamedTuple

import msgspec

from gateway import forms, reuse
from gateway.cache import Raw
from gateway.reuse import Terms
from gateway.service import Service
from keepfit.questions import Operation
from keepfit.rows import Rows
from keepfit.store import Model

encode = msgspec.json.Encoder().encode


class Given(NamedTuple):
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
    wanted: Terms,
    raw: Raw | None,
    timeout_s: float | None = None,
) -> Given:
    """Predict `rows`, shaped for `model`; `key` names the question, `raw` is the request by its very bytes.

    Raises
    ------
    NotFoundError, StaleModelError
        If the model is not (or no longer) the one that the rows were shaped for.
    RoomFullError, DeadlineError, UnavailableError, ConflictError, InvalidError
        As the workers, or their absence, have it.
    """
    cache = service.cache
    if wanted.look_up:
        kept = cache.find(key, model.generation, wanted.age_s_max)
        if kept is not None:
            if raw is not None:
                cache.alias(kept, raw)
            return Given(kept.etag, kept.body, cache.age_s(kept))
    with cache.watch(model.hash) as watched:
        found = await service.asker.ask(model.hash, operation, model.generation, rows, timeout_s)
        if operation == "proba":
            answer = forms.PredictAnswer(
                hash=model.hash, version=found.version, rows_seen=found.rows_seen, **found.result
            )
        else:
            answer = forms.PredictAnswer(
                hash=model.hash, version=found.version, rows_seen=found.rows_seen, predictions=found.result
            )
        body = encode(answer)
        etag = reuse.etag_of(key, found.generation, found.version)
        if wanted.keep:
            kept = cache.keep(watched, (found.generation, found.version), key, body, etag)
            if kept is not None and raw is not None:
                cache.alias(kept, raw)
    return Given(etag, body)
