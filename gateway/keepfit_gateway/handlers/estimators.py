"""Handlers of trained objects: upload one as the first version of a model.

Owns the translation between HTTP and worker requests, and nothing else. Never unpickles, and never opens a file of
skops: workers do. Invariant: a 201 is sent after the model has a snapshot and is live.
"""

from typing import Any

from aiohttp import web

from keepfit import identity
from keepfit.errors import MalformedError
from keepfit.jobs.messages import UploadOptions
from keepfit.security.api_keys import ADMIN
from keepfit.store import listing
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.responses import json_response


async def upload_estimator(request: web.Request) -> web.Response:
    """POST /v1/estimator: create a model from a file with a trained object."""
    service = request.app[SERVICE]
    metadata = _metadata_parameter(request)
    await service.models.check_upload(metadata)
    async with service.files.receive(request) as (file, digest):
        options = UploadOptions(identity.canonical(metadata).decode(), file.key, digest)
        model, created = await service.models.upload(metadata, options)
    headers = {"Location": f"/v1/models/{model.hash}"}
    described = listing.describe(model, with_object=ADMIN in request[CALLER].scopes)
    return json_response(described, 201 if created else 200, headers=headers)


def _metadata_parameter(request: web.Request) -> dict[str, Any]:
    """Return the metadata in the query; raise MalformedError or InvalidError if there is none, or it is invalid."""
    sent = request.query.getall("metadata", [])
    if len(sent) != 1:
        raise MalformedError('The query must have the metadata of the model once, as JSON: metadata={"type": "shoes"}.')
    return identity.check_metadata(identity.parse_json(sent[0].encode(), "The query parameter metadata"))
