"""Reading a snapshot to predict with it, beside the live model.

Owns the steps from a request to the verified bundle, and their errors. Never touches the live model, marks a snapshot
or sends a reply. Invariant: the bundle is exactly that of the snapshot that the request names, or there is an error.
"""

import time
from collections.abc import Sequence

import msgspec
import structlog

from keepfit.errors import (
    EnvelopeError,
    KeepfitError,
    NotFoundError,
    RuntimeMismatchError,
    UnavailableError,
    UnknownKeyError,
    UnloadableError,
)
from keepfit.history.registry import past
from keepfit.jobs.messages import PastVersion, WorkerRequest
from keepfit.restore.restorer import Restorer
from keepfit.store.commit import Loaded
from keepfit_workers.computing import CRASHED, LATE, TOO_LARGE, Question
from keepfit_workers.context import WorkerContext
from keepfit_workers.past_bundles import PastBundle

log = structlog.get_logger(__name__)


def as_question(question: Question) -> Question:
    """Return what a question about a snapshot asks of its bundle."""
    request = question.request
    operation = "proba" if request.past is not None and request.past.proba else "predict"
    asked = msgspec.structs.replace(request, operation=operation)
    return Question(asked, question.deadline_s, question.size_bytes)


def load(context: WorkerContext, questions: Sequence[Question]) -> PastBundle | KeepfitError:
    """Return the bundle of the snapshot that all `questions` are about, read from the storage, or why there is none."""
    request = questions[0].request
    if max(question.deadline_s for question in questions) < time.monotonic():
        return LATE
    try:
        found, size_bytes = context.resources.run(lambda restorer: _read(restorer, request))
    except (EnvelopeError, UnavailableError) as error:
        version = 0 if request.past is None else request.past.version
        log.warning("snapshot_unreadable", hash=request.hash, version=version, reason=str(error))
        return error
    except KeepfitError as error:
        return error
    except MemoryError:
        context.bundles.cache.clear()
        context.note_out_of_memory(request.hash)
        return TOO_LARGE
    except Exception:
        log.exception("answer_failed", hash=request.hash, request_ids=[request.request_id])
        return KeepfitError(CRASHED)
    context.past_bundles.put(request, found, size_bytes)
    return found


async def _read(restorer: Restorer, request: WorkerRequest) -> tuple[PastBundle, int]:
    asked, registry = request.past or PastVersion(0, 0, ""), restorer.resources.registry
    registered = await registry.find(request.hash)
    document = None if registered is None else await past.find(registry, registered, asked.generation, asked.version)
    if registered is None or document is None or document["sha256"] != asked.sha256:
        raise NotFoundError(f"The model {request.hash} has no snapshot of version {asked.version} any more.")
    try:
        bundle = await restorer.reader.load(registered, document)
    except (RuntimeMismatchError, UnknownKeyError, UnloadableError):
        raise
    except EnvelopeError as error:
        raise past.damaged(document, str(error)) from error
    rows_seen = int(document["rows_seen"])
    described = Loaded(request.hash, asked.generation, asked.version, rows_seen, asked.sha256, b"", b"")
    return PastBundle(described, bundle), int(document["size_bytes"])
