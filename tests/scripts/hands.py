"""What workers and snapshotters have in hand, as keepfit gave it out and as the plain store did."""

from dataclasses import dataclass, replace
from typing import Any

from keepfit.store.commit import Claimed
from keepfit.store.models import Model
from tests.scripts.plain import Bundled, Held

# What goes wrong with a commit that is otherwise right.
WRONG = ("generation", "digest", "learned", "chain", "stage")


@dataclass(frozen=True, slots=True)
class Hand:
    """A model that a worker has taken, under the name of `token`."""

    taken: Claimed
    held: Held
    token: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A bundle in storage."""

    generation: int
    version: int
    bundle: Bundled
    data: bytes
    document: dict[str, Any]
    state: Model

    @property
    def place(self) -> tuple[int, int]:
        """Where its document stands in the history."""
        return self.generation, self.version


def spoiled(hand: Hand, count: int, wrong: str) -> Hand:
    """Return `hand` with one thing wrong that a commit must notice."""
    taken, held = hand.taken, hand.held
    if wrong == "generation":
        taken, held = replace(taken, generation=taken.generation + 1), replace(held, generation=held.generation + 1)
    elif wrong == "digest":
        taken = replace(taken, digest="f" * 64)
        held = replace(held, bundle=replace(held.bundle, digest="f" * 64))
    elif wrong == "learned":
        taken = replace(taken, learned=taken.learned + 1)
        held = replace(held, bundle=replace(held.bundle, history=(*held.bundle.history, b"?")))
    elif wrong == "chain":
        entries, requests = list(taken.entries), list(held.requests)
        entries[count - 1] = replace(entries[count - 1], request_digest="0" * 40)
        requests[count - 1] = replace(requests[count - 1], past=(b"?", *requests[count - 1].past))
        taken, held = replace(taken, entries=entries), replace(held, requests=tuple(requests))
    return Hand(taken, held, hand.token)
