"""The identity of a model: metadata, its canonical text, its hash.

Owns strict JSON parsing and the rules for metadata. Never touches a store. Invariant: the same metadata has the same
hash in every language, because canonical text follows RFC 8785, and everything that two languages could read
differently (repeated keys, NaN, integers of 2^53 and more, text not in NFC) is rejected before hashing. Metadata comes
from clients; canonical text and hash go into Redis keys, MongoDB and envelopes.
"""

import codecs
import hashlib
import json
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any, NoReturn

import rfc8785

from keepfit.errors import InvalidError, MalformedError

# What errors of the parser call its text.
BODY = "The body"
METADATA_BYTES_MAX = 16 * 1024
METADATA_DEPTH_MAX = 8
INTEGER_MAX = 2**53 - 1
# ECMAScript, and therefore RFC 8785, writes numbers from here on with an exponent.
EXPONENT_MIN = 1e21
# Error messages cut a key to this length: a key may be as long as a body.
KEY_SHOWN_MAX = 40
# Metadata that come with every request are checked and hashed once. The cache holds at most 8 MiB of text.
HASHES_CACHED_MAX = 4096
TEXT_CACHED_BYTES_MAX = 2048


def parse_json(body: bytes | bytearray, source: str = BODY) -> Any:
    """Parse JSON strictly (RFC 8259, and the rule of unique keys of I-JSON, RFC 7493); errors name its `source`.

    Raises
    ------
    MalformedError
        For text that is not UTF-8 or not JSON, nested too deeply, or has repeated keys, too long numbers or lone
        surrogates.
    InvalidError
        For NaN and Infinity, which Python's parser accepts.

    >>> parse_json(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        text = body.decode("utf-8")
        if "\\ud" in text or "\\uD" in text:
            # Only an escape sequence can hide a lone surrogate from the UTF-8 decoder. Encoding the result finds it.
            json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise MalformedError(f"{source} is not UTF-8 text.") from None
    except UnicodeEncodeError:
        raise MalformedError(f"{source} holds a lone surrogate, which is not a character.") from None
    except RecursionError:
        raise MalformedError("The JSON is nested too deeply.") from None
    except json.JSONDecodeError as error:
        if body.startswith(codecs.BOM_UTF8):
            raise MalformedError(f"{source} begins with a byte order mark (BOM); send UTF-8 without one.") from None
        raise MalformedError(f"{source} is not JSON: {error.msg} at character {error.pos}.") from None
    except ValueError as error:
        # int() refuses numbers of more than 4,300 digits.
        raise MalformedError(f"{source} is not usable JSON: {error}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        # One pass over the keys: an object may have millions of them.
        ((duplicate, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise MalformedError(f"The key {_shown(duplicate)} occurs twice in one object.")
    return parsed


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidError(f"{name} is not a finite number.")


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of `value` (RFC 8785).

    >>> canonical({"b": 1.0, "a": "x"})
    b'{"a":"x","b":1}'
    """
    try:
        return rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"The value has no canonical JSON form: {error}.") from None


def hash_of(metadata: dict[str, Any]) -> str:
    """Return the SHA-256 (64 hex digits) of the canonical JSON of checked `metadata`.

    >>> hash_of({"type": "shoes", "session": 1}) == hash_of({"session": 1.0, "type": "shoes"})
    True
    """
    return hashlib.sha256(canonical(metadata)).hexdigest()


def hash_of_text(text: bytes, source: str = BODY) -> str:
    """Return the hash of the metadata whose JSON is `text`, part of `source`. Short texts are cached.

    Raises
    ------
    MalformedError, InvalidError
        As :func:`parse_json` and :func:`check_metadata` do.
    """
    return (_hash_cached if len(text) <= TEXT_CACHED_BYTES_MAX else _hash_of_text)(text, source)


def _hash_of_text(text: bytes, source: str) -> str:
    return hash_of(check_metadata(parse_json(text, source)))


_hash_cached = lru_cache(maxsize=HASHES_CACHED_MAX)(_hash_of_text)


def check_metadata(metadata: Any) -> dict[str, Any]:
    """Return `metadata` unchanged if it is valid.

    Raises
    ------
    InvalidError
        If it is not an object, has no non-empty string ``type``, has a ``timestamp``, exceeds 16 KiB or 8 levels, or
        holds a key or value that cannot be stored or that another language would hash differently.
    """
    if not isinstance(metadata, dict):
        raise InvalidError("metadata must be a JSON object that names the model.")
    if not isinstance(metadata.get("type"), str) or not metadata["type"]:
        raise InvalidError("metadata must hold a non-empty string 'type'.")
    if "timestamp" in metadata:
        raise InvalidError("metadata must not hold 'timestamp': each value would name another model.")
    _check_value(metadata, "metadata", depth=1)
    if len(canonical(metadata)) > METADATA_BYTES_MAX:
        raise InvalidError(f"metadata is larger than {METADATA_BYTES_MAX} bytes.")
    return metadata


def _check_value(value: Any, path: str, depth: int) -> None:
    if isinstance(value, dict | list) and depth > METADATA_DEPTH_MAX:
        raise InvalidError(f"metadata is nested deeper than {METADATA_DEPTH_MAX} levels.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, f"key {_shown(key)} in {path}")
            if not key or key.startswith("$") or "." in key:
                raise InvalidError(f"key {_shown(key)} in {path} is empty, begins with '$' or holds '.'.")
            _check_value(item, f"{path}.{key[:KEY_SHOWN_MAX]}", depth + 1)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _check_value(item, f"{path}[{position}]", depth + 1)
    elif isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, int | float) and abs(value) > INTEGER_MAX and _is_written_whole(value):
        raise InvalidError(
            f"{path}: {str(value)[:KEY_SHOWN_MAX]} is 2^53 or more, not the same number in every language."
        )


def _is_written_whole(number: float) -> bool:
    """Return whether canonical text writes `number` with digits only, so that a reader parses it as an integer."""
    return isinstance(number, int) or abs(number) < EXPONENT_MIN


def _check_text(text: str, path: str) -> None:
    if "\0" in text:
        raise InvalidError(f"{path} holds a NUL character.")
    if not unicodedata.is_normalized("NFC", text):
        raise InvalidError(f"{path} is not in Unicode normal form C; send it normalised.")


def _shown(key: str) -> str:
    return repr(key if len(key) <= KEY_SHOWN_MAX else f"{key[:KEY_SHOWN_MAX]}…")
