"""The signed envelope around every pickle.

Owns the bytes of a bundle on their way through Redis and storage::

    magic "KFIT" | format 1 | key id (1-byte length) | HMAC-SHA256 (32 bytes) | header (4-byte length, JSON) | payload

The HMAC covers everything but itself, under a key derived for one purpose. Never unpickles and never parses what is
not verified: only the key id is read before. Invariant: :meth:`Keyring.open` returns bytes that one of our keys signed
for this purpose, or raises. Bundles come from workers; they go to Redis, to snapshots and back to workers.
"""

import hashlib
import hmac
import platform
import struct
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol, Self, TypeVar

import msgspec

from keepfit.errors import EnvelopeError, RuntimeMismatchError, SettingsError, UnknownKeyError

MAGIC = b"KFIT\x01"
MAC_BYTES = 32
KEY_BYTES_MIN = 32
BUNDLE = "bundle"
OBJECT = "object"
SIGNING_KEYS, UPLOAD_KEYS = "KEEPFIT_SIGNING_KEYS", "KEEPFIT_UPLOAD_KEYS"
# Those of another deployment, which only verify.
IMPORT_KEYS = "KEEPFIT_IMPORT_KEYS"
# The command that prints a key for each.
PRINTERS = {
    SIGNING_KEYS: "keepfit key signing",
    UPLOAD_KEYS: "keepfit key upload",
    IMPORT_KEYS: "keepfit key signing",
}


class Signed(Protocol):
    """What every header has."""

    @property
    def purpose(self) -> str:
        """What the envelope was signed for."""

    @property
    def runtime(self) -> dict[str, str]:
        """Versions that the payload's pickle depends on, by name."""

    @property
    def subject(self) -> str:
        """What is in the envelope, as a sentence begins."""


AnyHeader = TypeVar("AnyHeader", bound=Signed)


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle says of itself, readable without unpickling."""

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
        """What is in the envelope, as a sentence begins."""
        return f"The bundle of {self.hash[:12]}"


LIBRARIES = ("python", "scikit-learn", "numpy")


def runtime(*more: str) -> dict[str, str]:
    """Versions that a pickle of this process depends on, those of the packages `more` among them."""
    return {name: installed(name) for name in (*LIBRARIES, *more)}


@cache
def installed(name: str) -> str:
    """Version of a package, or of Python, in this process; "none" where it is not installed."""
    try:
        return platform.python_version() if name == "python" else version(name)
    except PackageNotFoundError:
        return "none"


def check_runtime(header: Signed) -> None:
    """Raise RuntimeMismatchError unless this process may load what `header`'s runtime pickled.

    Patch releases may differ; scikit-learn promises no more than that for pickles.
    """
    for name in differences(header):
        theirs, here = header.runtime[name], installed(name)
        if theirs.split(".")[:2] != here.split(".")[:2]:
            raise RuntimeMismatchError(
                f"{header.subject} was written with {name} {theirs}, this process has {here}. "
                f"Run workers with {name} {'.'.join(theirs.split('.')[:2])}, or learn the model anew."
            )


def differences(header: Signed) -> dict[str, str]:
    """Versions of `header`'s runtime that are not those of this process, as "theirs, here ours"; for the log."""
    return {
        name: f"{theirs}, here {installed(name)}"
        for name, theirs in header.runtime.items()
        if theirs != installed(name)
    }


@dataclass(frozen=True, slots=True)
class Keyring:
    """Signing keys by id; the first signs, all verify.

    >>> ring = Keyring.from_text("k1:" + "ab" * 32)
    >>> header = Header(BUNDLE, "ff", 1, 2, 3, 4, "", {})
    >>> ring.open(ring.seal(header, b"payload"), BUNDLE)[1]
    b'payload'
    """

    # Left out of repr(), so that no log of a traceback shows them.
    keys: tuple[tuple[str, bytes], ...] = field(repr=False)
    # The variable that they come from.
    setting: str = SIGNING_KEYS

    @classmethod
    def from_text(cls, text: str, setting: str = SIGNING_KEYS) -> Self:
        """Read ``id:hex,id:hex``, the value of `setting`.

        Raises
        ------
        SettingsError
            If there is no key, an id stands twice or a key is not hex of at least 32 bytes; never repeats the text.
        """
        keys = []
        for position, part in enumerate(filter(None, (p.strip() for p in text.split(","))), start=1):
            key_id, _, digits = part.partition(":")
            try:
                key = bytes.fromhex(digits)
            except ValueError:
                key = b""
            if not 0 < len(key_id.encode()) < 256 or len(key) < KEY_BYTES_MIN:
                raise SettingsError(
                    f"{setting}: key {position} is not id:hex with at least {KEY_BYTES_MIN} bytes of hex; "
                    f"`{PRINTERS[setting]}` prints one."
                )
            keys.append((key_id, key))
        if not keys:
            raise SettingsError(f"{setting} is not set; `{PRINTERS[setting]}` prints a key for it.")
        if len({key_id for key_id, _ in keys}) != len(keys):
            raise SettingsError(f"{setting}: two keys have the same id.")
        return cls(tuple(keys), setting)

    def seal(self, header: Signed, payload: bytes) -> bytes:
        """Sign `payload` under `header` with the newest key."""
        key_id, key = self.keys[0]
        name = key_id.encode()
        text = msgspec.json.encode(header)
        front = MAGIC + struct.pack(">B", len(name)) + name
        back = struct.pack(">I", len(text)) + text + payload
        return b"".join((front, _mac(key, header.purpose, front, back), back))

    def open(self, envelope: bytes, purpose: str) -> tuple[Header, bytes]:
        """Verify a bundle's `envelope` and return its header and payload; errors as in :meth:`open_as`."""
        return self.open_as(Header, envelope, purpose)

    def open_as(self, form: type[AnyHeader], envelope: bytes, purpose: str) -> tuple[AnyHeader, bytes]:
        """Verify `envelope` and return its header, which must have this form, and payload.

        Raises
        ------
        EnvelopeError
            If it is damaged, signed by no key of ours, signed for another purpose, or has a header we do not know.
        """
        if not envelope.startswith(MAGIC) or len(envelope) <= len(MAGIC):
            raise EnvelopeError("These bytes are no keepfit envelope.")
        name_end = len(MAGIC) + 1 + envelope[len(MAGIC)]
        front, mac = envelope[:name_end], envelope[name_end : name_end + MAC_BYTES]
        back = envelope[name_end + MAC_BYTES :]
        key_id = front[len(MAGIC) + 1 :]
        key = next((key for known, key in self.keys if known.encode() == key_id), None)
        if key is None:
            raise UnknownKeyError(f"The envelope is signed with a key that {self.setting} does not hold.")
        if not hmac.compare_digest(mac, _mac(key, purpose, front, back)):
            raise EnvelopeError("The envelope's signature does not fit: it is damaged, forged or for another purpose.")
        try:
            (length,) = struct.unpack_from(">I", back)
            header = msgspec.json.decode(back[4 : 4 + length], type=form)
        except (struct.error, msgspec.DecodeError) as error:
            # Signed by us, so written by another keepfit than this one.
            raise EnvelopeError(f"The envelope's header is not one that this keepfit knows: {error}.") from None
        return header, back[4 + length :]


def _mac(key: bytes, purpose: str, front: bytes, back: bytes) -> bytes:
    signer = _signer(key, purpose).copy()
    signer.update(front)
    signer.update(back)
    return signer.digest()


@cache
def _signer(key: bytes, purpose: str) -> hmac.HMAC:
    """HMAC under the key for one purpose: HKDF-Expand, first block (RFC 5869), over a uniformly random key."""
    derived = hmac.digest(key, f"keepfit/{purpose}".encode() + b"\x01", "sha256")
    return hmac.new(derived, digestmod=hashlib.sha256)


def digest_of(envelope: bytes) -> str:
    """SHA-256 (hex) of an envelope: its name in storage and its check at every commit."""
    return hashlib.sha256(envelope).hexdigest()
