"""Which media type of an answer a request prefers.

Pure. Owns how `Accept` is read (RFC 9110, section 12.5.1). Invariant: a request without preference gets JSON.
"""

import re
from collections.abc import Sequence

JSON = "application/json"
WEIGHT = re.compile(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", re.IGNORECASE)


def preferred(accept: Sequence[str], offered: Sequence[str]) -> str:
    """Return the media type among JSON and those `offered` that the values of `Accept` weigh most.

    >>> preferred(["text/csv"], ["text/csv"]), preferred(["text/csv;q=0.5, */*"], ["text/csv"])
    ('text/csv', 'application/json')
    """
    best, most = JSON, 0.0
    for part in ",".join(accept).split(","):
        name, *parameters = part.split(";")
        media_type = name.strip().lower()
        weights = [found[1] for found in map(WEIGHT.fullmatch, parameters) if found]
        weight = float(weights[0]) if weights else 1.0
        if media_type in ("*/*", "application/*"):
            media_type = JSON
        # Of equal weights the first one is meant, and any but JSON only if it is named.
        if media_type in (JSON, *offered) and weight > most:
            best, most = media_type, weight
    return best
