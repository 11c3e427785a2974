"""A snapshot that was read and found good, and what of it goes into Redis.

Owns the check of a bundle that comes from outside of Redis, and signing it for another generation. Never talks to
anything. Invariant: a :class:`SnapshotBundle` was signed by one of our keys for this model, and has predicted a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from keepfit.history import SUMMARY_FIELDS, Document, RegistryEntry
from keepfit.model import serialization
from keepfit.recipe.recipe import from_text
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from keepfit.store.models import Install, Rewind
from keepfit.store.retained import ReplayBase


@dataclass(frozen=True, slots=True)
class SnapshotBundle:
    """A bundle that was read and found good; `payload` is the pickle in the envelope `data`.

    `document` is that of its snapshot, None where the model never had one. `metrics_text` is JSON, "" where the metrics
    are the document's: it has learned more since then otherwise.
    """

    document: Document | None
    header: Header
    data: bytes
    payload: bytes
    width: int | None
    changed: Mapping[str, Any] = field(default_factory=dict)
    metrics_text: str = ""

    @property
    def metrics(self) -> str:
        """Metrics of what it has learned, as JSON."""
        if self.metrics_text or self.document is None:
            return self.metrics_text or "{}"
        return msgspec.json.encode(self.document["metrics"]).decode()

    def signed(self, keyring: Keyring, generation: int, sequence: int, chain: str) -> "SnapshotBundle":
        """Sign the same pickle for another generation and place in the model's sequences."""
        header = msgspec.structs.replace(self.header, generation=generation, sequence=sequence, chain=chain)
        return replace(self, header=header, data=keyring.seal(header, self.payload))


def check(data: bytes, keyring: Keyring, registered: RegistryEntry, document: Document) -> SnapshotBundle:
    """Verify a bundle's signature, model and versions, unpickle it and predict a row.

    Raises
    ------
    EnvelopeError
        If it is not a good bundle of this model; RuntimeMismatchError if this process cannot load it.
    """
    header, bundle = serialization.unseal(data, keyring, from_text(registered.recipe_text), registered.hash)
    serialization.try_predict(bundle)
    return SnapshotBundle(document, header, data, keyring.open(data, envelope.BUNDLE)[1], bundle.width, bundle.changed)


def _base(fetched: SnapshotBundle) -> str:
    """What requests come on top of that are learned by what was fetched; '' where it has learned more since."""
    if fetched.document is None or fetched.metrics_text:
        return ""
    return ReplayBase(fetched.header.sequence, (fetched.document["generation"], fetched.document["version"])).text()


def to_install(
    registered: RegistryEntry,
    generation: int,
    fetched: SnapshotBundle | None,
    *,
    is_saved: bool,
    sequence: int = 0,
    chain: str = "",
) -> Install:
    """What a model that is not live begins with; it knows of its snapshot where it `is_saved` as it is.

    One that has no bundle goes on behind the request with this `sequence` and `chain`.
    """
    new = Install(registered.hash, registered.metadata_text, registered.recipe_text, generation, born=registered.born)
    if fetched is None:
        return replace(new, sequence=sequence, chain=chain, base=ReplayBase(sequence).text())
    header, noted = fetched.header, ""
    if is_saved and fetched.document is not None:
        noted = msgspec.json.encode({name: fetched.document[name] for name in SUMMARY_FIELDS}).decode()
    return replace(
        new,
        version=header.version,
        rows_seen=header.rows_seen,
        sequence=header.sequence,
        chain=header.chain,
        digest=envelope.digest_of(fetched.data),
        metrics_text=fetched.metrics,
        snapshot_text=noted,
        bundle=fetched.data,
        width=fetched.width,
        changed=fetched.changed,
        base=_base(fetched),
    )


def to_rewind(fetched: SnapshotBundle, model_hash: str) -> Rewind:
    """What a live model goes back to."""
    return Rewind(
        hash=model_hash,
        generation=fetched.header.generation,
        version=fetched.header.version,
        rows_seen=fetched.header.rows_seen,
        digest=envelope.digest_of(fetched.data),
        metrics_text=fetched.metrics,
        bundle=fetched.data,
        width=fetched.width,
        changed=fetched.changed,
        base=_base(fetched),
    )
