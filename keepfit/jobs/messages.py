"""Questions that a gateway asks workers through the predict room, and their answers.

Owns the two messages on the wire (msgpack). Never waits or sends. Invariant: an error crosses as the name of a class of
:mod:`keepfit.errors` with its message, so that the gateway answers what the worker meant.
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

# A restore brings back what Redis lost, whoever asks first; an older snapshot is put back for who asks for just that.
Operation = Literal["predict", "proba", "score", "restore", "put_back", "snapshot"]


class RestoreOptions(msgspec.Struct, array_like=True, frozen=True):
    """Which snapshot to put back: not later than `at` (seconds since 1970), of this `version`; the newest that fits."""

    at: float | None = None
    version: int | None = None


class WorkerRequest(msgspec.Struct, array_like=True, frozen=True):
    """What a gateway wants to know of one model.

    `big` names the key that holds the rows, where they are too many to stand in the question; `request` is the id that
    the client gave its request, "" if it gave none.
    """

    id: int
    gateway: str
    hash: str
    operation: Operation
    generation: int = 0
    rows: Rows | None = None
    big: str = ""
    request: str = ""
    wish: RestoreOptions | None = None


class WorkerReply(msgspec.Struct, array_like=True, frozen=True):
    """What came of a question: `result` depends on the operation, `error` is (class, message) where there is none."""

    id: int
    generation: int = 0
    version: int = 0
    rows_seen: int = 0
    result: Any = None
    error: tuple[str, str] | None = None

    def raise_error(self) -> None:
        """Raise the error that the worker met, if it met one."""
        if self.error is not None:
            raise errors.from_name(*self.error)


def failed(question: WorkerRequest, error: KeepfitError) -> WorkerReply:
    """Answer with an error of our tree."""
    return WorkerReply(question.id, error=(type(error).__name__, str(error)))


def reply(gateway: str, answers: Sequence[WorkerReply]) -> list[Command]:
    """Commands that send answers to the gateway that asked."""
    key = redis_keys.replies(gateway)
    # A gateway that died leaves its answers behind; they go by themselves.
    return [("RPUSH", key, encode(answers)), ("PEXPIRE", key, REPLIES_TTL_MS)]


encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(WorkerRequest).decode
decode_answers = msgspec.msgpack.Decoder(list[WorkerReply]).decode
