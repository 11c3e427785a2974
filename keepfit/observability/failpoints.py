"""Failpoints: named places between two steps at which a test can kill or stop the process.

Owns the list of names and the action at an armed failpoint. Does nothing unless an entry point has armed one: passing a
failpoint costs a call and a comparison, and none is passed more often than once per round trip to Redis. Invariant: an
armed failpoint fires once in a family of forked processes, so that a successor is not killed as well.
"""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from typing import Any

import structlog

from keepfit.errors import SettingsError

log = structlog.get_logger(__name__)

POINTS = {
    "lease.claimed": "a lease has claimed models or worker requests and has not begun to process them",
    "worker.claimed": "a model is locked and its pending requests are read",
    "worker.fitted": "the requests are learned in memory and nothing is written",
    "commit.sealed": "the new bundle is signed and nothing is sent",
    "commit.done": "the commit is done and the worker has not recorded it",
    "worker.unlocking": "the model has pending requests left and is still locked",
    "worker.unlocked": "the model is unlocked and its pending requests are not in the run queue",
    "lease.releasing": "both run queues are empty and the lease is still registered",
    "lease.released": "a lease is no longer registered and its successor is not enqueued",
    "answers.computed": "predictions are computed and no reply is sent",
    "reap.unlocked": "the models of a dead worker are unlocked and its lease is still registered",
    "accept.begun": "a gateway holds shaped rows and nothing is sent",
    "accept.written_ahead": "the body of a large request is staged and the request is not accepted",
    "accept.done": "a request is accepted and its client has no response",
    "rowlog.accepted": "requests are in Redis and not in the row log",
    "rowlog.written": "requests are in the row log and the generations of their models are not checked again",
    "pull.read": "the rows of a chunk are shaped and nothing is sent",
    "pull.accepted": "a chunk is accepted and the record of its job does not say so",
    "pull.noted": "the record of a job says that a chunk is done",
    "rows.kept": "predicted rows are kept and their client has no response",
    "labels.begun": "a gateway holds labels and nothing is sent",
    "labels.done": "labels are accepted and their client has no response",
    "hint.begun": "clients have their responses and the models are not in the learn queue",
    "hint.pushed": "the models are in the learn queue and no RQ job is enqueued",
    "model.registered": "a model is in the registry and not in the store",
    "model.unregistered": "a model is no longer in the registry and still in the store",
    "upload.begun": "the intent of an uploaded model is written and its blob is not",
    "upload.stored": "the blob of an uploaded model is written and its document is pending",
    "upload.saved": "the document of an uploaded model is committed and the model is not registered",
    "upload.registered": "an uploaded model is registered and not live",
    "snapshot.read": "a bundle is read and its intent is not written",
    "snapshot.begun": "the intent is written and the blob is not",
    "snapshot.stored": "the blob is written and the document is pending",
    "snapshot.committed": "the document is committed and the store has not recorded it",
    "snapshot.noted": "the store has recorded the snapshot and the model is no longer listed as changed",
    "garbage.aborted": "documents are marked as aborted and their blobs exist",
    "garbage.deleted": "blobs are deleted and their documents exist",
    "rowlog.merged": "objects of the row log are merged and still exist",
    "rowlog.cleared": "the merged objects of the row log are deleted and more may have to be merged",
    "restore.fetched": "a snapshot is read and verified and no generation is assigned",
    "restore.replayed": "later requests are replayed in memory and no generation is assigned",
    "restore.numbered": "a generation is assigned and nothing is installed",
    "restore.remembered": "idempotency keys are restored and the model is not live",
    "restore.installed": "the model is live and the commit is not published",
    "restore.rewound": "a live model is rewound to an older snapshot and not saved in that state",
}
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class _Armed:
    name: str
    nth: int
    action: str
    # Shared by this process and all processes that it forks.
    reached: Any


_armed: _Armed | None = None


def arm(text: str) -> None:
    """Arm a failpoint. `text` is ``name:nth:action``, for example ``worker.claimed:3:kill``.

    Raises
    ------
    SettingsError
        If the name or the action does not exist, or `nth` is not a number from 1.
    """
    global _armed  # noqa: PLW0603 - failpoints are all over the process and take no arguments
    name, _, rest = text.partition(":")
    nth, _, action = rest.partition(":")
    if name not in POINTS or action not in ACTIONS or not nth.isdecimal() or not int(nth):
        raise SettingsError(
            f"KEEPFIT_FAULT_POINT={text!r} is not a failpoint: use name:nth:action, with {' or '.join(ACTIONS)} as "
            f"the action and one of these names: {', '.join(POINTS)}."
        )
    _armed = _Armed(name, int(nth), action, multiprocessing.Value("L", 0))


def disarm() -> None:
    """Disarm the armed failpoint, if there is one."""
    global _armed  # noqa: PLW0603 - see `arm`
    _armed = None


def reach(name: str) -> None:
    """Pass the failpoint `name`. Kill or stop this process if it is armed and this is the nth pass."""
    if _armed is not None and _armed.name == name:
        _count(_armed)


def _count(armed: _Armed) -> None:
    with armed.reached.get_lock():
        armed.reached.value += 1
        due = armed.reached.value == armed.nth
    # After the lock is released: a killed process would hold it forever.
    if due:
        log.warning("failpoint_fired", point=armed.name, action=armed.action)
        os.kill(os.getpid(), ACTIONS[armed.action])
