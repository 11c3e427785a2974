"""Request ids: what ties an answer to the lines that gateways and workers log about it.

Owns their form, and which one the work in hand belongs to. Never decides where one is shown. Invariant: an id that
came from outside is short and plain, so that no log line can be forged with it.
"""

import itertools
import re
import secrets
from contextvars import ContextVar

FORM = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# The id that the client sent with the request in hand; "" if it sent none. What goes to workers carries this one only:
# an id that we made up is known to nobody who could ask for it there, and would cost bytes in every question.
sent: ContextVar[str] = ContextVar("request_id", default="")

_prefix = secrets.token_hex(6)
_count = itertools.count(1)


def mint() -> str:
    """Make an id that no other request of any gateway has: the process' own random part, and a count.

    >>> mint() != mint(), bool(FORM.fullmatch(mint()))
    (True, True)
    """
    return f"{_prefix}-{next(_count):x}"
