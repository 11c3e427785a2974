"""Requests of gateways to workers through the predict queue, and the replies.

Owns the two messages on the wire (msgpack), and how large an answer may be. Never waits or sends. Invariants: an error
is transferred as the name of a class of :mod:`keepfit.errors` and its message, so that the gateway raises the error
that the worker had; a reply that cannot be encoded, or is too large, becomes an error of its request only.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from keepfit import errors
from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import Command
from keepfit.errors import InvalidError, KeepfitError, TooLargeError, UnavailableError, describe_error
from keepfit.rows.rows import Rows

REPLIES_TTL_MS = 60_000
# Numbers and labels of one answer.
ANSWER_VALUES_MAX = 1 << 20
ANSWER_BYTES_MAX = 32 << 20
# Replies share an element of the gateway's list up to this size; a larger reply is an element of its own.
ELEMENT_BYTES_MAX = 1 << 20
# A long list is encoded in pieces, up to the limit: many rows may share one long label.
PIECE_VALUES = 4096

# `restore` restores a model that Redis lost; `put_back` restores an older snapshot on request; `past` predicts with a
# snapshot beside the live model; `count_rows` counts the requests that the model can learn again from the row log;
# `upload` creates a model from a file with a trained object, and `download` writes one; `curve` reads the learning
# curve.
Operation = Literal[
    "predict", "proba", "score", "restore", "put_back", "snapshot", "count_rows", "upload", "download", "past", "curve"
]


class RestoreOptions(msgspec.Struct, array_like=True, frozen=True):
    """Which snapshot to restore: the newest that is not later than `at` (seconds since 1970) and has this `version`."""

    at: float | None = None
    version: int | None = None


class PastVersion(msgspec.Struct, array_like=True, frozen=True):
    """The snapshot to predict with, by generation, version and the SHA-256 (hex) of its bundle; with probabilities?"""

    generation: int
    version: int
    sha256: str
    proba: bool = False


class CurveOptions(msgspec.Struct, array_like=True, frozen=True):
    """The points of the curve to answer: after more than `since_rows` rows, with these metrics (empty: all)."""

    metrics: tuple[str, ...] = ()
    since_rows: int = 0


class UploadOptions(msgspec.Struct, array_like=True, frozen=True):
    """An uploaded file: canonical JSON of the model's metadata, the key with the bytes, and their SHA-256 (hex)."""

    metadata_text: str
    key: str
    sha256: str


FileFormat = Literal["skops", "pickle"]
# The whole model, or its estimator alone.
FilePart = Literal["model", "estimator"]


class DownloadOptions(msgspec.Struct, array_like=True, frozen=True):
    """The file to write: the key for its bytes and their time to live, what it contains, and its format."""

    key: str
    ttl_ms: int
    part: FilePart
    format: FileFormat


class WorkerRequest(msgspec.Struct, array_like=True, frozen=True):
    """A request of a gateway about one model.

    `rows_key` names the key that holds the rows if they are too large for the message; `request_id` is the id that the
    client gave its HTTP request, "" if it gave none. `as_json` asks for the result as JSON text, which the gateway
    passes on without reading it; gateways of 0.1 do not ask for that. `scorer_bytes_max` asks for the model's scorer
    beside the answer, if its encoded form has at most so many bytes.
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
    as_json: bool = False
    scorer_bytes_max: int = 0
    upload_options: UploadOptions | None = None
    download_options: DownloadOptions | None = None
    past: PastVersion | None = None
    curve: CurveOptions | None = None

    @property
    def subject(self) -> str:
        """The name under which the request waits: the model's hash, or the SHA-256 of the snapshot that it is about.

        So work about a snapshot never holds up work about the live model.
        """
        return self.hash if self.past is None else self.past.sha256


class WorkerReply(msgspec.Struct, array_like=True, frozen=True):
    """The reply to a request: `result` depends on the operation; after a failure, `error` is (class, message).

    The result is JSON text, as bytes, if the request asked for that.
    `public_message` is what any client may read of the error. `scorer` is the encoded scorer of this version if the
    request asked for one and the model has one (:mod:`keepfit.scoring`).
    """

    id: int
    generation: int = 0
    version: int = 0
    rows_seen: int = 0
    result: Any = None
    error: tuple[str, str] | None = None
    public_message: str = ""
    scorer: bytes = b""

    def raise_error(self) -> None:
        """Raise the error of the worker, if there was one."""
        if self.error is not None:
            raise errors.from_name(*self.error, self.public_message)


def failed(request: WorkerRequest, error: KeepfitError) -> WorkerReply:
    """Return a reply with an error."""
    return _failed(request.id, error)


def _failed(number: int, error: KeepfitError) -> WorkerReply:
    # The message of an object may have characters that no encoding has.
    message, public_message = (
        text.encode("utf-8", "backslashreplace").decode() for text in (str(error), errors.public_message_of(error))
    )
    return WorkerReply(number, error=(type(error).__name__, message), public_message=public_message)


def check_answer_size(rows: int, values_per_row: int) -> None:
    """Check the size of an answer before it is computed.

    Raises
    ------
    TooLargeError
        If it would have more than :data:`ANSWER_VALUES_MAX` numbers and labels.

    >>> check_answer_size(104, 10_001)
    >>> check_answer_size(105, 10_001)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    keepfit.errors.TooLargeError: The answer would have 1,050,105 values, ... most; send at most 104 rows at once.
    """
    values = rows * values_per_row
    if values > ANSWER_VALUES_MAX:
        raise TooLargeError(
            f"The answer would have {values:,} values, and {ANSWER_VALUES_MAX:,} are the most; "
            f"send at most {ANSWER_VALUES_MAX // values_per_row:,} rows at once."
        )


def encode_reply(reply: WorkerReply, *, as_json: bool = False) -> bytes:
    """Return a reply as msgpack, `as_json` with its result as JSON text.

    If the result has no such form or is too large, return a reply with an error.
    """
    try:
        if as_json and reply.error is None:
            reply = msgspec.structs.replace(reply, result=_as_json(reply.result))
        else:
            # For a gateway of 0.1: measured first.
            for values in filter(_is_long, reply.result.values() if type(reply.result) is dict else (reply.result,)):
                _encode_pieces(values, encode)
        data = encode(reply)
        if len(data) > ANSWER_BYTES_MAX:
            raise _too_large()
    except KeepfitError as error:
        return encode(_failed(reply.id, error))
    except MemoryError:
        return encode(_failed(reply.id, UnavailableError("The worker has too little memory for this answer.")))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # A surrogate without its other half, an integer of more than 64 bits, a type that JSON does not have.
        reason = InvalidError(f"The model answers what cannot be sent: {describe_error(error)}")
        return encode(_failed(reply.id, reason))
    return data


def _as_json(result: Any) -> bytes:
    """Return a result as JSON text, long lists in pieces."""
    if type(result) is dict:
        return encode_json({name: msgspec.Raw(_list_as_json(values)) for name, values in result.items()})
    return _list_as_json(result)


def _list_as_json(values: Any) -> bytes:
    if not _is_long(values):
        return encode_json(values)
    return b"[%b]" % b",".join([piece[1:-1] for piece in _encode_pieces(values, encode_json)])


def _is_long(values: Any) -> bool:
    return type(values) is list and len(values) > PIECE_VALUES


def _encode_pieces(values: Sequence[Any], encode_piece: Callable[[Any], bytes]) -> list[bytes]:
    """Encode a long list in pieces; raise TooLargeError once they exceed the limit."""
    pieces, size = [], 0
    for start in range(0, len(values), PIECE_VALUES):
        pieces.append(encode_piece(values[start : start + PIECE_VALUES]))
        size += len(pieces[-1])
        if size > ANSWER_BYTES_MAX:
            raise _too_large()
    return pieces


def _too_large() -> TooLargeError:
    return TooLargeError(f"The answer has more than {ANSWER_BYTES_MAX >> 20} MiB; send fewer rows at once.")


def send_replies(gateway: str, replies: Sequence[bytes]) -> list[Command]:
    """Return the commands that send encoded replies to the gateway that made the requests."""
    key = redis_keys.replies(gateway)
    elements: list[list[msgspec.Raw]] = []
    size = ELEMENT_BYTES_MAX
    for reply in replies:
        size += len(reply)
        if size > ELEMENT_BYTES_MAX:
            elements.append([])
            size = len(reply)
        elements[-1].append(msgspec.Raw(reply))
    # The replies to a dead gateway expire.
    return [("RPUSH", key, *map(encode, elements)), ("PEXPIRE", key, REPLIES_TTL_MS)]


encode = msgspec.msgpack.Encoder().encode
encode_json = msgspec.json.Encoder().encode
decode_request = msgspec.msgpack.Decoder(WorkerRequest).decode
decode_replies = msgspec.msgpack.Decoder(list[WorkerReply]).decode
