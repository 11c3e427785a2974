"""API keys: scopes, stored form and lookup.

Owns scopes, the form in which keys are stored, and the lookup of a sent key. Keeps a token only as long as hashing it
takes; never reads a file or a header. Invariant: a stored key does not authorize a request. Keys come from the settings
and their file; :mod:`keepfit_gateway.auth.guard` looks them up.

A stored key is ``name:scopes:sha256``, then ``:rate`` or ``:rate/burst`` if it has a rate, and ``:type=shoes`` if it is
bound to metadata (:mod:`keepfit.conditions`). Scopes are joined by ``+``, keys are separated by commas or white space,
lines that begin with ``#`` are comments. Two keys may have one name, the old and the new key of a client. Plain SHA-256
is sufficient: slow hashes protect passwords; a token of 256 random bits cannot be guessed.
"""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from keepfit import conditions
from keepfit.conditions import Conditions
from keepfit.errors import InvalidError, MalformedError, SettingsError

# The scopes that a route can require. Every key has READ; an OPEN route requires no key.
OPEN, READ, PREDICT, LEARN, ADMIN = "", "read", "predict", "learn", "admin"
SCOPES = (READ, PREDICT, LEARN, ADMIN)

# Lets secret scanners recognise a leaked token.
PREFIX = "kf_"
TOKEN_BYTES = 32
COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
SEPARATOR = re.compile(r"[\s,]+")
NAME = re.compile(r"(?P<name>[\w.-]{1,64})", re.ASCII)
RATE = re.compile(r"(?P<rate>\d{1,9}(?:\.\d{1,6})?)(?:/(?P<burst>[1-9]\d{0,8}))?", re.ASCII)
STORED = re.compile(
    rf"{NAME.pattern}:(?P<scopes>[a-z+]+):(?P<digest>[0-9a-f]{{64}})(?::{RATE.pattern})?(?::(?P<where>[\w.~%+=-]*=[\w.~%+=-]*))?",
    re.ASCII,
)
# Keys that may have the same name: the old and the new one of a client that changes its key.
SAME_NAME_MAX = 2
# What of a key may change while its name stays.
CHANGEABLE = ("scopes", "digest", "rate_per_s", "burst", "where")
# Characters of an argument that a message repeats.
SHOWN_MAX = 80


@dataclass(frozen=True, slots=True)
class Key:
    """One key: name, scopes and rate limit. `rate_per_s` 0 means no limit; `burst` requests may come at once.

    With conditions in `where` it is a bound key: to it there are only the models whose metadata fulfil them.
    """

    name: str
    scopes: frozenset[str]
    # Not in repr(): it authorizes nothing, but would connect two logs that mention the same key.
    digest: bytes = field(repr=False)
    rate_per_s: float = 0.0
    burst: int = 0
    where: Conditions = ()

    @property
    def sees_reasons(self) -> bool:
        """Whether errors of the service may name addresses and paths to it: to an unbound API key with ADMIN only."""
        return ADMIN in self.scopes and bool(self.digest) and not self.where

    def may_use(self, metadata: Mapping[str, Any]) -> bool:
        """Return whether there is a model with these metadata to this key.

        >>> key = Key("web", frozenset(), b"", where=conditions.parse(["type=shoes"]))
        >>> key.may_use({"type": "shoes", "brand": "nike"}), key.may_use({"type": "hats"}), UNRESTRICTED.may_use({})
        (True, False, True)
        """
        return not self.where or conditions.matches(metadata, self.where)


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
            If a key is malformed, two keys have the same token, three the same name, or keys of one name differ in
            scopes, rate or conditions. The message never repeats a malformed key.
        """
        keys: list[Key] = []
        for position, stored in enumerate(filter(None, SEPARATOR.split(COMMENT.sub("", text))), start=1):
            found = STORED.fullmatch(stored)
            scopes = frozenset(found["scopes"].split("+")) if found else frozenset()
            if found is None or not scopes <= set(SCOPES):
                raise SettingsError(
                    f"KEEPFIT_API_KEYS or its file: key {position} is not name:scopes:sha256 with scopes of "
                    f"{', '.join(SCOPES)} joined by +; `keepfit key new` prints one."
                )
            rate = rate_per_s if found["rate"] is None else float(found["rate"])
            burst = int(found["burst"] or max(1, math.ceil(2 * rate)))
            where = _conditions(position, found["where"])
            keys.append(Key(found["name"], scopes | {OPEN, READ}, bytes.fromhex(found["digest"]), rate, burst, where))
        made = cls(keys)
        if len(made) != len(keys):
            raise SettingsError("KEEPFIT_API_KEYS or its file: two keys have the same token.")
        for name, same in made._by_name().items():
            if len(same) > SAME_NAME_MAX:
                raise SettingsError(
                    f"KEEPFIT_API_KEYS or its file: {len(same)} keys have the name {name!r}; at most {SAME_NAME_MAX} "
                    "may, the old and the new key of a client."
                )
            if len({(key.scopes, key.rate_per_s, key.burst, key.where) for key in same}) > 1:
                raise SettingsError(
                    f"KEEPFIT_API_KEYS or its file: the keys with the name {name!r} must have the same scopes, rate "
                    "and conditions."
                )
        return made

    def __len__(self) -> int:
        return len(self._by_digest)

    def names(self) -> set[str]:
        """Return the names of all keys."""
        return {key.name for key in self._by_digest.values()}

    def changes_since(self, before: "Keys") -> dict[str, Any]:
        """Return the names of keys that were `added` and `removed`, and for each that `changed` what did.

        >>> before = Keys.from_text(f"web:predict:{'a' * 64}, old:read:{'b' * 64}")
        >>> Keys.from_text(f"web:predict+learn:{'c' * 64}, new:read:{'b' * 64}").changes_since(before)
        {'added': ['new'], 'removed': ['old'], 'changed': {'web': ['scopes', 'digest']}}
        """
        old, new = before._by_name(), self._by_name()
        differences = {
            name: [
                what
                for what in CHANGEABLE
                if {getattr(key, what) for key in old[name]} != {getattr(key, what) for key in new[name]}
            ]
            for name in sorted(old.keys() & new.keys())
        }
        return {
            "added": sorted(new.keys() - old.keys()),
            "removed": sorted(old.keys() - new.keys()),
            "changed": {name: parts for name, parts in differences.items() if parts},
        }

    def find(self, token: str) -> Key | None:
        """Return the key of a sent token, None if there is none.

        Digests are compared, never tokens: the time that takes depends on bits that a client cannot choose, so it
        reveals nothing about a stored key. The final comparison takes constant time.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None

    def of_digest(self, digest: bytes) -> Key | None:
        """Return the key with a digest that a gateway has signed, None if there is none (any more)."""
        return self._by_digest.get(digest)

    def _by_name(self) -> dict[str, list[Key]]:
        keys: dict[str, list[Key]] = {}
        for key in self._by_digest.values():
            keys.setdefault(key.name, []).append(key)
        return keys


def _conditions(position: int, stored: str | None) -> Conditions:
    try:
        return () if stored is None else conditions.decode(stored)
    except (InvalidError, MalformedError) as error:
        raise SettingsError(f"KEEPFIT_API_KEYS or its file: key {position}: {error}") from None


UNRESTRICTED = Key("unrestricted", frozenset({OPEN, *SCOPES}), b"")
ANONYMOUS = Key("anonymous", frozenset({OPEN}), b"")


def new_key(name: str, scopes: Iterable[str], rate: str = "", where: Iterable[str] = ()) -> tuple[str, str]:
    """Return a new key: the token for the client and the line to store.

    `rate` is ``50`` or ``50/200``, `where` has conditions on metadata, ``type=shoes``.

    Raises
    ------
    SettingsError
        If the name, a scope, the rate or a condition is invalid; the message says which, and what would be right.
    """
    scopes = list(scopes)
    if not NAME.fullmatch(name):
        raise SettingsError(f"name {name[:SHOWN_MAX]!r} is not 1 to 64 letters, digits, '.', '_' and '-'.")
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        shown = unknown[0][:SHOWN_MAX] if unknown else ""
        raise SettingsError(f"scopes: {shown!r} is not one of {', '.join(SCOPES)}.")
    if rate and not RATE.fullmatch(rate):
        raise SettingsError(
            f"rate {rate[:SHOWN_MAX]!r} is not a number of requests per second, 50, or with the number that "
            "may come at once, 50/200."
        )
    try:
        bound = conditions.encode(conditions.parse(where))
    except (InvalidError, MalformedError) as error:
        raise SettingsError(f"where: {error}") from None
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    line = ":".join([name, "+".join(scopes), digest, *filter(None, (rate, bound))])
    Keys.from_text(line)
    return token, line
