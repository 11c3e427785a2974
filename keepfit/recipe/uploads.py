"""Uploaded objects in recipes, as far as that needs no unpickling.

Owns the header of an object (:class:`ObjectHeader`), the check of its signature, its base64 text in a recipe, and the
text that describes it after its code was replaced.
Never unpickles: gateways use this. Invariant: an object that :func:`verify` accepts was signed for this purpose with an
upload key. Objects come from :func:`keepfit.objects.dump`; workers verify them again before they unpickle.
"""

import binascii
import hashlib
import json
import struct
from base64 import b64decode, b64encode
from functools import lru_cache
from typing import Literal

import msgspec

from keepfit.errors import EnvelopeError, InvalidError
from keepfit.recipe.catalogue import Entry, Kind
from keepfit.security import envelope
from keepfit.security.envelope import MAC_BYTES, MAGIC, Keyring

LearnMethod = Literal["partial_fit", "learn_one", "learn_many"]

# An object that has learned nothing is small. The recipe, and the object with it, is read with each model lookup.
BYTES_MAX = 2**20
HEADER_BYTES_MAX = 2048
NAME_LENGTH_MAX = 80
# Characters of base64, in whole groups of four, that hold the largest possible envelope front and header.
HEAD_LENGTH = 4 * ((len(MAGIC) + 1 + 255 + MAC_BYTES + 4 + HEADER_BYTES_MAX + 2) // 3)
HEADERS_CACHED_MAX = 1024
# Begins the text of :func:`with_new_code`, and no base64.
DESCRIBED = "{"
# What may not differ between an object and the one whose code replaces it.
INTERFACE = ("kind", "calls", "multi_output", "takes_sample_weight")


class TrainedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file in which a trained object was uploaded."""

    format: Literal["skops", "pickle"]
    sha256: str
    size_bytes: int


class NewCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The object whose code replaced that of an earlier one: digest of its text, and size of what that encodes."""

    sha256: str
    size_bytes: int


class ObjectHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Header of an object, readable without unpickling.

    `calls` is the method with which it learns; with `multi_output` it has several targets. `trained` describes the file
    of an object that had learned when it was uploaded: then the recipe has this header without a pickle, and the object
    is in the model's bundle only. `code` describes an object whose code replaced that of the recipe's; it is in the
    bundle only, too (:func:`with_new_code`).
    """

    purpose: str
    name: str
    kind: Kind
    calls: LearnMethod
    takes_sample_weight: bool
    runtime: dict[str, str]
    multi_output: bool = False
    trained: TrainedFile | None = None
    code: NewCode | None = None

    @property
    def subject(self) -> str:
        """The content of the envelope as the subject of a message."""
        return f"The object {self.name}"


def upload_keyring(keys: str) -> Keyring | None:
    """Return the upload keys of a setting, or None if it is empty.

    Raises
    ------
    SettingsError
        If one of them is not a key.
    """
    return Keyring.from_text(keys, envelope.UPLOAD_KEYS) if keys.strip() else None


def decode(text: str) -> bytes:
    """Return the envelope that `text` in a recipe encodes.

    Raises
    ------
    InvalidError
        If it is not base64, or is too large.
    """
    if len(text) > 4 * BYTES_MAX // 3 + 4:
        raise InvalidError(f"recipe: object is larger than {BYTES_MAX} bytes; upload it before it has learned.")
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("recipe: object is not base64; use the text that keepfit.objects.dump returns.") from None


def size_of(text: str) -> int:
    """Return the size in bytes of the envelope that `text` encodes."""
    return 3 * len(text) // 4 - text[-2:].count("=")


def verify(text: str, keyring: Keyring | None) -> ObjectHeader:
    """Check an object's signature and versions without unpickling it.

    Raises
    ------
    InvalidError
        If it is not signed with an upload key of this process, or was written with other versions of the libraries.
    """
    if keyring is None:
        raise InvalidError(
            "recipe: object: this gateway accepts no objects. Set KEEPFIT_UPLOAD_KEYS for gateways and workers; "
            "`keepfit key upload` prints a key."
        )
    try:
        header, _ = keyring.open_as(ObjectHeader, decode(text), envelope.OBJECT)
        envelope.check_runtime(header)
    except EnvelopeError as error:
        raise InvalidError(f"recipe: object: {error}") from None
    return header


def trained_text(header: ObjectHeader, file: TrainedFile, keyring: Keyring) -> str:
    """Return the text by which a recipe describes an object that had learned before it was uploaded.

    It is signed with the signing keys in `keyring` and for a purpose of its own, so that clients can post no such
    recipe: the object that it describes is in a bundle.
    """
    described = msgspec.structs.replace(header, purpose=envelope.TRAINED, trained=file)
    return b64encode(keyring.seal(described, b"")).decode()


def trained_file(text: str | None) -> TrainedFile | None:
    """Return the file that the object of a recipe was uploaded in, trained; None of any other recipe."""
    return None if text is None else header_of(text).trained


def with_new_code(text: str, new: ObjectHeader, new_text: str) -> str:
    """Return the text that describes an object `text` after its code was replaced by that of `new_text`.

    It is the JSON of `new` with the digest of `new_text`, and what of the first object holds for its learned state.
    """
    code = NewCode(hashlib.sha256(new_text.encode()).hexdigest(), size_of(new_text))
    described = msgspec.structs.replace(new, trained=header_of(text).trained, code=code)
    return msgspec.json.encode(described).decode()


def digest_of(text: str) -> str:
    """Return the digest of the text that was sent, or of the file in which an object was uploaded trained."""
    header = header_of(text)
    sent = header.code or header.trained
    return hashlib.sha256(text.encode()).hexdigest() if sent is None else sent.sha256


def is_same(text: str, described: str) -> bool:
    """Return whether the object `text` is that of `described`, of which :func:`head` is enough.

    The head has the signature of all that follows.
    """
    header = header_of(described)
    if header.code is not None:
        return digest_of(text) == header.code.sha256
    return header.trained is None and head(text) == head(described)


def is_in_bundle(text: str) -> bool:
    """Return whether `text` only describes an object, which is in the model's bundle."""
    header = header_of(text)
    return header.code is not None or header.trained is not None


def check_same_interface(old: ObjectHeader, new: ObjectHeader) -> None:
    """Check that rows for the object `old` are rows for the object `new`, and answers have the same form.

    Raises
    ------
    InvalidError
        With what differs.
    """
    for name in INTERFACE:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            raise InvalidError(
                f"object: the {name} of {new.name} is {json.dumps(after)}, that of the model's object "
                f"{json.dumps(before)}: new code must learn and answer in the same form. Create a new model."
            )


def head(text: str) -> str:
    """Return the beginning of an object's text that :func:`header_of` needs, to hold many recipes in little memory."""
    return text[:HEAD_LENGTH]


def header_of(text: str) -> ObjectHeader:
    """Return the header of an object in a recipe, which was verified when it was posted.

    Raises
    ------
    InvalidError
        If it cannot be read.
    """
    return _header_of(head(text))


# Cached by the head alone: a thousand keys of a megabyte would take much memory.
@lru_cache(HEADERS_CACHED_MAX)
def _header_of(text: str) -> ObjectHeader:
    try:
        if text.startswith(DESCRIBED):
            return msgspec.json.decode(text, type=ObjectHeader)
        front = b64decode(text, validate=True)
        start = len(MAGIC) + 1 + front[len(MAGIC)] + MAC_BYTES
        (length,) = struct.unpack_from(">I", front, start)
        return msgspec.json.decode(front[start + 4 : start + 4 + length], type=ObjectHeader)
    except (binascii.Error, ValueError, IndexError, struct.error, msgspec.DecodeError):
        raise InvalidError("recipe: object was not written by keepfit.objects.dump.") from None


def entry_of(text: str) -> Entry:
    """Return the catalogue entry that describes an object."""
    header = header_of(text)
    takes_dicts = header.calls != "partial_fit"
    return Entry(
        header.name,
        "object",
        header.kind,
        header.takes_sample_weight,
        multi_output=header.multi_output,
        takes_dicts=takes_dicts,
    )
