"""The register of pull jobs: what each is to learn, how far it is, and which process holds it.

Owns the records in Redis and their bounds: jobs that are open, jobs that are kept, and how long an ended one is kept.
Never reads a source and never accepts rows (:mod:`keepfit.ingest`). Invariant: one process at a time changes the record
of a running job, the one that holds it; what it has learned twice or not at all is not decided here, but by the script
``accept``, which takes the chunks of a job in order. Jobs come from the gateway.
"""

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import redis.asyncio
from redis import Redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.errors import IdempotencyError, NotFoundError, OverloadedError

Fields = Mapping[str, str | int | bytes]
State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
OPEN_MAX, JOBS_MAX = 100, 1000
# A process that does not renew its hold for so long has died or is stopped.
HOLD_S = 30.0
RETRY_AFTER_S = 60
ID_BYTES = 16
# Claims without progress in between: the chunk kills the processes that read it.
CLAIMS_MAX = 6


class PullRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job is to learn: the source, its format (None: by its name), its columns, and how it is divided."""

    url: str
    format: str | None = None
    columns: list[str] | dict[str, str] | None = None
    target: str | None = None
    sample_weight: str | None = None
    label_type: Literal["string", "integer", "boolean"] | None = None
    rows_per_call: int = 1000
    skip_max: int = 0


class Skipped(msgspec.Struct, frozen=True):
    """A row that was skipped: its number in the source from 0, None where the reader does not say; and the reason."""

    row: int | None
    detail: str

    @property
    def place(self) -> str:
        """Begin of a message about the row."""
        return "" if self.row is None else f"row {self.row}: "


@dataclass(frozen=True, slots=True)
class PullJob:
    """The record of a job. Times are seconds since 1970 by Redis' clock.

    `rows_done` counts the rows of the source that are done: accepted in one of `calls` requests, or skipped. `skipped`
    of them do not fit the model; `malformed` lines are no rows. `identity` tells one state of the source from another.
    `origin` is the generation in which the sequences of the model began; `sequence` is that of the last request.
    """

    id: str
    hash: str
    metadata: dict[str, Any]
    request: PullRequest
    state: State
    created: float
    origin: int
    started: float | None = None
    ended: float | None = None
    rows_done: int = 0
    rows_accepted: int = 0
    rows_total: int | None = None
    bytes_total: int | None = None
    calls: int = 0
    skipped: int = 0
    malformed: int = 0
    reasons: tuple[Skipped, ...] = ()
    sequence: int = 0
    identity: str = ""
    waiting: str = ""
    error: str = ""
    claims: int = 0
    cancel: bool = False


_decode_reasons = msgspec.json.Decoder(tuple[Skipped, ...]).decode
_decode_request = msgspec.json.Decoder(PullRequest).decode


def _optional(number: type[float] | type[int]) -> Callable[[bytes], Any]:
    return lambda text: number(text) if text else None


_FIELDS: Mapping[str, Callable[[bytes], Any]] = {
    "id": bytes.decode, "hash": bytes.decode, "metadata": msgspec.json.decode, "request": _decode_request,
    "state": bytes.decode, "created": float, "origin": int, "started": float, "ended": float, "rows_done": int,
    "rows_accepted": int, "rows_total": _optional(int), "bytes_total": _optional(int), "calls": int, "skipped": int,
    "malformed": int, "reasons": _decode_reasons, "sequence": int, "identity": bytes.decode, "waiting": bytes.decode,
    "error": bytes.decode, "claims": int, "cancel": bool,
}  # fmt: skip


def _job(answer: Sequence[bytes]) -> PullJob | None:
    found = dict(zip(answer[::2], answer[1::2], strict=True))
    fields = {name: read(found[name.encode()]) for name, read in _FIELDS.items() if name.encode() in found}
    return PullJob(**fields) if fields else None


def job_id(model_hash: str, key: str | None) -> str:
    """Return the id of a job: the same for the same Idempotency-Key, else a new one."""
    if key is None:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{model_hash} {key}".encode()).hexdigest()[: 2 * ID_BYTES]


class PullJobs:
    """Async access to the register, for gateways."""

    def __init__(self, store: redis.asyncio.Redis, kept_s: int) -> None:
        self._store = store
        self._kept_ms = 1000 * kept_s

    async def create(
        self, model_hash: str, metadata: Mapping[str, Any], origin: int, request: PullRequest, key: str | None
    ) -> PullJob:
        """Make a job, or return the one that the same key made.

        Raises
        ------
        IdempotencyError
            If the key made a job of another request.
        OverloadedError
            If too many jobs are open.
        """
        name, document = job_id(model_hash, key), msgspec.json.encode(request)
        digest = hashlib.sha256(document).hexdigest()
        fields: list[str | int | bytes] = ["hash", model_hash, "metadata", msgspec.json.encode(metadata)]
        fields += ["request", document, "origin", origin]
        await self._forget()
        command = redis_scripts.call(
            "create_job",
            [redis_keys.job(name), redis_keys.JOBS, redis_keys.OPEN_JOBS],
            [name, digest, OPEN_MAX, JOBS_MAX, *fields],
        )
        ((outcome, *more),) = await redis_scripts.run_async(self._store, command)
        if outcome == b"full":
            text_of = (
                f"{more[0]} pull jobs are open, and {OPEN_MAX} may be; wait until some have ended, or cancel some."
            )
            raise OverloadedError(text_of, RETRY_AFTER_S)
        if outcome == b"exists" and more[0].decode() != digest:
            raise IdempotencyError("The Idempotency-Key was used with another body; use a new key for a new job.")
        return await self.get(name)

    async def _forget(self) -> None:
        """Forget jobs whose records have expired, and of too many the oldest that have ended."""
        (ids, open_ids) = await redis_scripts.run_async(
            self._store, ("ZRANGE", redis_keys.JOBS, 0, -1), ("ZRANGE", redis_keys.OPEN_JOBS, 0, -1)
        )
        if not ids:
            return
        kept = await redis_scripts.run_async(self._store, *(("EXISTS", redis_keys.job(i.decode())) for i in ids))
        gone = [i for i, exists in zip(ids, kept, strict=True) if not exists]
        ended = [i for i, exists in zip(ids, kept, strict=True) if exists and i not in set(open_ids)]
        surplus = ended[: max(len(ids) - len(gone) - JOBS_MAX + 1, 0)]
        commands: list[Command] = [("DEL", *(redis_keys.job(i.decode()) for i in surplus))] if surplus else []
        if gone or surplus:
            await redis_scripts.run_async(self._store, *commands, ("ZREM", redis_keys.JOBS, *gone, *surplus))

    async def get(self, name: str) -> PullJob:
        """Return a job; raises NotFoundError if there is none."""
        (answer,) = await redis_scripts.run_async(self._store, ("HGETALL", redis_keys.job(name)))
        job = _job(_pairs(answer))
        if job is None:
            raise NotFoundError(f"There is no job {name}; ended ones are kept for a while only.")
        return job

    async def page(
        self, accepts: Callable[[PullJob], bool], limit: int, after: str
    ) -> tuple[list[PullJob], str | None]:
        """Return up to `limit` jobs that `accepts`, newest first, and where the next page begins (None at the end)."""
        (found,) = await redis_scripts.run_async(self._store, ("ZREVRANGE", redis_keys.JOBS, 0, -1))
        records = [("HGETALL", redis_keys.job(name.decode())) for name in found]
        answers = await redis_scripts.run_async(self._store, *records) if records else []
        live = [job for job in (_job(_pairs(answer)) for answer in answers) if job is not None]
        jobs = {f"{round(1000 * job.created):015d}-{job.id}": job for job in live}
        # Equal times are in the order of their ids, as Redis has them.
        chosen = [(place, job) for place, job in jobs.items() if (not after or place < after) and accepts(job)]
        following = chosen[limit - 1][0] if len(chosen) > limit else None
        return [job for _, job in chosen[:limit]], following

    async def cancel(self, name: str) -> PullJob:
        """Cancel a job: at once if no process holds it, else after its chunk; raises NotFoundError if there is none."""
        command = redis_scripts.call("cancel_job", [redis_keys.OPEN_JOBS, redis_keys.job(name)], [name, self._kept_ms])
        (outcome,) = await redis_scripts.run_async(self._store, command)
        if outcome == -1:
            raise NotFoundError(f"There is no job {name}; ended ones are kept for a while only.")
        return await self.get(name)

    async def count_open(self) -> int:
        """Return the number of open jobs."""
        (count,) = await redis_scripts.run_async(self._store, ("ZCARD", redis_keys.OPEN_JOBS))
        return int(count)


def _pairs(answer: Any) -> Sequence[bytes]:
    """Return the answer to HGETALL as alternating names and values, whichever protocol the connection speaks."""
    return [part for pair in answer.items() for part in pair] if isinstance(answer, dict) else answer


def claimable(store: Redis) -> list[str]:
    """Return the ids of the open jobs that no process holds, oldest hold first."""
    ((seconds, micros),) = redis_scripts.run(store, ("TIME",))
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    (ids,) = redis_scripts.run(store, ("ZRANGEBYSCORE", redis_keys.OPEN_JOBS, "-inf", now_ms))
    return [name.decode() for name in ids]


def read(store: Redis, name: str) -> PullJob | None:
    """Return a job, or None if its record is gone."""
    (answer,) = redis_scripts.run(store, ("HGETALL", redis_keys.job(name)))
    return _job(_pairs(answer))


def claim(name: str, holder: str) -> Command:
    """Return the command that answers 1 if `holder` holds the job from now on."""
    return redis_scripts.call(
        "claim_job", [redis_keys.OPEN_JOBS, redis_keys.job(name)], [name, holder, round(1000 * HOLD_S)]
    )


def advance(
    name: str,
    holder: str,
    fields: Mapping[str, str | int | bytes] | None = None,
    *,
    hold_s: float = HOLD_S,
    kept_s: int = 0,
) -> Command:
    """Return the command that stores `fields` and renews the hold, releases it (`hold_s` 0) or ends the job (`kept_s`).

    It answers b"held", b"cancel", or b"lost" if `holder` does not hold the job.
    """
    pairs = [part for pair in (fields or {}).items() for part in pair]
    return redis_scripts.call(
        "advance_job",
        [redis_keys.OPEN_JOBS, redis_keys.job(name)],
        [name, holder, round(1000 * hold_s), 1000 * kept_s, *pairs],
    )


def release_of(store: Redis, process: str) -> int:
    """Release the jobs that a dead process held; return their number. Holders begin with the name of their process."""
    (ids,) = redis_scripts.run(store, ("ZRANGE", redis_keys.OPEN_JOBS, 0, -1))
    names = [name.decode() for name in ids]
    holders = redis_scripts.run(store, *(("HGET", redis_keys.job(i), "holder") for i in names)) if names else []
    held = [(i, h.decode()) for i, h in zip(names, holders, strict=True) if h and h.decode().startswith(f"{process} ")]
    if held:
        redis_scripts.run(store, *(advance(name, holder, hold_s=0) for name, holder in held))
    return len(held)
