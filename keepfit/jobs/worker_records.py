"""Workers as their records in the queue's Redis describe them.

Owns the form in which the gateway and the command line list workers. Never writes. RQ and the workers' heartbeats write
the records. Invariant: a worker without a record is dead; records that keepfit did not write are left out.
"""

from dataclasses import dataclass
from typing import Any, Literal

from keepfit.backends import redis_keys, redis_scripts

FIELDS = ("hostname", "pid", "state", "call_s", "models_held", "rows_per_s")
State = Literal["idle", "busy", "long_call"]


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker. The last three are as of its last heartbeat; `call_s` is for how long it has taken no work."""

    name: str
    host: str
    pid: int
    state: State
    models_held: int
    rows_per_s: float
    call_s: int


async def read_all(queue: Any, long_call_s: float) -> list[WorkerRecord]:
    """Return the workers alive, ordered by name; a call of more than `long_call_s` seconds is a long one.

    Raises
    ------
    UnavailableError
        If the queue's Redis is unavailable.
    """
    (keys,) = await redis_scripts.run_async(queue, ("SMEMBERS", redis_keys.RQ_WORKERS))
    records = await redis_scripts.run_async(queue, *(("HMGET", key, *FIELDS) for key in keys)) if keys else []
    found = [_record(key, fields, long_call_s) for key, fields in zip(keys, records, strict=True)]
    return sorted(filter(None, found), key=lambda worker: worker.name)


def _record(key: bytes, fields: list[bytes | None], long_call_s: float) -> WorkerRecord | None:
    """Return the record of a worker; None if it has expired, or if keepfit did not write it.

    >>> fields = [b"web-1", b"7", b"busy", b"12", b"3", b"20.5"]
    >>> _record(b"rq:worker:a", fields, 10.0)
    WorkerRecord(name='a', host='web-1', pid=7, state='long_call', models_held=3, rows_per_s=20.5, call_s=12)
    >>> _record(b"rq:worker:a", [b"web-1", b"7", b"started", None, None, None], 10.0).state
    'idle'
    >>> _record(b"rq:worker:a", [None] * 6, 10.0)
    """
    if not any(fields):
        return None
    try:
        host, pid, state, call_s, models_held, rows_per_s = (field.decode() if field else "" for field in fields)
        seconds = int(call_s or 0)
        return WorkerRecord(
            name=key.decode().removeprefix(redis_keys.RQ_WORKER_PREFIX),
            host=host,
            pid=int(pid or 0),
            state="long_call" if seconds > long_call_s else "busy" if state == "busy" else "idle",
            models_held=int(models_held or 0),
            rows_per_s=float(rows_per_s or 0),
            call_s=seconds,
        )
    except ValueError:
        return None
