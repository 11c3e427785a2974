"""The trace that a request belongs to, as its client says in the header field `traceparent` (W3C Trace Context).

Owns the field's form. Never begins a trace. Invariant: what is returned is 32 lower-case hexadecimal digits, so it
cannot forge a log line.
"""

import re
from collections.abc import Sequence

# Version, trace id, id of the caller's span, flags. Versions after 00 may have more, behind a hyphen.
_FORM = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_id_of(fields: Sequence[str]) -> str | None:
    """Return the trace id of the only field `traceparent` of a request; None if it is missing, repeated or wrong.

    >>> trace_id_of(["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"])
    '4bf92f3577b34da6a3ce929d0e0e4736'
    >>> trace_id_of(["00-4bf92f35-00f067aa0ba902b7-01"]), trace_id_of([])
    (None, None)
    """
    found = _FORM.fullmatch(fields[0]) if len(fields) == 1 else None
    if found is None or (found[1] == "00" and found[3] is not None):
        return None
    return found[2]
