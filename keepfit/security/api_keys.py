"""API keys: who may do what through the gateway.

Owns scopes, the form in which keys are stored, and finding the key that was sent. Never knows a key's text for longer
than it takes to hash it, never reads a file or a header. Invariant: what is stored opens nothing. Keys come from the
settings and their file; :mod:`keepfit_gateway.auth.guard` asks here.

A stored key is ``name:scopes:sha256`` or ``name:scopes:sha256:rate`` or ``name:scopes:sha256:rate/burst``; scopes are
joined by ``+``, keys are separated by commas or white space, lines that begin with ``#`` are comments. A plain SHA-256
is enough, and right: a slow hash makes up for passwords that can be guessed, a token of 256 random bits cannot be, and
each request would pay for the slowness.
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

# What a route may ask for. Every key may READ; what is OPEN takes none.
OPEN, READ, PREDICT, LEARN, ADMIN = "", "read", "predict", "learn", "admin"
SCOPES = (READ, PREDICT, LEARN, ADMIN)

# So that scanners for secrets know one where it does not belong.
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
    """One key: its name, what it may do, and how often: `rate_per_s` requests, `burst` at once; a rate of 0 is none."""

    name: str
    scopes: frozenset[str]
    # Left out of repr(): it opens nothing, and tells who has two logs that they speak of one key.
    digest: bytes = field(repr=False)
    rate_per_s: float = 0.0
    burst: int = 0


class Keys:
    """The keys that open the gateway.

    >>> token, line = new_key("web", ["predict"])
    >>> keys = Keys.from_text(line)
    >>> keys.find(token).name, keys.find("guessed")
    ('web', None)
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_digest = {key.digest: key for key in keys}

    @classmethod
    def from_text(cls, text: str, rate_per_s: float = 0.0) -> Self:
        """Read stored keys; `rate_per_s` is for those that name none.

        Raises
        ------
        SettingsError
            If one cannot be read, or two have the same name or are the same key; never repeats the text.
        """
        keys: list[Key] = []
        for position, part in enumerate(filter(None, SEPARATOR.split(COMMENT.sub("", text))), start=1):
            found = STORED.fullmatch(part)
            scopes = frozenset(found["scopes"].split("+")) if found else frozenset()
            if found is None or not scopes <= set(SCOPES):
                raise SettingsError(
                    f"API key {position} is not name:scopes:sha256 with scopes of {', '.join(SCOPES)} joined by +; "
                    "`keepfit key new` prints one."
                )
            rate = rate_per_s if found["rate"] is None else float(found["rate"])
            burst = int(found["burst"] or max(1, math.ceil(2 * rate)))
            keys.append(Key(found["name"], scopes | {OPEN, READ}, bytes.fromhex(found["digest"]), rate, burst))
        for what, values in (("name", {key.name for key in keys}), ("token", {key.digest for key in keys})):
            if len(values) != len(keys):
                raise SettingsError(f"Two API keys have the same {what}.")
        return cls(keys)

    def __len__(self) -> int:
        return len(self._by_digest)

    def names(self) -> set[str]:
        """Names of all keys."""
        return {key.name for key in self._by_digest.values()}

    def find(self, token: str) -> Key | None:
        """Return the key whose token was sent, None if there is none.

        Tokens are never compared, their digests are: how long that takes depends on bits that nobody who sends a token
        can choose, so it tells nothing of one that is stored. The last word has a comparison in constant time.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None


ANYONE = Key("everybody", frozenset({OPEN, *SCOPES}), b"")
NO_ONE = Key("nobody", frozenset({OPEN}), b"")


def new_key(name: str, scopes: Iterable[str], rate: str = "") -> tuple[str, str]:
    """Make a key; return its token, to be sent, and the line to be stored. `rate` is ``50`` or ``50/200``.

    Raises
    ------
    SettingsError
        If the name, a scope or the rate is none.
    """
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    line = f"{name}:{'+'.join(scopes)}:{digest}" + (f":{rate}" if rate else "")
    Keys.from_text(line)
    return token, line
