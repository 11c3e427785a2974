"""Mutants: the scripts with one thing wrong each, which the machines must notice.

Owns the list, and how one takes its script's place: in memory, for all calls of this process; nothing on disk changes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from unittest import mock

from keepfit.backends import redis_scripts
from tests.scripts.mutations_of_aside import DISCARD, PEEK, RETRY
from tests.scripts.mutations_of_models import ACCEPT, CLAIM_INBOX, COMMIT, INSTALL, OTHERS, RESTORE_IDEMPOTENCY, REWIND
from tests.scripts.mutations_of_rooms import ABANDON, CLAIM, PUSH, RELEASE


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one script: `old`, which stands there once, becomes `new`."""

    script: str
    name: str
    old: str
    new: str

    @property
    def id(self) -> str:
        """Script and name."""
        return f"{self.script}: {self.name}"

    @property
    def machine(self) -> Literal["models", "rooms"]:
        """Which machine drives the script."""
        return "rooms" if self.script in ROOM_SCRIPTS else "models"

    def text(self) -> str:
        """The script with the change."""
        return redis_scripts.TEXTS[self.script].replace(self.old, self.new)


# All of them take minutes; `python -m tests.scripts` takes them.
SHARES = 10
ROOM_SCRIPTS = {"push", "claim", "release", "abandon"}

MUTANTS = (
    *(Mutant("accept", *mutant) for mutant in ACCEPT),
    *(Mutant("commit", *mutant) for mutant in COMMIT),
    *(Mutant("claim_inbox", *mutant) for mutant in CLAIM_INBOX),
    *(Mutant("install", *mutant) for mutant in INSTALL),
    *(Mutant("restore_idempotency", *mutant) for mutant in RESTORE_IDEMPOTENCY),
    *(Mutant("rewind", *mutant) for mutant in REWIND),
    *(Mutant(*mutant) for mutant in OTHERS),
    *(Mutant("retry", *mutant) for mutant in RETRY),
    *(Mutant("discard", *mutant) for mutant in DISCARD),
    *(Mutant("peek", *mutant) for mutant in PEEK),
    *(Mutant("push", *mutant) for mutant in PUSH),
    *(Mutant("claim", *mutant) for mutant in CLAIM),
    *(Mutant("release", *mutant) for mutant in RELEASE),
    *(Mutant("abandon", *mutant) for mutant in ABANDON),
)


def share(day: int) -> tuple[Mutant, ...]:
    """Mutants to try on a day, some of each larger script: all of them in :data:`SHARES` days."""
    return MUTANTS[day % SHARES :: SHARES]


@contextmanager
def in_place(mutant: Mutant) -> Iterator[None]:
    """Let every call of the mutant's script run the mutant, until the block ends."""
    text = mutant.text()
    sha1 = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    with (
        mock.patch.dict(redis_scripts.SHA1, {mutant.script: sha1}),
        mock.patch.object(redis_scripts, "LOAD_ALL", (*redis_scripts.LOAD_ALL, ("SCRIPT", "LOAD", text))),
    ):
        yield
