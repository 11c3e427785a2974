"""API keys: scopes, stored form and lookup.

Owns scopes, the form in which keys are stored, and the lookup of a sent key. Keeps a token only as long as hashing it
takes; never reads a file or a header. Invariant: a stored key does not authorize a request. Keys come from the settings
and their file; :mod:`keepfit_gateway.auth.guard` looks them up.

A stored key is ``name:scopes:sha256`` or ``name:scopes:sha256:rate`` or ``name:scopes:sha256:rate/burst``. Scopes are
joined by ``+``, keys are separated by commas or white space, lines that begin with ``#`` are comments. Plain SHA-256 is
sufficient: slow hashes protect passwords that can be guessed; a token of 256 random bits cannot be guessed, and every
request would pay for a slow hash.
"""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from keepfit.errors import SettingsError

# The scopes that a route can require. Every key has READ; an OPEN route requires no key.
OPEN, READ, PREDICT, LEARN, ADMIN = "", "read", "predict", "learn", "admin"
SCOPES = (READ, PREDICT, LEARN, ADMIN)

# Lets secret scanners recognise a leaked token.
PREFIX = "kf_"
TOKEN_BYTES = 32
COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
SEPARATOR = re.compile(r"[\s,]+")
STORED = re.compile(
    r"(?P<name>[\w.-]{1,64}):(?P<scopes>[a-z+]+):(?P<digest>[0-9a-f]{64})"
    r"(?::(?P<rate>\d{1,9}(?:\.\d{1,6})?)(?:/(?P<burst>[1-9]\d{0,8}))?)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Key:
    """One key: name, scopes and rate limit. `rate_per_s` 0 means no limit; `burst` requests may come at once."""

    name: str
    scopes: frozenset[str]
    # Not in repr(): it authorizes nothing, but would connect two logs that mention the same key.
    digest: bytes = field(repr=False)
    rate_per_s: float = 0.0
    burst: int = 0


class Keys:
    """The configured API keys.

    >>> token, line = new_key("web", ["predict"])
    >>> keys = Keys.from_text(line)
    >>> keys.find(token).name, keys.find("guessed")
    ('web', None)
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}

    @classmethod
    def from_text(cls, text: str, rate_per_s: float = 0.0) -> Self:
        """Parse stored keys. `rate_per_s` applies to keys without a rate of their own.

        Raises
        ------
        SettingsError
            If a key is malformed, or two keys have the same name or token. The message never repeats the text.
        """
        keys: list[Key] = []
        for position, stored in enumerate(filter(None, SEPARATOR.split(COMMENT.sub("", text))), start=1):
            found = STORED.fullmatch(stored)
            scopes = frozenset(found["scopes"].split("+")) if found else frozenset()
            if found is None or not scopes <= set(SCOPES):
                raise SettingsError(
                    f"API key {position} is not name:scopes:sha256 with scopes of {', '.join(SCOPES)} joined by +; "
                    "`keepfit key new` prints one."
                )
            rate = rate_per_s if found["rate"] is None else float(found["rate"])
            burst = int(found["burst"] or max(1, math.ceil(2 * rate)))
            keys.append(Key(found["name"], scopes | {OPEN, READ}, bytes.fromhex(found["digest"]), rate, burst))
        for attribute, values in (("name", {key.name for key in keys}), ("token", {key.digest for key in keys})):
            if len(values) != len(keys):
                raise SettingsError(f"Two API keys have the same {attribute}.")
        return cls(keys)

    def __len__(self) -> int:
        return len(self._by_digest)

    def names(self) -> set[str]:
        """Return the names of all keys."""
        return {key.name for key in self._by_digest.values()}

    def find(self, token: str) -> Key | None:
        """Return the key of a sent token, None if there is none.

        Digests are compared, never tokens: the time that takes depends on bits that a client cannot choose, so it
        reveals nothing about a stored key. The final comparison takes constant time.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None


UNRESTRICTED = Key("unrestricted", frozenset({OPEN, *SCOPES}), b"")
ANONYMOUS = Key("anonymous", frozenset({OPEN}), b"")


def new_key(name: str, scopes: Iterable[str], rate: str = "") -> tuple[str, str]:
    """Return a new key: the token for the client and the line to store. `rate` is ``50`` or ``50/200``.

    Raises
    ------
    SettingsError
        If the name, a scope or the rate is invalid.
    """
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    line = f"{name}:{'+'.join(scopes)}:{digest}" + (f":{rate}" if rate else "")
    Keys.from_text(line)
    return token, line
