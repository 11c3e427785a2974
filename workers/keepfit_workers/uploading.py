"""Uploads of trained objects: from the file that a gateway stored in the queue's Redis to a new model.

Owns reading the file, and the errors of a load. Never deletes the file: the gateway does, and a request whose worker
dies is answered by another one. Invariants: a file whose SHA-256 is not the one that the gateway computed is not
loaded; a failure is a :class:`~keepfit.errors.KeepfitError` of this request and leaves no model.
"""

import hashlib

import structlog

from keepfit.backends import redis_scripts
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.jobs import messages
from keepfit.jobs.messages import UploadOptions, WorkerReply, WorkerRequest
from keepfit.model import trained
from keepfit.recipe import uploads
from keepfit.transfer import first_version
from keepfit_workers.activity import BATCH, CALL
from keepfit_workers.computing import CRASHED, TOO_LARGE
from keepfit_workers.context import WorkerContext

log = structlog.get_logger(__name__)


def serve(context: WorkerContext, request: WorkerRequest) -> WorkerReply:
    """Create a model from an uploaded file; the reply says whether it was created."""
    try:
        uploaded = _create(context, request.hash, request.upload_options or UploadOptions("", "", ""))
    except KeepfitError as error:
        log.warning("upload_failed", hash=request.hash, reason=str(error))
        return messages.failed(request, error)
    except MemoryError:
        context.bundles.cache.clear()
        context.note_out_of_memory(request.hash)
        return messages.failed(request, TOO_LARGE)
    except Exception:
        log.exception("answer_failed", hash=request.hash, request_ids=[request.request_id])
        return messages.failed(request, KeepfitError(CRASHED))
    return WorkerReply(
        request.id,
        uploaded.generation,
        uploaded.version,
        uploaded.rows_seen,
        result={"created": uploaded.created},
    )


def _create(context: WorkerContext, model_hash: str, options: UploadOptions) -> first_version.Uploaded:
    settings = context.settings
    (data,) = redis_scripts.run(context.queue, ("GET", options.key))
    if data is None or hashlib.sha256(data).hexdigest() != options.sha256:
        raise UnavailableError("The file is no longer in Redis, which may be out of memory; upload it again.")
    keys = trained.Keys(context.keyring, uploads.upload_keyring(settings.upload_keys.get_secret_value()))
    context.activity.begin(CALL, model_hash)
    try:
        bundle = trained.new_bundle(data, keys, settings.bundle_bytes_max)
    finally:
        context.activity.begin(BATCH)
    del data
    created = context.resources.run(
        lambda restorer: first_version.create(
            restorer.resources, model_hash, options.metadata_text, bundle, settings.bundle_bytes_max
        )
    )
    log.info(
        "model_uploaded",
        hash=model_hash,
        generation=created.generation,
        rows_seen=created.rows_seen,
        created=created.created,
    )
    return created
