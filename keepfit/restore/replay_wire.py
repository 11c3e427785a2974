"""Messages between a restore and the child process that replays requests, in msgpack.

Owns their fields and encoding. No pickle crosses the pipe; bundles travel in their signed envelopes.
"""

import msgspec

from keepfit.security.envelope import Header

# The first message of a child: it has imported everything.
READY = b"ready"
# Before and after each load of the bundle: what follows is a call of its own.
LOADING, LOADED = b"loading", b"loaded"


class ReplayTask(msgspec.Struct, array_like=True, frozen=True):
    """Requests to learn on top of a bundle (empty: a new one); `header` is the header of the bundle to seal."""

    recipe_text: str
    header: Header
    data: bytes
    payloads: list[bytes]


class ReplayReply(msgspec.Struct, array_like=True, frozen=True):
    """Result of a task: the bundle has learned the first `count` requests, `reason` says why not the next ('': all).

    The texts are JSON. `error` is (class, message) of a keepfit error, if the task failed as a whole.
    """

    count: int = 0
    reason: str = ""
    data: bytes = b""
    width: int | None = None
    metrics_text: str = "{}"
    changed_text: str = "{}"
    error: tuple[str, str] | None = None


encode = msgspec.msgpack.Encoder().encode
decode_task = msgspec.msgpack.Decoder(ReplayTask).decode
decode_reply = msgspec.msgpack.Decoder(ReplayReply).decode
