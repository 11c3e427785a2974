"""The signed envelope around every pickle.

Owns the byte format of bundles and uploaded objects in Redis and storage::

    magic "KFIT" | format 1 | key id (1-byte length) | HMAC-SHA256 (32 bytes) | header (4-byte length, JSON) | payload

The HMAC covers everything except itself, under a key derived for one purpose. Never unpickles, and before verification
parses only the key id. Invariant: :meth:`Keyring.open` returns bytes that one of the ring's keys signed for
this purpose, or raises. Bundles come from workers and go to Redis, to snapshots and back to workers.
"""

import hashlib
import hmac
import platform
import re
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol, Self, TypeVar

import msgspec

from keepfit.errors import EnvelopeError, RuntimeMismatchError, SettingsError, UnknownKeyError

MAGIC = b"KFIT\x01"
MAC_BYTES = 32
KEY_BYTES_MIN = 32
KEY_ID, ID_DIGITS = re.compile(r"[A-Za-z0-9._-]{1,64}"), 12
BUNDLE = "bundle"
OBJECT = "object"
# The header of an object that was uploaded trained, in a recipe.
TRAINED = "trained"
SIGNING_KEYS, UPLOAD_KEYS = "KEEPFIT_SIGNING_KEYS", "KEEPFIT_UPLOAD_KEYS"
# Keys of another deployment. They only verify.
IMPORT_KEYS = "KEEPFIT_IMPORT_KEYS"
# The command that prints a key for each setting.
KEY_COMMANDS = {
    SIGNING_KEYS: "keepfit key signing",
    UPLOAD_KEYS: "keepfit key upload",
    IMPORT_KEYS: "keepfit key signing",
}


class Signed(Protocol):
    """The fields of every header."""

    @property
    def purpose(self) -> str:
        """The purpose that the envelope was signed for."""

    @property
    def runtime(self) -> dict[str, str]:
        """Versions that the pickled payload depends on, by name."""

    @property
    def subject(self) -> str:
        """The content of the envelope, as the subject of a sentence."""


AnyHeader = TypeVar("AnyHeader", bound=Signed)


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header of a bundle, readable without unpickling."""

    purpose: str
    hash: str
    generation: int
    version: int
    sequence: int
    rows_seen: int
    chain: str
    runtime: dict[str, str]

    @property
    def subject(self) -> str:
        """The content of the envelope, as the subject of a sentence."""
        return f"The bundle of {self.hash[:12]}"


NOT_INSTALLED = "none"
LIBRARIES = ("python", "scikit-learn", "numpy")


def runtime(*more: str) -> dict[str, str]:
    """Return the versions that a pickle of this process depends on, including those of the packages `more`."""
    return {name: installed(name) for name in (*LIBRARIES, *more)}


@cache
def installed(name: str) -> str:
    """Return the version of a package, or of Python, in this process; NOT_INSTALLED if it is not there."""
    try:
        return platform.python_version() if name == "python" else version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED


def check_runtime(header: Signed) -> None:
    """Raise RuntimeMismatchError unless this process can load a pickle of `header`'s runtime.

    Patch releases may differ: scikit-learn promises compatibility of pickles between them only.
    """
    for name in differences(header):
        theirs, here = header.runtime[name], installed(name)
        if theirs.split(".")[:2] != here.split(".")[:2]:
            raise RuntimeMismatchError(
                f"{header.subject} was written with {name} {theirs}, this process has {here}. "
                f"Run workers with {name} {'.'.join(theirs.split('.')[:2])}, or relearn the model."
            )


def differences(header: Signed) -> dict[str, str]:
    """Return the versions that differ between `header`'s runtime and this process, for the log.

    The text for each name is "VERSION, here VERSION".
    """
    return {
        name: f"{theirs}, here {installed(name)}"
        for name, theirs in header.runtime.items()
        if theirs != installed(name)
    }


@dataclass(frozen=True, slots=True)
class Keyring:
    """Signing keys by id. The first signs, all verify.

    >>> ring = Keyring.from_text("k1:" + "ab" * 32)
    >>> header = Header(BUNDLE, "ff", 1, 2, 3, 4, "", {})
    >>> ring.open(ring.seal(header, b"payload"), BUNDLE)[1]
    b'payload'
    """

    # Not in repr(), so that no logged traceback shows them.
    keys: tuple[tuple[str, bytes], ...] = field(repr=False)
    # The environment variable that the keys come from.
    setting: str = SIGNING_KEYS

    @classmethod
    def from_text(cls, text: str, setting: str = SIGNING_KEYS) -> Self:
        """Parse ``id:hex,id:hex``, the value of `setting`; several keys may have the same id.

        Raises
        ------
        SettingsError
            If there is no key, or a key is not hex of at least 32 bytes. The message never repeats the text.
        """
        keys = []
        for position, entry in enumerate(filter(None, (entry.strip() for entry in text.split(","))), start=1):
            key_id, _, digits = entry.partition(":")
            try:
                key = bytes.fromhex(digits)
            except ValueError:
                key = b""
            if not 0 < len(key_id.encode()) < 256 or len(key) < KEY_BYTES_MIN:
                raise SettingsError(
                    f"{setting}: key {position} is not id:hex with at least {KEY_BYTES_MIN} bytes of hex; "
                    f"`{KEY_COMMANDS[setting]}` prints one."
                )
            keys.append((key_id, key))
        if not keys:
            raise SettingsError(f"{setting} is not set; `{KEY_COMMANDS[setting]}` prints a key for it.")
        return cls(tuple(keys), setting)

    def seal(self, header: Signed, payload: bytes) -> bytes:
        """Sign `payload` and `header` with the first key. Return the envelope."""
        key_id, key = self.keys[0]
        name = key_id.encode()
        text = msgspec.json.encode(header)
        front = MAGIC + struct.pack(">B", len(name)) + name
        back = struct.pack(">I", len(text)) + text + payload
        return b"".join((front, _mac(key, header.purpose, front, back), back))

    def open(self, envelope: bytes, purpose: str) -> tuple[Header, bytes]:
        """Verify the envelope of a bundle. Return its header and payload; raise as :meth:`open_as` does."""
        return self.open_as(Header, envelope, purpose)

    def open_as(self, form: type[AnyHeader], envelope: bytes, purpose: str) -> tuple[AnyHeader, bytes]:
        """Verify `envelope`. Return its header, parsed as `form`, and its payload.

        Raises
        ------
        EnvelopeError
            If it is damaged, signed with an unknown key or for another purpose, or has an unknown header.
        """
        front, mac, back = _split(envelope)
        key_id, keys = key_id_of(envelope), self._keys_of(front)
        if not keys:
            raise UnknownKeyError(f"The envelope is signed with a key that {self.setting} does not hold: {key_id!r}.")
        if not any(hmac.compare_digest(mac, _mac(key, purpose, front, back)) for key in keys):
            raise EnvelopeError(
                "Signature mismatch: the data is corrupt, tampered with, or signed for another purpose"
                + (f", or with another key of the id {key_id!r}." if _may_have_namesakes(key_id, keys) else ".")
            )
        try:
            (length,) = struct.unpack_from(">I", back)
            header = msgspec.json.decode(back[4 : 4 + length], type=form)
        except (struct.error, msgspec.DecodeError) as error:
            # The signature is valid, so another version of keepfit wrote the header.
            raise EnvelopeError(f"The envelope's header was written by another version of keepfit: {error}.") from None
        return header, back[4 + length :]

    def check_signer(self, envelope: bytes, purpose: str) -> None:
        """Check that a key of this ring signed an envelope whose bytes are known to be those that were stored.

        Raises
        ------
        UnknownKeyError
            If the ring has a key of its id, and another key of that id signed it.
        EnvelopeError
            If these bytes are no envelope.
        """
        front, mac, back = _split(envelope)
        key_id, keys = key_id_of(envelope), self._keys_of(front)
        if not _may_have_namesakes(key_id, keys):
            return
        if not any(hmac.compare_digest(mac, _mac(key, purpose, front, back)) for key in keys):
            known = ", ".join(map(_fingerprint, keys))
            raise UnknownKeyError(
                f"The envelope is signed with another key of the id {key_id!r} than that of {self.setting}, whose "
                f"fingerprint is {known}: add the key that signed it there, behind the present ones."
            )

    def _keys_of(self, front: bytes) -> list[bytes]:
        """Return the keys that have the id of an envelope."""
        return [key for known, key in self.keys if known.encode() == front[len(MAGIC) + 1 :]]


def _split(envelope: bytes) -> tuple[bytes, bytes, bytes]:
    """Return an envelope's parts before the signature, the signature, and what follows; EnvelopeError if it is none."""
    if not envelope.startswith(MAGIC) or len(envelope) <= len(MAGIC):
        raise EnvelopeError("These bytes are not a keepfit envelope.")
    name_end = len(MAGIC) + 1 + envelope[len(MAGIC)]
    return envelope[:name_end], envelope[name_end : name_end + MAC_BYTES], envelope[name_end + MAC_BYTES :]


def _may_have_namesakes(key_id: str, keys: Sequence[bytes]) -> bool:
    """Return whether other keys may have this id, too: it was chosen by hand, and does not end with their digest."""
    return any(not key_id.endswith(_fingerprint(key)) for key in keys)


def _fingerprint(key: bytes) -> str:
    """Return the digest of a key, with which the ids that keepfit makes end."""
    return hashlib.sha256(b"keepfit/id" + key).hexdigest()[:ID_DIGITS]


def key_id_of(envelope: bytes) -> str:
    """Return the id of the key that an envelope says to be signed with, for messages; "" if it is no envelope."""
    if not envelope.startswith(MAGIC):
        return ""
    begin = len(MAGIC) + 1
    return envelope[begin : begin + int.from_bytes(envelope[len(MAGIC) : begin])].decode(errors="replace")


def new_signing_key(prefix: str = "k", key_id: str = "") -> str:
    """Return a new key as ``id:hex``. Without `key_id` its id is `prefix` and a digest of the key.

    Two deployments that use made ids never have different keys of one id.

    Raises
    ------
    SettingsError
        If the id cannot be stored in a list of keys.
    """
    key = secrets.token_bytes(KEY_BYTES_MIN)
    key_id = key_id or prefix + _fingerprint(key)
    if not KEY_ID.fullmatch(key_id):
        raise SettingsError(f"{key_id[:80]!r} is not an id of a key: use up to 64 letters, digits, '.', '_' and '-'.")
    return f"{key_id}:{key.hex()}"


def _mac(key: bytes, purpose: str, front: bytes, back: bytes) -> bytes:
    signer = _signer(key, purpose).copy()
    signer.update(front)
    signer.update(back)
    return signer.digest()


@cache
def _signer(key: bytes, purpose: str) -> hmac.HMAC:
    """Return an HMAC under the key for one purpose: HKDF-Expand, first block (RFC 5869), of a uniformly random key."""
    derived = hmac.digest(key, f"keepfit/{purpose}".encode() + b"\x01", "sha256")
    return hmac.new(derived, digestmod=hashlib.sha256)


def digest_of(envelope: bytes) -> str:
    """Return the SHA-256 (hex) of an envelope. It is the name in storage and is checked at every commit."""
    return hashlib.sha256(envelope).hexdigest()
