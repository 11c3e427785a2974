"""Read bundles of snapshots from the storage, and compare them with what was saved.

Owns what makes a stored bundle good: it is where its document says, with the SHA-256 that was saved. Never opens an
envelope, and never marks a document. Invariant: a blob that is missing here, and was saved in another storage, does not
count as damaged.
"""

from keepfit.backends.blobs import Storage
from keepfit.errors import EnvelopeError, UnavailableError
from keepfit.history import Document
from keepfit.security import envelope
from keepfit.snapshots.save import path_of


def read_bundle(storage: Storage, document: Document) -> bytes:
    """Return the bundle of a snapshot.

    Raises
    ------
    EnvelopeError
        If the blob is missing, or is not the one that was saved.
    UnavailableError
        If the storage cannot be read, or is not the one in which it was saved.
    """
    data = storage.get(path_of(document))
    if data is None or envelope.digest_of(data) != document["sha256"]:
        raise _error(storage, document, is_missing=data is None)
    return data


def check_bundle(storage: Storage, document: Document) -> None:
    """Compare the bundle of a snapshot, which is not in memory as a whole; raises as :func:`read_bundle`."""
    digest = storage.digest(path_of(document))
    if digest != document["sha256"]:
        raise _error(storage, document, is_missing=digest is None)


def is_elsewhere(storage: Storage, document: Document) -> bool:
    """Return whether a snapshot was saved in another storage, so that this one need not have its blob."""
    return bool(document["uri"] != storage.uri(path_of(document)))


def _error(storage: Storage, document: Document, *, is_missing: bool) -> EnvelopeError | UnavailableError:
    if not is_missing:
        return EnvelopeError("the blob is not the one that was saved")
    if not is_elsewhere(storage, document):
        return EnvelopeError("the blob is missing")
    # A wrong setting of this process must not make a good snapshot count as damaged.
    return UnavailableError(
        f"The snapshot is at {document['uri']}, and {storage.url} does not have it.",
        "The snapshot is in another storage than that of the settings.",
    )
