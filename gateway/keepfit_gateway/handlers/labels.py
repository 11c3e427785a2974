"""Handler of late labels: join rows that were predicted with an id with their labels, and learn them.

Owns the translation between HTTP and :mod:`keepfit_gateway.learning.open_rows`. Invariants: a label that an answer
counts as accepted is in the inbox, and in the row log if there is one; each of the others is named with the reason. A
label that no row of the model can have refuses the whole call, and nothing is changed.
"""

from contextlib import nullcontext

from aiohttp import web

from keepfit.observability import request_id
from keepfit.rows import acceptance, served
from keepfit.store import late_labels
from keepfit.store.late_labels import Labelled, LabelRequest
from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import idempotency_key, preferred_wait_s, read_form
from keepfit_gateway.schemas import LateLabel, RefusedLabel
from keepfit_gateway.service import SERVICE, Service
from keepfit_gateway.web.responses import json_response

# 512 labels with ids of 128 characters, and a thousand outputs each.
LABELS_BYTES_MAX = 8 * 2**20


async def label_rows(request: web.Request) -> web.Response:
    """POST …/labels: accept labels, and wait until they are learned if the client prefers that."""
    service, key = request.app[SERVICE], idempotency_key(request)
    wait_s = preferred_wait_s(request) or 0
    model_hash, form = await read_form(request, schemas.LabelRows, LABELS_BYTES_MAX)
    labels = form.labels

    async def accept(model: Model) -> tuple[Model, Labelled]:
        return model, await _accept(service, model, labels, key)

    # Watch the model before the labels are accepted, or their commit may be missed.
    with service.commit_feed.watch(model_hash) if wait_s else nullcontext() as watch:
        model, labelled = await service.models.run(model_hash, accept)
        last, commit = labelled.first + labelled.accepted - 1, None
        if watch is not None and labelled.accepted:
            commit = await service.commit_feed.wait(
                watch, model_hash, model.generation, last, wait_s, repeated=key is not None
            )
    errors = _refused(labels, labelled)
    if commit is None:
        answer = schemas.LabelsAnswer(
            hash=model_hash,
            accepted=labelled.accepted,
            sequence=last if labelled.accepted else None,
            generation=model.generation,
            version=labelled.version,
            errors=errors,
        )
        return json_response(answer, 202)
    learned = schemas.LabelsLearnedAnswer(
        hash=model_hash,
        accepted=labelled.accepted,
        sequence=last,
        version=commit.version,
        rows_seen=commit.rows_seen,
        errors=errors,
    )
    return json_response(learned, headers={"Preference-Applied": f"wait={wait_s}"})


async def _accept(service: Service, model: Model, labels: list[LateLabel], key: str | None) -> Labelled:
    targets = served.encode_labels(model.recipe, [one.y for one in labels], [one.sample_weight for one in labels])
    ids = [str(one.id) for one in labels]
    labelled = await service.open_rows.label(
        LabelRequest(model.hash, model.generation, ids, targets, key, request_id.sent.get(), acceptance.now_s())
    )
    service.traffic.accepted(model.hash, labelled.accepted)
    service.cache.observe_version(model.hash, model.generation, labelled.version)
    return labelled


def _refused(labels: list[LateLabel], labelled: Labelled) -> list[RefusedLabel]:
    return [
        RefusedLabel(index=i, id=label.id, reason=reason, detail=detail)  # type: ignore[arg-type]
        for i, (label, letter) in enumerate(zip(labels, labelled.outcomes, strict=False))
        if letter in late_labels.REASONS
        for reason, detail in (late_labels.REASONS[letter],)
    ]
