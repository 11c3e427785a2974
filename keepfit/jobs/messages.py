"""Requests of gateways to workers through the predict queue, and the replies.

Owns the two messages on the wire (msgpack). Never waits or sends. Invariant: an error is transferred as the name of a
class of :mod:`keepfit.errors` and its message, so that the gateway raises the error that the worker had.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from keepfit import errors
from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import Command
from keepfit.errors import KeepfitError
from keepfit.rows.rows import Rows

REPLIES_TTL_MS = 60_000

# `restore` restores a model that Redis lost; `put_back` restores an older snapshot on request.
Operation = Literal["predict", "proba", "score", "restore", "put_back", "snapshot"]


class RestoreOptions(msgspec.Struct, array_like=True, frozen=True):
    """Which snapshot to restore: the newest that is not later than `at` (seconds since 1970) and has this `version`."""

    at: float | None = None
    version: int | None = None


class WorkerRequest(msgspec.Struct, array_like=True, frozen=True):
    """A request of a gateway about one model.

    `rows_key` names the key that holds the rows if they are too large for the message; `request_id` is the id that the
    client gave its HTTP request, "" if it gave none.
    """

    id: int
    gateway: str
    hash: str
    operation: Operation
    generation: int = 0
    rows: Rows | None = None
    rows_key: str = ""
    request_id: str = ""
    restore_options: RestoreOptions | None = None


class WorkerReply(msgspec.Struct, array_like=True, frozen=True):
    """The reply to a request: `result` depends on the operation; after a failure, `error` is (class, message)."""

    id: int
    generation: int = 0
    version: int = 0
    rows_seen: int = 0
    result: Any = None
    error: tuple[str, str] | None = None

    def raise_error(self) -> None:
        """Raise the error of the worker, if there was one."""
        if self.error is not None:
            raise errors.from_name(*self.error)


def failed(request: WorkerRequest, error: KeepfitError) -> WorkerReply:
    """Return a reply with an error."""
    return WorkerReply(request.id, error=(type(error).__name__, str(error)))


def send_replies(gateway: str, replies: Sequence[WorkerReply]) -> list[Command]:
    """Return the commands that send replies to the gateway that made the requests."""
    key = redis_keys.replies(gateway)
    # The replies to a dead gateway expire.
    return [("RPUSH", key, encode(replies)), ("PEXPIRE", key, REPLIES_TTL_MS)]


encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(WorkerRequest).decode
decode_replies = msgspec.msgpack.Decoder(list[WorkerReply]).decode
