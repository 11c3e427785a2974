"""A verified snapshot, and the state that a restore writes to Redis for it.

Owns the verification of a bundle that comes from outside Redis, and signing it for another generation. Does no I/O.
Invariant: a :class:`SnapshotBundle` was signed with one of the signing keys for this model, and has predicted a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from keepfit.history import SUMMARY_FIELDS, Document, RegistryEntry
from keepfit.model import serialization
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import from_text
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from keepfit.store.idle import IdleRecord
from keepfit.store.models import Install, Rewind
from keepfit.store.retained import ReplayBase


@dataclass(frozen=True, slots=True)
class SnapshotBundle:
    """A verified bundle; `payload` is the pickle in the envelope `data`.

    `document` is the document of its snapshot, None if the model never had one. `metrics_text` is the JSON of the
    metrics of a bundle that has learned more than its snapshot, "" if it has not: then the document has the metrics.
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
        """Prequential metrics of the bundle, as JSON."""
        if self.metrics_text or self.document is None:
            return self.metrics_text or "{}"
        return msgspec.json.encode(self.document["metrics"]).decode()

    def sign(
        self, keyring: Keyring, generation: int, sequence: int, request_digest: str, version: int | None = None
    ) -> "SnapshotBundle":
        """Sign the same pickle for another generation, sequence and, if given, version."""
        header = msgspec.structs.replace(
            self.header,
            generation=generation,
            version=self.header.version if version is None else version,
            sequence=sequence,
            chain=request_digest,
        )
        return replace(self, header=header, data=keyring.seal(header, self.payload))


def verify(data: bytes, keyring: Keyring, registered: RegistryEntry, document: Document) -> SnapshotBundle:
    """Verify a bundle's signature, model and versions, unpickle it and predict a row.

    Raises
    ------
    EnvelopeError
        If it is not an intact bundle of this model; RuntimeMismatchError if this process cannot load it.
    """
    header, bundle = load(data, keyring, registered)
    return SnapshotBundle(document, header, data, keyring.open(data, envelope.BUNDLE)[1], bundle.width, bundle.changed)


def load(data: bytes, keyring: Keyring, registered: RegistryEntry) -> tuple[Header, Bundle]:
    """Return header and bundle of a snapshot's bytes, after the verification of :func:`verify`; raises as that."""
    header, bundle = serialization.unseal(data, keyring, from_text(registered.recipe_text), registered.hash)
    serialization.try_predict(bundle)
    return header, bundle


def _replay_base(snapshot: SnapshotBundle) -> str:
    """Return the replay base of requests learned on top of a bundle; '' if it has learned more than its snapshot."""
    if snapshot.document is None or snapshot.metrics_text:
        return ""
    return ReplayBase(snapshot.header.sequence, (snapshot.document["generation"], snapshot.document["version"])).text()


def to_install(
    registered: RegistryEntry,
    generation: int,
    snapshot: SnapshotBundle | None,
    *,
    is_saved: bool,
    sequence: int = 0,
    request_digest: str = "",
    seen: IdleRecord | None = None,
    continues: bool = False,
) -> Install:
    """Return the state to install for a model that is not live; it names its snapshot if it `is_saved` unchanged.

    A model without a bundle continues after the request with this `sequence` and `request_digest`. `seen` and
    `continues` are as in :class:`Install`.
    """
    new = Install(
        registered.hash,
        registered.metadata_text,
        registered.recipe_text,
        generation,
        born=registered.born,
        seen=seen,
        continues=continues,
    )
    if snapshot is None:
        return replace(new, sequence=sequence, chain=request_digest, base=ReplayBase(sequence).text())
    header, noted = snapshot.header, ""
    if is_saved and snapshot.document is not None:
        noted = msgspec.json.encode({name: snapshot.document[name] for name in SUMMARY_FIELDS}).decode()
    return replace(
        new,
        version=header.version,
        rows_seen=header.rows_seen,
        sequence=header.sequence,
        chain=header.chain,
        digest=envelope.digest_of(snapshot.data),
        metrics_text=snapshot.metrics,
        snapshot_text=noted,
        bundle=snapshot.data,
        width=snapshot.width,
        changed=snapshot.changed,
        base=_replay_base(snapshot),
    )


def to_rewind(snapshot: SnapshotBundle, *, is_repair: bool = False) -> Rewind:
    """Return the state that replaces the state of a live model.

    With `is_repair` the bundle has learned exactly what the live model has, and its replay base stays the same.
    """
    return Rewind(
        hash=snapshot.header.hash,
        generation=snapshot.header.generation,
        version=snapshot.header.version,
        rows_seen=snapshot.header.rows_seen,
        digest=envelope.digest_of(snapshot.data),
        metrics_text=snapshot.metrics,
        bundle=snapshot.data,
        width=snapshot.width,
        changed=snapshot.changed,
        base="=" if is_repair else _replay_base(snapshot),
    )
