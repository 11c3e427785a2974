"""Handlers of trained objects: upload one as the first version of a model, and download a model as one.

Owns the translation between HTTP and worker requests, and nothing else. Never unpickles, and never opens a file of
skops: workers do. Invariants: a 201 is sent after the model has a
snapshot and is live; the version in the header of a download is that of its bytes.
"""

from base64 import b64encode
from typing import Any, TypeVar

from aiohttp import hdrs, web

from keepfit import identity
from keepfit.errors import MalformedError
from keepfit.jobs.messages import DownloadOptions, FileFormat, FilePart, UploadOptions, WorkerReply
from keepfit.security.api_keys import ADMIN
from keepfit.store import listing
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.file_transfer import WORKER_TIMEOUT_S
from keepfit_gateway.handlers.inputs import model_hash_of
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.responses import json_response

OCTETS = "application/octet-stream"
FORMATS: tuple[FileFormat, ...] = ("skops", "pickle")
PARTS: tuple[FilePart, ...] = ("model", "estimator")
# The digest is that of RFC 9530.
VERSION, ROWS_SEEN, DIGEST = "Model-Version", "Model-Rows-Seen", "Repr-Digest"

ChoiceT = TypeVar("ChoiceT", FileFormat, FilePart)


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


async def download_estimator(request: web.Request) -> web.Response:
    """GET …/estimator: the model as a fitted object of scikit-learn or River."""
    service, model_hash = request.app[SERVICE], await model_hash_of(request)
    wanted, part = _choice(request, "format", FORMATS), _choice(request, "part", PARTS)
    model = await service.models.describe(model_hash)
    etag = _etag(model.generation, model.version, part, wanted)
    if http_caching.matches(request.headers, etag):
        return web.Response(status=304, headers={hdrs.ETAG: etag})
    if request.method == hdrs.METH_HEAD:
        return web.Response(headers={hdrs.ETAG: etag, hdrs.CONTENT_TYPE: OCTETS, VERSION: str(model.version)})

    async def write(key: str, ttl_ms: int) -> WorkerReply:
        options = DownloadOptions(key, ttl_ms, part, wanted)
        return await service.queues.ask(model_hash, "download", timeout_s=WORKER_TIMEOUT_S, download=options)

    reply, pieces = await service.files.send(write)
    headers = {
        hdrs.CONTENT_TYPE: OCTETS,
        hdrs.CONTENT_LENGTH: str(reply.result["size_bytes"]),
        hdrs.CONTENT_DISPOSITION: f'attachment; filename="{model_hash[:12]}-{reply.version}.{wanted}"',
        hdrs.CACHE_CONTROL: "no-cache",
        hdrs.ETAG: _etag(reply.generation, reply.version, part, wanted),
        VERSION: str(reply.version),
        ROWS_SEEN: str(reply.rows_seen),
        DIGEST: f"sha-256=:{b64encode(bytes.fromhex(reply.result['sha256'])).decode()}:",
    }
    return web.Response(body=pieces, headers=headers)


def _choice(request: web.Request, name: str, choices: tuple[ChoiceT, ...]) -> ChoiceT:
    """Return a query parameter that must be one of `choices`, the first by default; raise MalformedError if not."""
    sent = request.query.getall(name, [choices[0]])
    found = [choice for choice in choices if sent == [choice]]
    if not found:
        raise MalformedError(f"{name} must be one of {', '.join(choices)}.")
    return found[0]


def _etag(generation: int, version: int, part: str, wanted: str) -> str:
    # Weak, because a file of the same object has other bytes each time it is written.
    return f'W/"{generation}-{version}-{part}-{wanted}"'


def _metadata_parameter(request: web.Request) -> dict[str, Any]:
    """Return the metadata in the query; raise MalformedError or InvalidError if there is none, or it is invalid."""
    sent = request.query.getall("metadata", [])
    if len(sent) != 1:
        raise MalformedError('The query must have the metadata of the model once, as JSON: metadata={"type": "shoes"}.')
    return identity.check_metadata(identity.parse_json(sent[0].encode(), "The query parameter metadata"))
