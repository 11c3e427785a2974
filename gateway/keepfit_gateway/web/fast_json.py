"""Fast decoding of JSON requests about rows: taken only where it provably gives what the strict parser would give.

Owns no rule: :func:`keepfit.identity.parse_json` and :mod:`keepfit_gateway.schemas` say what is right, and what is not
decoded here goes to them. Invariant: msgspec, which decodes, has their grammar and their numbers, but for three things.
It takes a repeated key, and the last one wins: then at least one string of the body, the key, is not in the result. A
quotation mark without a backslash before it begins or ends a string, so a body without ``\\"`` has two for each of its
strings, and no key was repeated exactly if it has two for each string in the result. It nests to another depth: rows
here hold numbers, strings and null, nothing nested. It skips over what is asked for raw: that is decoded by itself
afterwards, rows and target here, metadata by the strict parser.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import msgspec

from keepfit import identity
from keepfit.errors import KeepfitError
from keepfit_gateway.schemas import Form

Row = list[int | float | str | None] | dict[str, int | float | str | None]
FIELDS: dict[str, Any] = {
    "X": list[Row],
    "y": list[int | float | str | bool],
    "sample_weight": list[int | float],
    "proba": bool,
    "metadata": msgspec.Raw,
}
RAW_FIELDS: dict[str, Any] = {**FIELDS, "X": msgspec.Raw, "y": msgspec.Raw, "sample_weight": msgspec.Raw}
# A large body is decoded in such parts, so that its lists never are in memory as a whole.
STEP_BYTES = 1 << 20
UNSET = msgspec.UNSET

_decode_rows = msgspec.json.Decoder(FIELDS["X"]).decode
_decoders = {name: msgspec.json.Decoder(FIELDS[name]).decode for name in ("y", "sample_weight")}


class UnprovenError(Exception):
    """The strict parser is to decide."""


@dataclass(slots=True)
class Found:
    """A request as decoded, or as split into the raw texts of its fields; `hash` is the model's that metadata name."""

    X: Any
    y: Any
    sample_weight: Any
    proba: bool
    hash: str | None


class Plan(NamedTuple):
    """How a form is decoded: `optional` are its fields that a request may lack."""

    decoder: msgspec.json.Decoder[Any]
    optional: tuple[str, ...]
    by_metadata: bool


def decode(body: bytes | bytearray, form: type[Form]) -> Found | None:
    """Decode a body; None where the strict parser is to decide."""
    decoder, optional, by_metadata = _plan(form)
    try:
        decoded = decoder.decode(body)
        quotes, strings, model_hash = body.count(b'"'), 1, None
        if by_metadata:
            model_hash, inside = _named(decoded.metadata)
            quotes, strings = quotes - inside, 2
    # Besides its own errors msgspec raises those of UTF-8 and of Python's stack.
    except (msgspec.MsgspecError, UnicodeError, RecursionError, KeepfitError):
        return None
    given = {name: value for name in optional if (value := getattr(decoded, name)) is not UNSET}
    X, y = decoded.X, given.get("y")
    strings += len(given)
    if quotes != 2 * strings and quotes != 2 * (strings + _strings_in_rows(X) + _strings(y or ())):
        return None
    if b"\\" in body and _has_doubtful_escape(body):
        return None
    return Found(X, y, given.get("sample_weight"), given.get("proba", False), model_hash)


def split(body: bytes | bytearray, form: type[Form]) -> Found | None:
    """Find the fields of a large body: `X`, `y`, `sample_weight` as raw JSON for :func:`parts` and :func:`values`."""
    decoder, optional, by_metadata = _plan(form, raw=True)
    if b"\\" in body and _has_doubtful_escape(body):
        return None
    try:
        decoded = decoder.decode(body)
        model_hash, inside = _named(decoded.metadata) if by_metadata else (None, 0)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, KeepfitError):
        return None
    given = {name: value for name in optional if (value := getattr(decoded, name)) is not UNSET}
    inside += sum(_quotes(memoryview(given[name])) for name in _decoders if name in given)
    if _quotes(memoryview(body)) - _quotes(memoryview(decoded.X)) - inside != 2 * (1 + by_metadata + len(given)):
        return None
    return Found(decoded.X, given.get("y"), given.get("sample_weight"), given.get("proba", False), model_hash)


def parts(X: msgspec.Raw) -> Iterator[list[Any]]:
    """Give the rows of a raw `X` in lists of about a megabyte of text.

    The text is cut where a row may end. Lists of rows that are JSON each are, with commas between them, one list of all
    these rows, and JSON has no second reading: wherever the cuts were, they were right if every part can be decoded.

    Raises
    ------
    UnprovenError
        If a part cannot be decoded here.
    """
    text = memoryview(X)
    if text[:1].tobytes() + text[-1:].tobytes() != b"[]":
        raise UnprovenError
    start, end = 1, len(text) - 1
    while start <= end:
        part = _cut(text[start:end])
        rows = _decoded(b"[%b]" % part, _decode_rows)
        if not rows or part.count(b'"') != 2 * _strings_in_rows(rows):
            raise UnprovenError
        yield rows
        start += len(part) + 1


def values(name: str, raw: msgspec.Raw | None) -> list[Any] | None:
    """Decode a raw `y` or `sample_weight`; raises UnprovenError as :func:`parts` does."""
    if raw is None:
        return None
    found: list[Any] = _decoded(raw, _decoders[name])
    if _quotes(memoryview(raw)) != 2 * _strings(found):
        raise UnprovenError
    return found


def _cut(text: memoryview) -> bytes:
    """Beginning of the text of some rows, up to where one seems to end."""
    size = STEP_BYTES
    while size < len(text):
        part = text[:size].tobytes()
        end = max(part.rfind(b"],"), part.rfind(b"},")) + 1
        if end:
            return part[:end]
        size *= 2
    return text.tobytes()


def _decoded(text: Any, decoder: Any) -> Any:
    try:
        return decoder(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise UnprovenError from None


def _named(metadata: msgspec.Raw) -> tuple[str, int]:
    """Hash of the model that raw metadata name, and the quotation marks in them."""
    text = bytes(metadata)
    return identity.hash_of_text(text), text.count(b'"')


def _strings_in_rows(rows: list[Any]) -> int:
    """Count the strings in rows, keys among them."""
    count = 0
    for row in rows:
        count += _strings(row) if type(row) is list else len(row) + _strings(row.values())
    return count


def _strings(items: Iterable[Any]) -> int:
    return [type(item) for item in items].count(str)


def _quotes(text: memoryview) -> int:
    """Count quotation marks, a part at a time: other threads may run in between."""
    return sum(text[start : start + STEP_BYTES].tobytes().count(b'"') for start in range(0, len(text), STEP_BYTES))


def _has_doubtful_escape(body: bytes | bytearray) -> bool:
    """Tell whether a quotation mark may be escaped, or a surrogate, of which there may be half a pair."""
    return b'\\"' in body or b"\\ud" in body or b"\\uD" in body


@cache
def _plan(form: type[Form], *, raw: bool = False) -> Plan:
    types = RAW_FIELDS if raw else FIELDS
    fields = msgspec.structs.fields(form)
    decoded = msgspec.defstruct(
        f"Decoded{form.__name__}",
        [(f.name, types[f.name]) for f in fields if f.required]
        + [(f.name, types[f.name] | msgspec.UnsetType, UNSET) for f in fields if not f.required],
        forbid_unknown_fields=True,
    )
    optional = tuple(f.name for f in fields if not f.required)
    return Plan(msgspec.json.Decoder(decoded), optional, "metadata" in form.__struct_fields__)
