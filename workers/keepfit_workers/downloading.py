"""Downloads of models: from a live bundle to a file in the queue's Redis, which a gateway passes on.

Owns writing the file. Never changes a bundle. Invariants: a file is written whole before the reply, and expires; a
failure is a :class:`~keepfit.errors.KeepfitError` of this request.
"""

import hashlib

import structlog

from keepfit.errors import ConflictError, InvalidError, KeepfitError, NotFoundError
from keepfit.jobs import messages
from keepfit.jobs.messages import DownloadOptions, WorkerReply, WorkerRequest
from keepfit.model import object_kinds, pickling, plain, skops_files
from keepfit.model.bundle import Bundle
from keepfit.recipe import uploads
from keepfit.settings import Settings
from keepfit.store import staged_file
from keepfit_workers.activity import BATCH
from keepfit_workers.computing import CRASHED, TOO_LARGE
from keepfit_workers.context import WorkerContext

log = structlog.get_logger(__name__)


def serve(context: WorkerContext, request: WorkerRequest) -> WorkerReply:
    """Write a model to a file; the reply has its size and SHA-256."""
    try:
        return _write(context, request, request.download_options or DownloadOptions("", 1, "model", "skops"))
    except KeepfitError as error:
        return messages.failed(request, error)
    except MemoryError:
        context.bundles.cache.clear()
        context.note_out_of_memory(request.hash)
        return messages.failed(request, TOO_LARGE)
    except Exception:
        log.exception("answer_failed", hash=request.hash, request_ids=[request.request_id])
        return messages.failed(request, KeepfitError(CRASHED))


def _write(context: WorkerContext, request: WorkerRequest, options: DownloadOptions) -> WorkerReply:
    model = context.consumer.load({request.hash: context.bundles.digest(request.hash)}).get(request.hash)
    if model is None:
        raise NotFoundError(f"There is no live model {request.hash}.")
    if not model.digest:
        raise ConflictError("The model has not learned any row yet; send partial_fit first.")
    try:
        data = _file_of(context.bundles.get(model), options, context.settings)
    finally:
        context.activity.begin(BATCH)
    staged_file.store(context.queue, options.key, data, options.ttl_ms)
    result = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return WorkerReply(request.id, model.generation, model.version, model.rows_seen, result=result)


def _file_of(bundle: Bundle, options: DownloadOptions, settings: Settings) -> bytes:
    learner = plain.plain_estimator(bundle) if options.part == "model" else plain.bare_estimator(bundle)
    if options.format == "skops":
        return skops_files.dump(learner)
    keyring = uploads.upload_keyring(settings.upload_keys.get_secret_value())
    if keyring is None:
        raise InvalidError(
            "The workers have no KEEPFIT_UPLOAD_KEYS to sign a pickle with: set one, or download format=skops."
        )
    header = object_kinds.describe(learner, kind=bundle.recipe.entry.kind, is_trained=True)
    return keyring.seal(header, pickling.dump_by_value(learner, header.subject))
