"""The first digits of a hash, which stand for the only hash that begins with them.

Pure. Owns what can begin a hash, and the errors about digits that begin none or several. The command line finds the
hashes in the registry, the client of a gateway in its list of models.
"""

import re

from keepfit.errors import MalformedError, NotFoundError

DIGITS = 64
PREFIX = re.compile(r"[0-9a-f]{1,64}")
CANDIDATES_MAX = 10


def check(text: str) -> str:
    """Return `text` in lower case if it can begin a hash.

    >>> check(" 3FA9 ")
    '3fa9'

    Raises
    ------
    MalformedError
        If it cannot.
    """
    prefix = text.strip().lower()
    if not PREFIX.fullmatch(prefix):
        raise MalformedError(
            f"{text[: 2 * DIGITS]!r} is not the beginning of a hash: a hash has {DIGITS} digits, 0 to 9 and a to f; "
            "`keepfit models` lists them."
        )
    return prefix


def only_one(prefix: str, found: list[str]) -> str:
    """Return the only hash of `found`, those that begin with `prefix`.

    Raises
    ------
    MalformedError, NotFoundError
        If there are several, which the message lists, or none.
    """
    if not found:
        raise NotFoundError(f"There is no model whose hash begins with {prefix}; `keepfit models` lists the models.")
    if len(found) > 1:
        more = " and more" if len(found) > CANDIDATES_MAX else ""
        raise MalformedError(
            f"{prefix} begins the hashes of several models; give more digits: "
            f"{', '.join(found[:CANDIDATES_MAX])}{more}."
        )
    return found[0]


def before(model_hash: str) -> str:
    """Return the greatest text of 64 digits below `model_hash`, "" if there is none.

    >>> before("0" * 63 + "a")[-2:], before("0" * 64)
    ('09', '')
    """
    number = int(model_hash, 16)
    return f"{number - 1:0{DIGITS}x}" if number else ""
