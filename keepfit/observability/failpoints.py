"""Named fault points: places between two steps at which a test may have the process killed or stopped.

Owns their register, and what happens at one that is armed. Does nothing unless an entry point has armed one; to pass
one costs a call and a comparison, and none is passed more often than once a trip to Redis. Invariant: an armed point
fires once, whichever of a family of forked processes reaches it, so that successors can take over.
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
    "lease.claimed": "a lease has models or questions in hand, and nothing is done about them",
    "worker.taken": "a model is locked and its rows are read",
    "worker.fitted": "the rows are learned in memory, and nothing is written",
    "commit.sealed": "the new bundle is signed, and nothing is sent",
    "commit.done": "the commit is carried out, and the worker has not noted it",
    "worker.unlocking": "a turn is over while mail waits, and the model is still locked",
    "worker.unlocked": "the model is let go of, and nobody is told of the mail that waits",
    "lease.releasing": "nothing waits, and the lease is still in the register",
    "lease.released": "a lease has left the register, and no successor is sent for",
    "answers.computed": "predictions are computed, and none is sent",
    "bury.unlocked": "a dead worker's models are unlocked, and its lease is still in the register",
    "accept.begun": "a gateway has rows in hand, and nothing is sent",
    "accept.written_ahead": "a large request's rows are written ahead, and not accepted",
    "accept.done": "rows are accepted, and their clients have no answer",
    "rowlog.accepted": "rows are in Redis, and not in the row log",
    "rowlog.written": "rows are in the row log, and it is not looked whether their model is still the same",
    "hint.begun": "clients have their answers, and the learn room is not told",
    "hint.pushed": "the learn room is told, and no RQ job is enqueued",
    "model.registered": "a model is in the register, and not in the store",
    "model.unregistered": "a model is out of the register, and still in the store",
    "snapshot.read": "a bundle is read, and its intent is not written",
    "snapshot.begun": "the intent is written, and the blob is not",
    "snapshot.stored": "the blob is written, and the document is pending",
    "snapshot.committed": "the document is committed, and the model is not told",
    "snapshot.noted": "the model is told, and off the list of changed ones",
    "garbage.aborted": "documents are out of sight, and their blobs are there",
    "garbage.deleted": "blobs are deleted, and their documents are there",
    "rowlog.merged": "objects of the row log are merged, and still there",
    "rowlog.cleared": "objects of the row log that were merged are deleted, and others may be to be merged",
    "restore.fetched": "a snapshot is read and checked, and no generation is given out",
    "restore.replayed": "what was logged since is learned again in memory, and no generation is given out",
    "restore.numbered": "a generation is given out, and nothing is installed",
    "restore.remembered": "calls are known again by their keys, and the model is not live",
    "restore.installed": "the model is live, and nobody is told",
    "restore.rewound": "a live model has gone back to an older snapshot, and is not saved as that",
}
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class _Armed:
    name: str
    nth: int
    action: str
    # Shared by this process and all that it forks.
    reached: Any


_armed: _Armed | None = None


def arm(text: str) -> None:
    """Have one process killed or stopped at a point: `text` is ``name:nth:action``, as in ``worker.taken:3:kill``.

    Raises
    ------
    SettingsError
        If there is no such point or action, or `nth` is no number from 1.
    """
    global _armed  # noqa: PLW0603 - a point is anywhere in the process, and cannot be handed its orders
    name, _, rest = text.partition(":")
    nth, _, action = rest.partition(":")
    if name not in POINTS or action not in ACTIONS or not nth.isdecimal() or not int(nth):
        raise SettingsError(
            f"KEEPFIT_FAULT_POINT={text!r} is none: write name:nth:action, with {' or '.join(ACTIONS)} as the action "
            f"and one of these names: {', '.join(POINTS)}."
        )
    _armed = _Armed(name, int(nth), action, multiprocessing.Value("L", 0))


def disarm() -> None:
    """Do nothing at any point from now on."""
    global _armed  # noqa: PLW0603 - see `arm`
    _armed = None


def reach(name: str) -> None:
    """Be at the point `name`; if it is armed, and this is the time, this process dies or stops here."""
    if _armed is not None and _armed.name == name:
        _count(_armed)


def _count(armed: _Armed) -> None:
    with armed.reached.get_lock():
        armed.reached.value += 1
        due = armed.reached.value == armed.nth
    # Not under the lock: others would wait for the dead.
    if due:
        log.warning("fault_point", point=armed.name, action=armed.action)
        os.kill(os.getpid(), ACTIONS[armed.action])
