"""Claims of workers and saved bundles, as keepfit returned them and as the plain store did."""

from dataclasses import dataclass, replace
from typing import Any

from keepfit.store.commit import Claimed
from keepfit.store.models import Model
from tests.scripts.store_model import BundleModel, ClaimModel

# Mismatches that a commit must detect.
MISMATCHES = ("generation", "digest", "learned", "chain", "stage")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of a worker, with its lease as `token`."""

    received: Claimed
    expected: ClaimModel
    token: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A bundle in storage."""

    generation: int
    version: int
    bundle: BundleModel
    data: bytes
    document: dict[str, Any]
    state: Model

    @property
    def place(self) -> tuple[int, int]:
        """Generation and version of its history document."""
        return self.generation, self.version


def mismatched(claim: Claim, count: int, wrong_field: str) -> Claim:
    """Return `claim` with one mismatch."""
    received, expected = claim.received, claim.expected
    if wrong_field == "generation":
        received, expected = (
            replace(received, generation=received.generation + 1),
            replace(expected, generation=expected.generation + 1),
        )
    elif wrong_field == "digest":
        received = replace(received, digest="f" * 64)
        expected = replace(expected, bundle=replace(expected.bundle, digest="f" * 64))
    elif wrong_field == "learned":
        received = replace(received, learned=received.learned + 1)
        expected = replace(expected, bundle=replace(expected.bundle, history=(*expected.bundle.history, b"?")))
    elif wrong_field == "chain":
        entries, requests = list(received.entries), list(expected.requests)
        entries[count - 1] = replace(entries[count - 1], request_digest="0" * 40)
        requests[count - 1] = replace(requests[count - 1], past=(b"?", *requests[count - 1].past))
        received, expected = replace(received, entries=entries), replace(expected, requests=tuple(requests))
    return Claim(received, expected, claim.token)
