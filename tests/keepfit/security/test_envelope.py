"""The signed envelope: what opens, what is refused, and what error messages hold."""

import hashlib
import hmac
import struct

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keepfit.errors import EnvelopeError, RuntimeMismatchError, SettingsError, UnknownKeyError
from keepfit.security.envelope import BUNDLE, MAGIC, Header, Keyring, check_runtime, digest_of, runtime

SECRET = "5e" * 32
RING = Keyring.from_text(f"k1:{SECRET}")
HEADER = Header(BUNDLE, "ab" * 32, 1, 2, 3, 4, "cd" * 20, runtime())

counts = st.integers(0, 2**63 - 1)
headers = st.builds(
    Header,
    purpose=st.sampled_from([BUNDLE, "upload"]),
    hash=st.text(max_size=70),
    generation=counts,
    version=counts,
    sequence=counts,
    rows_seen=counts,
    chain=st.text(max_size=40),
    runtime=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)


def signed(back: bytes, key_id: bytes = b"k1", key: str = SECRET, purpose: str = BUNDLE) -> bytes:
    """Return an envelope of arbitrary `back` with a valid signature, built from the format's description alone."""
    front = MAGIC + struct.pack(">B", len(key_id)) + key_id
    derived = hmac.digest(bytes.fromhex(key), f"keepfit/{purpose}".encode() + b"\x01", "sha256")
    return front + hmac.digest(derived, front + back, "sha256") + back


@settings(deadline=None)
@given(headers, st.binary(max_size=200))
def test_an_envelope_opens_with_its_header_and_payload(header: Header, payload: bytes) -> None:
    """Opening returns the sealed header and payload, whatever they contain."""
    assert RING.open(RING.seal(header, payload), header.purpose) == (header, payload)


def test_the_format_is_as_described() -> None:
    """Magic, format, key id, HMAC under the purpose's key, length of the header, header, payload, in this order."""
    text = msgspec.json.encode(HEADER)
    assert RING.seal(HEADER, b"payload") == signed(struct.pack(">I", len(text)) + text + b"payload")


def test_any_changed_byte_is_refused() -> None:
    """An envelope with any single byte changed does not open."""
    sealed = bytearray(RING.seal(Header(BUNDLE, "h", 1, 2, 3, 4, "", {}), b"pay"))
    for position, right in enumerate(sealed):
        for flipped in (0x01, 0x80, 0xFF):
            sealed[position] = right ^ flipped
            with pytest.raises(EnvelopeError):
                RING.open(bytes(sealed), BUNDLE)
        sealed[position] = right
    RING.open(bytes(sealed), BUNDLE)


def test_a_truncated_or_extended_envelope_is_refused() -> None:
    """An envelope cut at any length, or with bytes added at its end or start, does not open."""
    sealed = RING.seal(HEADER, b"payload")
    for length in range(len(sealed)):
        with pytest.raises(EnvelopeError):
            RING.open(sealed[:length], BUNDLE)
    for longer in (sealed + b"\0", b"\0" + sealed, sealed + sealed):
        with pytest.raises(EnvelopeError):
            RING.open(longer, BUNDLE)


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(1_000_000)], ids=["empty", "one", "large"])
def test_payloads_of_any_size_open(payload: bytes) -> None:
    """Empty and large payloads open unchanged."""
    assert RING.open(RING.seal(HEADER, payload), BUNDLE) == (HEADER, payload)


def test_another_key_under_the_same_id_is_refused() -> None:
    """An envelope signed with another key of the same id does not open."""
    other = Keyring.from_text("k1:" + "5f" * 32)
    with pytest.raises(EnvelopeError, match=r"Signature mismatch: .* or with another key of the id 'k1'\."):
        other.open(RING.seal(HEADER, b"payload"), BUNDLE)


def test_an_unknown_key_id_is_refused() -> None:
    """The error for an unknown key id says so and does not show the key."""
    other = Keyring.from_text(f"k2:{SECRET}")
    with pytest.raises(EnvelopeError, match="does not hold") as caught:
        other.open(RING.seal(HEADER, b"payload"), BUNDLE)
    assert SECRET not in str(caught.value)


def test_another_purpose_is_refused() -> None:
    """An envelope for one purpose does not open for another, in either direction."""
    upload = Header("upload", "h", 1, 2, 3, 4, "", {})
    for sealed, purpose in ((RING.seal(HEADER, b""), "upload"), (RING.seal(upload, b""), BUNDLE)):
        with pytest.raises(EnvelopeError, match="another purpose"):
            RING.open(sealed, purpose)


def test_keys_rotate() -> None:
    """The first key signs; envelopes of older keys open as long as these are in the ring."""
    both = Keyring.from_text(f"k2:{'aa' * 32}, k1:{SECRET}")
    only_new = Keyring.from_text("k2:" + "aa" * 32)
    old, new = RING.seal(HEADER, b"old"), both.seal(HEADER, b"new")
    assert both.open(old, BUNDLE)[1] == b"old"
    assert only_new.open(new, BUNDLE)[1] == b"new"
    with pytest.raises(EnvelopeError, match="does not hold"):
        RING.open(new, BUNDLE)
    with pytest.raises(EnvelopeError, match="does not hold"):
        only_new.open(old, BUNDLE)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=120))
@example(b"")
@example(MAGIC)
@example(MAGIC + b"\xff")
@example(MAGIC + b"\x02k1")
@example(MAGIC + b"\x02k1" + bytes(32))
@example(MAGIC + b"\x02\xff\xfe" + bytes(40))
@example(b"KFIT\x02" + RING.seal(HEADER, b"")[5:])
def test_garbage_raises_nothing_but_envelope_errors(garbage: bytes) -> None:
    """Unsigned bytes raise EnvelopeError, also after the right magic and key id."""
    for data in (garbage, MAGIC + garbage, MAGIC + b"\x02k1" + garbage):
        with pytest.raises(EnvelopeError):
            RING.open(data, BUNDLE)


@settings(deadline=None)
@given(st.binary(max_size=60))
@example(b"")
@example(b"\0\0\0")
@example(b"\0\0\0\0")
@example(b"\0\0\0\x02{}")
@example(b"\xff\xff\xff\xff{}")
@example(b"\0\0\0\x04\xff\xfe\xfd\xfc")
def test_a_signed_but_unreadable_header_is_an_envelope_error(back: bytes) -> None:
    """An unreadable header raises EnvelopeError even with a valid signature, as from a later keepfit."""
    with pytest.raises(EnvelopeError, match="header was written by another version of keepfit"):
        RING.open(signed(back), BUNDLE)


@pytest.mark.parametrize(
    "changes", [{"later": 1}, {"version": "2"}, {"runtime": {"python": 3}}, {"generation": None}], ids=str
)
def test_a_header_with_other_fields_is_refused(changes: dict[str, object]) -> None:
    """A header with an unknown field or a field of another type is refused."""
    text = msgspec.json.encode({**msgspec.to_builtins(HEADER), **changes})
    with pytest.raises(EnvelopeError, match="header was written by another version"):
        RING.open(signed(struct.pack(">I", len(text)) + text), BUNDLE)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (SECRET, 1),
        (f":{SECRET}", 1),
        ("k1:", 1),
        (f"k1:{SECRET[:-2]}", 1),
        (f"k1:{SECRET[:-1]}", 1),
        (f"k1:{SECRET}x", 1),
        (f"k1=x{SECRET}", 1),
        (f"{'k' * 256}:{SECRET}", 1),
        (f"{'é' * 128}:{SECRET}", 1),
        (f"k1:{SECRET},k2:nothex{SECRET}", 2),
        (f"k1:{SECRET}, ,k2:{'aa' * 32},k3", 3),
    ],
    ids=lambda value: str(value)[:12],
)
def test_wrong_keys_are_named_by_position_only(text: str, position: int) -> None:
    """A wrong key is named by its position; neither the message nor its context repeats any part of the text."""
    with pytest.raises(SettingsError, match=f"KEEPFIT_SIGNING_KEYS: key {position} is not id:hex") as caught:
        Keyring.from_text(text)
    assert SECRET[:8] not in repr(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("text", ["", " ", ",", " , ,"])
def test_an_empty_keyring_is_refused(text: str) -> None:
    """A keyring needs a key: the error names the command that prints one."""
    with pytest.raises(SettingsError, match="not set; `keepfit key signing` prints"):
        Keyring.from_text(text)


def test_keys_of_one_id_verify_each_what_they_signed() -> None:
    """Keys that were once given the same id can be used together; the first signs."""
    other = Keyring.from_text(f"k1:{'aa' * 32}")
    both = Keyring.from_text(f"k1:{'aa' * 32},k1:{SECRET}")
    assert both.open(RING.seal(HEADER, b"old"), BUNDLE)[1] == b"old"
    assert other.open(both.seal(HEADER, b"new"), BUNDLE)[1] == b"new"


def test_another_signer_of_intact_bytes_is_named() -> None:
    """Of intact bytes another key under an id without a fingerprint is named; an id of its own proves a forgery."""
    signed, purpose = RING.seal(HEADER, b"payload"), BUNDLE
    RING.check_signer(signed, purpose)
    fingerprint = hashlib.sha256(b"keepfit/id" + b"\xaa" * 32).hexdigest()[:12]
    with pytest.raises(UnknownKeyError, match=f"another key of the id 'k1' than that of .*{fingerprint}: add the key"):
        Keyring.from_text(f"k1:{'aa' * 32}").check_signer(signed, purpose)
    made = Keyring.from_text(f"k{fingerprint}:{'aa' * 32}")
    forged = Keyring(((made.keys[0][0], b"x" * 32),)).seal(HEADER, b"payload")
    made.check_signer(forged, purpose)
    with pytest.raises(EnvelopeError, match=r"or signed for another purpose\.$"):
        made.open(forged, purpose)


def test_spaces_and_capitals_in_keys_are_accepted() -> None:
    """Spaces around keys and capitals in the hex make no difference."""
    assert Keyring.from_text(f" k1:{SECRET.upper()} , ") == RING
    assert RING.keys == (("k1", bytes.fromhex(SECRET)),)


def test_repr_of_a_keyring_has_no_keys() -> None:
    """repr() and str() of a keyring, which tracebacks and logs show, hold no key."""
    for shown in (repr(RING), str(RING), f"{RING}"):
        assert "5e5e" not in shown
        assert repr(bytes.fromhex(SECRET))[2:10] not in shown


def other_runtime(name: str, version: str) -> Header:
    """Return the header of a bundle written with `version` of `name`."""
    return msgspec.structs.replace(HEADER, runtime={**runtime(), name: version})


@pytest.mark.parametrize("name", ["python", "scikit-learn", "numpy"])
def test_another_runtime_is_refused_with_both_versions(name: str) -> None:
    """A bundle of another minor or major version is refused; the message names both versions."""
    major, minor, *_ = runtime()[name].split(".")
    for theirs in (f"{major}.{int(minor) + 1}.0", f"{int(major) + 1}.{minor}.0", "0"):
        with pytest.raises(RuntimeMismatchError) as caught:
            check_runtime(other_runtime(name, theirs))
        assert f"{name} {theirs}" in str(caught.value)
        assert f"this process has {runtime()[name]}" in str(caught.value)


@pytest.mark.parametrize("name", ["python", "scikit-learn", "numpy"])
def test_patch_releases_may_differ(name: str) -> None:
    """A bundle of another patch release of the same minor version loads."""
    minor = ".".join(runtime()[name].split(".")[:2])
    for theirs in (minor, f"{minor}.0", f"{minor}.99", f"{minor}.0rc1"):
        check_runtime(other_runtime(name, theirs))


def test_a_missing_library_is_a_mismatch() -> None:
    """A bundle written with a library that this process lacks is refused."""
    with pytest.raises(RuntimeMismatchError, match=r"no-such-library 0\.22\.0, this process has none"):
        check_runtime(other_runtime("no-such-library", "0.22.0"))


def test_the_runtime_names_python_and_its_libraries() -> None:
    """Python, scikit-learn and numpy are in every header, with full versions."""
    assert runtime().keys() == {"python", "scikit-learn", "numpy"}
    assert all(version.count(".") >= 2 for version in runtime().values())


def test_digest_is_the_sha256_of_the_bytes() -> None:
    """The digest of an envelope is its plain SHA-256, as sha256sum prints it."""
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    sealed = RING.seal(HEADER, b"payload")
    assert digest_of(sealed) == hashlib.sha256(sealed).hexdigest()


def test_signatures_are_compared_in_constant_time() -> None:
    """Signatures are compared with hmac.compare_digest, whose time does not depend on the content."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hmac, "compare_digest", compare)
        with pytest.raises(EnvelopeError, match="Signature mismatch"):
            RING.open(RING.seal(HEADER, b""), BUNDLE)
    assert len(compared) == 1
    assert compared[0][0] == compared[0][1]
