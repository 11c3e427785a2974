"""Mutants: scripts with one mistake each, which the machines must detect.

Owns the list and the replacement of a script: in memory, for all calls of this process; nothing on disk changes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from unittest import mock

from keepfit.backends import redis_scripts
from tests.scripts.dead_letter_mutants import DISCARD, PEEK, RETRY
from tests.scripts.job_mutants import JOBS
from tests.scripts.open_rows_mutants import EXPIRE_ROWS, KEEP_ROWS, LABEL_ROWS, MODELS, NOTE_ROWS
from tests.scripts.run_queue_mutants import ABANDON, CLAIM, MARK_RESTORES, PUSH, RELEASE, RENEW_LEASE, UNMARK_RESTORES
from tests.scripts.store_mutants import (
    ACCEPT,
    CLAIM_INBOX,
    COMMIT,
    INSTALL,
    OTHERS,
    RESTORE_IDEMPOTENCY,
    REWIND,
    UNLOAD,
)
from tests.scripts.token_mutants import TAKE_TOKENS


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one script: `old`, which occurs there once, becomes `new`."""

    script: str
    name: str
    old: str
    new: str
    touches_open_rows: bool = False

    @property
    def id(self) -> str:
        """Return script and name."""
        return f"{self.script}: {self.name}"

    @property
    def machine(self) -> Literal["models", "open rows", "run queue", "pull jobs", "tokens"]:
        """Return the machine that drives the script."""
        if self.touches_open_rows:
            return "open rows"
        if self.script in JOB_SCRIPTS:
            return "pull jobs"
        if self.script == "take_tokens":
            return "tokens"
        return "run queue" if self.script in RUN_QUEUE_SCRIPTS else "models"

    def text(self) -> str:
        """Return the script with the change."""
        return redis_scripts.TEXTS[self.script].replace(self.old, self.new)


# All of them take minutes: `python -m tests.scripts` runs them.
SHARES = 14
RUN_QUEUE_SCRIPTS = {"push", "claim", "renew_lease", "mark_restores", "unmark_restores", "release", "abandon"}
JOB_SCRIPTS = {"create_job", "claim_job", "advance_job", "cancel_job"}

MUTANTS = (
    *(Mutant("accept", *mutant) for mutant in ACCEPT),
    *(Mutant("commit", *mutant) for mutant in COMMIT),
    *(Mutant("claim_inbox", *mutant) for mutant in CLAIM_INBOX),
    *(Mutant("install", *mutant) for mutant in INSTALL),
    *(Mutant("restore_idempotency", *mutant) for mutant in RESTORE_IDEMPOTENCY),
    *(Mutant("rewind", *mutant) for mutant in REWIND),
    *(Mutant("unload", *mutant) for mutant in UNLOAD),
    *(Mutant(*mutant) for mutant in OTHERS),
    *(Mutant("retry", *mutant) for mutant in RETRY),
    *(Mutant("discard", *mutant) for mutant in DISCARD),
    *(Mutant("peek", *mutant) for mutant in PEEK),
    *(Mutant("keep_rows", *mutant, True) for mutant in KEEP_ROWS),
    *(Mutant("label_rows", *mutant, True) for mutant in LABEL_ROWS),
    *(Mutant("expire_rows", *mutant, True) for mutant in EXPIRE_ROWS),
    *(Mutant("note_rows", *mutant, True) for mutant in NOTE_ROWS),
    *(Mutant(*mutant, True) for mutant in MODELS),
    *(Mutant("push", *mutant) for mutant in PUSH),
    *(Mutant("claim", *mutant) for mutant in CLAIM),
    *(Mutant("renew_lease", *mutant) for mutant in RENEW_LEASE),
    *(Mutant("mark_restores", *mutant) for mutant in MARK_RESTORES),
    *(Mutant("unmark_restores", *mutant) for mutant in UNMARK_RESTORES),
    *(Mutant("release", *mutant) for mutant in RELEASE),
    *(Mutant("abandon", *mutant) for mutant in ABANDON),
    *(Mutant(*mutant) for mutant in JOBS),
    *(Mutant("take_tokens", *mutant) for mutant in TAKE_TOKENS),
)


def share(day: int) -> tuple[Mutant, ...]:
    """Return the mutants of a day, some of each larger script; all of them run in :data:`SHARES` days."""
    return MUTANTS[day % SHARES :: SHARES]


@contextmanager
def in_place(mutant: Mutant) -> Iterator[None]:
    """Run the mutant in place of its script until the block ends."""
    text = mutant.text()
    sha1 = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    with (
        mock.patch.dict(redis_scripts.SHA1, {mutant.script: sha1}),
        mock.patch.object(redis_scripts, "LOAD_ALL", (*redis_scripts.LOAD_ALL, ("SCRIPT", "LOAD", text))),
    ):
        yield
