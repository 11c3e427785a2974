"""Hashes on the command line: a prefix stands for the hash that begins with it, and a terminal shows prefixes.

Owns both directions. Reads the registry; changes nothing. Invariant: what a terminal shows as a hash is accepted as one
by every command, because it is the beginning of one hash only.
"""

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

from keepfit.cli.options import data_folder
from keepfit.cli.output import is_terminal
from keepfit.client import hash_prefix
from keepfit.errors import UnavailableError

if TYPE_CHECKING:
    from keepfit.settings import Settings

# With 8 digits, two of 10,000 models begin alike with a probability of 1 in 90; then all get more digits.
SHOWN_DIGITS_MIN = 8


async def resolve(settings: "Settings", text: str, *, deleted: bool = False) -> str:
    """Return the hash that begins with `text`; a whole hash is returned without looking it up.

    Parameters
    ----------
    deleted : whether a hash of a deleted model is found as well, for commands about the history

    Raises
    ------
    MalformedError
        If `text` is not the beginning of a hash, or of more than one.
    NotFoundError
        If no model has such a hash.
    UnavailableError
        If MongoDB is unavailable.
    """
    prefix = hash_prefix.check(text)
    if len(prefix) == hash_prefix.DIGITS:
        return prefix
    from keepfit.history import Registry  # noqa: PLC0415 - other commands must not wait for it

    async with Registry(settings.mongo_url.get_secret_value()) as registry:
        found = await registry.hashes(prefix, hash_prefix.CANDIDATES_MAX + 1, deleted=deleted)
    return hash_prefix.only_one(prefix, found)


def last_with(prefix: str) -> str:
    """Return the last hash that can begin with `prefix`."""
    return prefix.ljust(hash_prefix.DIGITS, "f")


def shown(hashes: Iterable[str]) -> Mapping[str, str]:
    """Return what to print for each hash: on a terminal the shortest prefixes of one length that name one model each.

    Elsewhere, and if the registry cannot be read, the whole hash.
    """
    known = set(hashes)
    if not known or not is_terminal():
        return {found: found for found in known}
    from keepfit.local.data_folder import settings_file  # noqa: PLC0415 - as above
    from keepfit.settings import load  # noqa: PLC0415

    try:
        # In a thread, because `keepfit restore` asks its question inside an event loop.
        with ThreadPoolExecutor(1) as pool:
            known |= set(pool.submit(asyncio.run, _all_hashes(load(settings_file(data_folder())))).result())
    except UnavailableError:
        return {found: found for found in known}
    digits = max(SHOWN_DIGITS_MIN, digits_needed(known))
    return {found: found[:digits] for found in known}


async def _all_hashes(settings: "Settings") -> list[str]:
    from keepfit.history import Registry  # noqa: PLC0415 - other commands must not wait for it

    async with Registry(settings.mongo_url.get_secret_value()) as registry:
        return await registry.hashes(deleted=True)


def digits_needed(hashes: Iterable[str]) -> int:
    """Return how many digits distinguish all of these different hashes.

    >>> digits_needed(["3fa0", "3fb0", "41cc"]), digits_needed(["3fa0"])
    (3, 1)
    """
    # In order, the hash that agrees with another one in the most digits is next to it.
    ordered = sorted(hashes)
    digits = 1
    for one, following in pairwise(ordered):
        while one[:digits] == following[:digits]:
            digits += 1
    return digits
