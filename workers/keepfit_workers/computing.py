"""Computing the answers to all questions about one model, in chunks of rows.

Owns how many rows one call gets, and the time limit: before each chunk the questions whose deadline has passed are
dropped. Never sends a reply and never changes a bundle. Invariants: a prediction does not depend on the chunk in which
its row is; an error of a question affects no other question. An uploaded object, a score, and an estimator whose
predictions depend on the other rows get the rows of a question in one call, whose time has no limit here.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from redis import Redis

from keepfit.backends import redis_scripts
from keepfit.errors import DeadlineError, InvalidError, KeepfitError, UnavailableError
from keepfit.jobs import messages
from keepfit.jobs.messages import WorkerRequest
from keepfit.model.bundle import Bundle
from keepfit.model.object_bundle import ObjectBundle
from keepfit.rows.rows import Rows, concatenate

log = structlog.get_logger(__name__)

# A chunk takes about this time: so much later than its deadline a question may end, and another model be served.
CHUNK_S = 0.05
# Size of a model's first chunk, as msgpack: hundreds of small rows, or one row of long texts.
FIRST_CHUNK_BYTES = 16 * 1024
GROWTH_MAX = 8
# A question is divided after a multiple of 64 rows, or of 8 if they are slow, and its parts share no chunk with others.
# Matrix products sum the last rows of a matrix, up to seven of them, in another order: each row must be where it would
# be in one call.
ALIGNED_ROWS = (64, 8)
MODELS_MAX = 10_000

TOO_LARGE = UnavailableError(
    "The worker has too little memory for this request; send fewer rows at once, or try again later."
)
LATE = DeadlineError("The deadline passed before the answer was computed; the workers are overloaded.")
CRASHED = "A worker failed at this request; its log has the details."

Outcome = list[Any] | dict[str, Any] | KeepfitError | None


class ChunkSizes:
    """The size in bytes of each model's next chunk, measured on its last ones."""

    def __init__(self) -> None:
        self._bytes: dict[str, float] = {}

    def size_bytes(self, model_hash: str) -> float:
        """Return the size of the next chunk of a model."""
        return self._bytes.get(model_hash, FIRST_CHUNK_BYTES)

    def record(self, model_hash: str, size_bytes: float, seconds: float) -> None:
        """Adjust the size to a chunk of `size_bytes` that took `seconds`.

        >>> sizes = ChunkSizes()
        >>> sizes.record("quick", 100_000, CHUNK_S / 10)
        >>> sizes.record("slow", 100_000, CHUNK_S * 10)
        >>> sizes.size_bytes("quick"), sizes.size_bytes("slow")
        (800000.0, 10000.0)
        """
        fitting = size_bytes * CHUNK_S / max(seconds, 1e-9)
        if seconds < CHUNK_S / 2:
            fitting = max(self.size_bytes(model_hash), min(fitting, float(size_bytes * GROWTH_MAX)))
        if len(self._bytes) >= MODELS_MAX:
            self._bytes.clear()
        self._bytes[model_hash] = fitting


@dataclass(slots=True)
class Question:
    """A request to compute something; `deadline_s` is by the monotonic clock, `size_bytes` that of the message."""

    request: WorkerRequest
    deadline_s: float
    size_bytes: int
    answered: bool = False


@dataclass(slots=True)
class Work:
    """A question with its rows, of which the first `done` have been computed; `found` has their lists by field."""

    question: Question
    rows: Rows
    size_bytes: int
    done: int = 0
    found: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def row_bytes(self) -> float:
        """Size of a row on average."""
        return self.size_bytes / self.rows.n

    def add(self, found: dict[str, Any], start: int, count: int) -> None:
        """Add `count` rows of a chunk, from `start` on; raise TooLargeError if the answer would become too large."""
        values = 0
        for name, listed in found.items():
            if name == "classes":
                self.found[name] = listed
                continue
            some = listed if count == len(listed) else listed[start : start + count]
            values += _count_values(some[0])
            if self.done:
                self.found[name].extend(some)
            else:
                self.found[name] = some
        self.done += count
        messages.check_answer_size(self.rows.n, values)

    @property
    def outcome(self) -> Outcome:
        """The result in the form that the operation has on the wire."""
        return self.found["predictions"] if self.question.request.operation == "predict" else self.found


Step = tuple[Question, Outcome] | None


def compute(queue: Redis, bundle: Bundle, sizes: ChunkSizes, questions: Sequence[Question]) -> Iterator[Step]:
    """Yield each question with its outcome, and None after each chunk.

    Plain predictions are computed together. Rows that have a key of their own are read when it is their turn.
    """
    together, alone = [], []
    for question in questions:
        rows = question.request.rows
        if question.request.operation == "predict" and rows is not None:
            together.append(Work(question, rows, question.size_bytes))
        else:
            alone.append(question)
    if bundle.predicts_rows_independently and len({work.rows.form for work in together}) == 1:
        yield from _compute_works(bundle, sizes, together)
    else:
        for work in together:
            yield from _compute_works(bundle, sizes, [work])
    for question in alone:
        yield from _compute_alone(queue, bundle, sizes, question)


def _compute_alone(queue: Redis, bundle: Bundle, sizes: ChunkSizes, question: Question) -> Iterator[Step]:
    if question.deadline_s < time.monotonic():
        yield question, LATE
        return
    try:
        work = _read(queue, question)
        messages.check_answer_size(work.rows.n, _values_per_row(bundle, question.request))
    except KeepfitError as error:
        yield question, error
        return
    except MemoryError:
        yield question, TOO_LARGE
        return
    yield from _compute_works(bundle, sizes, [work])


def _read(queue: Redis, question: Question) -> Work:
    """Return a question with its rows, read from their key if they have one."""
    request = question.request
    if request.rows is not None:
        return Work(question, request.rows, question.size_bytes)
    (data,) = redis_scripts.run(queue, ("GET", request.rows_key))
    try:
        return Work(question, Rows.decode(data or b""), len(data or b""))
    except msgspec.MsgspecError:
        raise UnavailableError("The rows of this request are no longer in Redis; send it again.") from None


def _values_per_row(bundle: Bundle, request: WorkerRequest) -> int:
    """Return how many values the answer has for each row, as far as it is known before it is computed."""
    if request.operation == "score":
        return 0
    return 1 + (_count_values(bundle.classes) if request.operation == "proba" else 0)


def _compute_works(bundle: Bundle, sizes: ChunkSizes, works: Sequence[Work]) -> Iterator[Step]:
    """Compute works of one operation, chunk by chunk, in order."""
    waiting = list(works)
    while waiting:
        now = time.monotonic()
        if min([work.question.deadline_s for work in waiting]) < now:
            for work in waiting:
                if work.question.deadline_s < now:
                    yield work.question, LATE
            waiting = [work for work in waiting if work.question.deadline_s >= now]
            continue
        chunk = _next_chunk(bundle, sizes, waiting)
        found = _compute_chunk(bundle, sizes, chunk)
        if isinstance(found, KeepfitError) and len(chunk) > 1:
            # One of them may be the cause.
            for work, _ in chunk:
                yield from _compute_works(bundle, sizes, [work])
            waiting = waiting[len(chunk) :]
            continue
        start, finished = 0, 0
        for work, count in chunk:
            outcome = _add(work, found, start, count)
            start += count
            if outcome is not None:
                yield work.question, outcome
                finished += 1
        # Only the last work of a chunk can be unfinished.
        waiting = waiting[finished:]
        yield None


def _add(work: Work, found: dict[str, Any] | KeepfitError, start: int, count: int) -> Outcome:
    """Add the result of a chunk to a work; return its outcome, None while rows are left."""
    if isinstance(found, KeepfitError):
        return found
    if work.question.request.operation == "score":
        return found
    try:
        work.add(found, start, count)
    except KeepfitError as error:
        return error
    return work.outcome if work.done == work.rows.n else None


def _next_chunk(bundle: Bundle, sizes: ChunkSizes, waiting: Sequence[Work]) -> list[tuple[Work, int]]:
    """Return the works of the next chunk, each with the number of its rows."""
    request = waiting[0].question.request
    splits = request.operation != "score" and bundle.predicts_rows_independently
    # What an object answers may depend on the rows that it sees together.
    splits = splits and not isinstance(bundle, ObjectBundle)
    left_bytes = sizes.size_bytes(request.hash)
    chunk: list[tuple[Work, int]] = []
    for work in waiting:
        rows_left = work.rows.n - work.done
        fitting = int(left_bytes / work.row_bytes)
        if chunk and rows_left > fitting:
            break
        if splits and rows_left > fitting:
            smallest = ALIGNED_ROWS[-1]
            count = next((fitting - fitting % aligned for aligned in ALIGNED_ROWS if fitting >= aligned), smallest)
            return [(work, min(count, rows_left))]
        chunk.append((work, rows_left))
        if work.done:
            break
        left_bytes -= rows_left * work.row_bytes
    return chunk


def _compute_chunk(
    bundle: Bundle, sizes: ChunkSizes, chunk: Sequence[tuple[Work, int]]
) -> dict[str, Any] | KeepfitError:
    """Compute the rows of a chunk in one call, and measure its time."""
    request = chunk[0][0].question.request
    started = time.monotonic()
    found: dict[str, Any] | KeepfitError
    try:
        rows = concatenate([work.rows.part(work.done, work.done + count) for work, count in chunk])
        if request.operation == "score":
            found = bundle.score(rows)
        elif request.operation == "proba":
            found = {"predictions": bundle.predict(rows), **bundle.confidences(rows)}
        else:
            found = {"predictions": bundle.predict(rows)}
    except KeepfitError as error:
        return error
    except MemoryError:
        return TOO_LARGE
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        return InvalidError(f"{bundle.recipe.name} cannot predict these rows: {error}")
    except Exception:
        # A defect of keepfit: the client gets the error now, not at its deadline. Several works are tried again alone.
        if len(chunk) == 1:
            log.exception("answer_failed", hash=request.hash, request_ids=[request.request_id])
        return KeepfitError(CRASHED)
    size_bytes = sum([count * work.row_bytes for work, count in chunk])
    sizes.record(request.hash, size_bytes, time.monotonic() - started)
    return found


def _count_values(found: Any) -> int:
    """Return the number of values in nested lists and objects.

    >>> _count_values(1.5), _count_values([["a", "b"], {"c": 1}])
    (1, 3)
    """
    if isinstance(found, dict):
        found = list(found.values())
    return sum(map(_count_values, found)) if isinstance(found, list) else 1
