"""Request ids: they connect a response with the lines that gateways and workers log about it.

Owns their form and the id of the request that the current task handles. Never decides where an id is shown. Invariant:
an id from a client is short and contains no white space, quotes or control characters, so it cannot forge a log line.
"""

import itertools
import os
import re
import secrets
from contextvars import ContextVar

FORM = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# The id that the client sent with the current request; "" if it sent none. Worker requests carry only this one: a
# minted id is unknown to the client until the response arrives, and would cost bytes in every worker request.
sent: ContextVar[str] = ContextVar("request_id", default="")

_prefix, _count = "", itertools.count(1)


def _begin() -> None:
    """Take a prefix of this process: a fork must not count on with that of its parent."""
    global _prefix, _count
    _prefix, _count = secrets.token_hex(6), itertools.count(1)


_begin()
os.register_at_fork(after_in_child=_begin)


def mint() -> str:
    """Return an id that no other request of any gateway has: a random prefix of the process and a counter.

    >>> mint() != mint(), bool(FORM.fullmatch(mint()))
    (True, True)
    """
    return f"{_prefix}-{next(_count):x}"
