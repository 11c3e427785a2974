"""Restore the answers to idempotency keys of a lost model, and enqueue requests that the replay skipped.

Owns the commands to Redis. Never decides which keys or requests. Invariant: keys are set before the model is live, by
the process that holds the claim to restore it; so a repeated request finds either no model or its earlier answer. Calls
come from the row log.
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence

import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.history import RegistryEntry
from keepfit.rowlog.row_log import Call
from keepfit.settings import Settings
from keepfit.store import first_answers, inbox
from keepfit.store.inbox import CALL_BYTES_MAX, NO_WIDTH, STAGED_TTL_MS, LearnRequest

KEYS_PER_CALL = 500
CHUNK_BYTES = 1 << 20


async def restore_answers(
    client: redis.asyncio.Redis,
    registered: RegistryEntry,
    generation: int,
    answered: Mapping[str, Call],
    settings: Settings,
    now_s: float,
) -> bool:
    """Claim a lost model for `generation`, and set the answers to its idempotency keys for the rest of their time.

    `answered` has the call that each key stands for, `now_s` is seconds since 1970. Returns False if the model is live,
    or claimed for a later generation.
    """
    callers: dict[tuple[str, str], list[bytes]] = {}
    # Oldest first: they are forgotten first.
    for name, call in sorted(answered.items(), key=lambda item: item[1].at):
        left_ms = round((call.at + settings.idempotency_ttl_s - now_s) * 1000)
        if left_ms > 0:
            keys, own = first_answers.answers_of(registered.hash, name.removeprefix("c:"))
            answer = f"{left_ms} {call.digest[: first_answers.DIGEST_LENGTH]} {call.sequence} {len(call.payloads)}"
            callers.setdefault(keys, []).append(own + answer.encode())
    unnamed, _ = first_answers.answers_of(registered.hash, "")
    for (new, old), answers in (callers or {unnamed: []}).items():
        for begin in range(0, len(answers) or 1, KEYS_PER_CALL):
            (done,) = await redis_scripts.run_async(
                client,
                redis_scripts.call(
                    "restore_idempotency",
                    [redis_keys.state(registered.hash), redis_keys.lock(registered.hash), new, old],
                    [
                        generation,
                        registered.born,
                        settings.idempotency_entries_max // 2,
                        *answers[begin : begin + KEYS_PER_CALL],
                    ],
                ),
            )
            if not done:
                return False
    return True


async def enqueue(client: redis.asyncio.Redis, model_hash: str, generation: int, payloads: Sequence[bytes]) -> None:
    """Add requests to the inbox of a model that was just restored; workers learn them or put them aside."""
    settings = Settings.model_construct(inbox_entries_max=2**31, inbox_bytes_max=2**53)
    connection = ScriptConnection(client)
    try:
        for payload in payloads:
            await inbox.accept(connection, settings, [await _request(client, model_hash, generation, payload)])
    finally:
        await connection.close()


async def _request(client: redis.asyncio.Redis, model_hash: str, generation: int, payload: bytes) -> LearnRequest:
    """Build a request from an accepted payload; its width is not checked here, the worker reports what is wrong."""
    if len(payload) <= CALL_BYTES_MAX:
        return LearnRequest(model_hash, generation, NO_WIDTH, payload)
    big = redis_keys.large_rows(model_hash, uuid.uuid4().hex)
    for offset in range(0, len(payload), CHUNK_BYTES):
        chunk = payload[offset : offset + CHUNK_BYTES]
        await redis_scripts.run_async(client, ("SETRANGE", big, offset, chunk), ("PEXPIRE", big, STAGED_TTL_MS))
    digest = hashlib.sha256(payload).hexdigest().encode()
    return LearnRequest(model_hash, generation, NO_WIDTH, digest, None, big, len(payload))
