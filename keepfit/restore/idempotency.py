"""What a lost model's inbox knew, put back: answers to idempotency keys, and requests that could not be learned again.

Owns the calls that do it. Never decides which. Invariant: keys are set before the model is live, by whoever holds the
claim to bring it back; so a repeat finds either no model or what it was answered. Calls come from the row log.
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
from keepfit.store import inbox
from keepfit.store.inbox import BIG_TTL_MS, CALL_BYTES_MAX, NO_WIDTH, Learn

KEYS_AT_ONCE = 500
PIECE_BYTES = 1 << 20


async def remember(
    client: redis.asyncio.Redis,
    registered: RegistryEntry,
    generation: int,
    known: Mapping[str, Call],
    ttl_s: float,
    now_s: float,
) -> bool:
    """Claim a lost model for `generation`, and let its calls be known by their keys for what is left of `ttl_s`.

    False where it is live, or claimed for a later generation.
    """
    left = {name: round((call.at + ttl_s - now_s) * 1000) for name, call in known.items()}
    names = [name for name, ms in left.items() if ms > 0]
    for begin in range(0, len(names) or 1, KEYS_AT_ONCE):
        some = names[begin : begin + KEYS_AT_ONCE]
        (done,) = await redis_scripts.run_async(
            client,
            redis_scripts.call(
                "remember",
                [
                    redis_keys.state(registered.hash),
                    redis_keys.lock(registered.hash),
                    *(redis_keys.idempotency(registered.hash, name) for name in some),
                ],
                [
                    generation,
                    registered.born,
                    *(
                        f"{left[name]} {known[name].digest} {known[name].sequence} {len(known[name].payloads)}"
                        for name in some
                    ),
                ],
            ),
        )
        if not done:
            return False
    return True


async def put_again(client: redis.asyncio.Redis, model_hash: str, generation: int, payloads: Sequence[bytes]) -> None:
    """Put requests into the inbox of a model that has just come back; workers put them aside, or do learn them."""
    settings = Settings.model_construct(inbox_entries_max=2**31, inbox_bytes_max=2**53)
    line = ScriptConnection(client)
    try:
        for payload in payloads:
            await inbox.put(line, settings, [await _request(client, model_hash, generation, payload)])
    finally:
        await line.close()


async def _request(client: redis.asyncio.Redis, model_hash: str, generation: int, payload: bytes) -> Learn:
    """Make a request of what was accepted once; whatever its width is, its worker says what is wrong with it."""
    if len(payload) <= CALL_BYTES_MAX:
        return Learn(model_hash, generation, NO_WIDTH, payload)
    big = redis_keys.big(model_hash, uuid.uuid4().hex)
    for offset in range(0, len(payload), PIECE_BYTES):
        piece = payload[offset : offset + PIECE_BYTES]
        await redis_scripts.run_async(client, ("SETRANGE", big, offset, piece), ("PEXPIRE", big, BIG_TTL_MS))
    digest = hashlib.sha256(payload).hexdigest().encode()
    return Learn(model_hash, generation, NO_WIDTH, digest, None, big, len(payload))
