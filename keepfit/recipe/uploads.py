"""Objects that Python users send as part of a recipe, as everybody sees them who does not unpickle.

Owns what an object says of itself (:class:`ObjectHeader`), the check of its signature, and the base64 text in which it
stands in a recipe. Never unpickles: gateways use this. Invariant: what :func:`verify` lets through was signed for this
purpose by who has an upload key. Objects come from :func:`keepfit.objects.dump`; workers verify them once more.
"""

import binascii
import struct
from base64 import b64decode
from functools import lru_cache
from typing import Literal

import msgspec

from keepfit.errors import EnvelopeError, InvalidError
from keepfit.recipe.catalogue import Entry, Kind
from keepfit.security import envelope
from keepfit.security.envelope import MAC_BYTES, MAGIC, Keyring

Calls = Literal["partial_fit", "learn_one", "learn_many"]

# An object that has learned nothing is small, and each look at the model carries it along.
BYTES_MAX = 2**20
HEADER_BYTES_MAX = 2048
NAME_LENGTH_MAX = 80
# Whole groups of base64's four characters that hold the largest front and header.
HEAD_LENGTH = 4 * ((len(MAGIC) + 1 + 255 + MAC_BYTES + 4 + HEADER_BYTES_MAX + 2) // 3)
KEPT_MAX = 1024


class ObjectHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an object says of itself, readable without unpickling; `calls` is the first of the methods it learns by."""

    purpose: str
    name: str
    kind: Kind
    calls: Calls
    takes_sample_weight: bool
    runtime: dict[str, str]

    @property
    def subject(self) -> str:
        """What is in the envelope, as a sentence begins."""
        return f"The object {self.name}"


def keyring_of(keys: str) -> Keyring | None:
    """Upload keys of a setting; None where it is empty.

    Raises
    ------
    SettingsError
        If one of them is no key.
    """
    return Keyring.from_text(keys, envelope.UPLOAD_KEYS) if keys.strip() else None


def signed(text: str) -> bytes:
    """Bytes of the envelope that stands in a recipe as `text`.

    Raises
    ------
    InvalidError
        If it is not base64, or too large.
    """
    if len(text) > 4 * BYTES_MAX // 3 + 4:
        raise InvalidError(f"recipe: object is larger than {BYTES_MAX} bytes; send it before it has learned much.")
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("recipe: object is not base64; keepfit.objects.dump writes what belongs here.") from None


def verify(text: str, keyring: Keyring | None) -> ObjectHeader:
    """Check an object's signature and versions without unpickling it.

    Raises
    ------
    InvalidError
        If no upload key of this process signed it, or it was written by versions that are not those here.
    """
    if keyring is None:
        raise InvalidError(
            "recipe: object: this gateway takes no objects. Set KEEPFIT_UPLOAD_KEYS for gateways and workers; "
            "`keepfit key upload` prints a key."
        )
    try:
        header, _ = keyring.open_as(ObjectHeader, signed(text), envelope.OBJECT)
        envelope.check_runtime(header)
    except EnvelopeError as error:
        raise InvalidError(f"recipe: object: {error}") from None
    return header


def head(text: str) -> str:
    """What :func:`header_of` needs of an object's text, for those who keep many recipes and load none."""
    return text[:HEAD_LENGTH]


def header_of(text: str) -> ObjectHeader:
    """Header of an object in a recipe that was verified when it was posted.

    Raises
    ------
    InvalidError
        If there is none to be read.
    """
    return _header_of(head(text))


# By the head alone: a megabyte would be a long key, and a thousand of them much memory.
@lru_cache(KEPT_MAX)
def _header_of(text: str) -> ObjectHeader:
    try:
        front = b64decode(text, validate=True)
        start = len(MAGIC) + 1 + front[len(MAGIC)] + MAC_BYTES
        (length,) = struct.unpack_from(">I", front, start)
        return msgspec.json.decode(front[start + 4 : start + 4 + length], type=ObjectHeader)
    except (binascii.Error, ValueError, IndexError, struct.error, msgspec.DecodeError):
        raise InvalidError("recipe: object is none that keepfit.objects.dump wrote.") from None


def entry_of(text: str) -> Entry:
    """Describe an object as the catalogue describes an estimator."""
    header = header_of(text)
    return Entry(header.name, "object", header.kind, header.takes_sample_weight)
