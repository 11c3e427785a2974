"""Questions that a gateway asks workers through the predict room, and their answers.

Owns the two messages on the wire (msgpack). Never waits or sends. Invariant: an error crosses as the name of a class of
:mod:`keepfit.errors` with its message, so that the gateway answers what the worker meant.
"""

from typing import Any, Literal

import msgspec

from keepfit import errors
from keepfit.errors import KeepfitError
from keepfit.rows import Rows

Operation = Literal["predict", "proba", "score", "restore"]


class Question(msgspec.Struct, array_like=True, frozen=True):
    """What a gateway wants to know of one model; `deadline` (seconds since the epoch) is when it stops waiting."""

    id: int
    gateway: str
    hash: str
    operation: Operation
    deadline: float
    generation: int = 0
    rows: Rows | None = None


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What came of a question: `result` depends on the operation, `error` is (class, message) where there is none."""

    id: int
    generation: int = 0
    version: int = 0
    rows_seen: int = 0
    result: Any = None
    error: tuple[str, str] | None = None

    def raise_error(self) -> None:
        """Raise the error that the worker met, if it met one."""
        if self.error is None:
            return
        name, message = self.error
        cls = getattr(errors, name, None)
        raise (cls if isinstance(cls, type) and issubclass(cls, KeepfitError) else KeepfitError)(message)


def failed(question: Question, error: KeepfitError) -> Answer:
    """Answer with an error of our tree."""
    return Answer(question.id, error=(type(error).__name__, str(error)))


encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode
