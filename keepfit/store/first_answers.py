"""Where Redis remembers the first answers to learning calls, by which repeated calls are recognized.

Owns the choice of keys and times to live. Never reads or writes them: the scripts ``accept`` and
``restore_idempotency`` do. Invariant: what is remembered of one caller has a bound, and no caller makes that of another
one be forgotten.
"""

import hashlib
import uuid
from dataclasses import dataclass

from keepfit.backends import redis_keys
from keepfit.settings import Settings

# A call without a client's idempotency key only has to recognize its own repeats.
GENERATED_KEY_TTL_S = 20
# So many bytes of a digest name the answer to a client's key, and so many digits of a call's digest are stored with it.
NAME_BYTES = 16
DIGEST_LENGTH = 32
# A job that makes no progress for so long cannot go on: its chunk might be learned twice.
CHUNK_TTL_S = 30 * 86_400
# Begins the keys of chunks; a client's key has no space at its start.
CHUNK = " chunk"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the first answer to a call is: for a client's key under `name` in the hashes `new` and `old`, else `key`.

    Release 0.1 stored all answers under `key`. Without a client's key `name` is empty, and no hash is touched. At most
    `entries_max` answers are in `new`; 0 stands for calls in order, whose `name` is their number from 1.
    """

    key: str
    ttl_s: int
    new: str
    old: str
    name: bytes = b""
    entries_max: int = 1


def place_of(settings: Settings, model_hash: str, key: str | None) -> Place:
    """Return the place of the first answer to a call with the client's `key`, or with a new key if that is None."""
    if key is None:
        generated = redis_keys.idempotency(model_hash, f"g:{uuid.uuid4().hex}")
        return Place(generated, GENERATED_KEY_TTL_S, generated, generated)
    if key.startswith(CHUNK):
        _, _, job, number = key.split(" ")
        answers = redis_keys.chunk_answers(model_hash, job)
        unused = redis_keys.idempotency(model_hash, f"g:{job}")
        return Place(unused, CHUNK_TTL_S, answers, answers, number.encode(), 0)
    (new, old), name = answers_of(model_hash, key)
    # Release 0.1 stored each answer under a key of its own, without the caller's name.
    earlier = redis_keys.idempotency(model_hash, f"c:{key.partition(' ')[0]}")
    return Place(earlier, settings.idempotency_ttl_s, new, old, name, settings.idempotency_entries_max // 2)


def chunk_key(job: str, number: int) -> str:
    """Return the key of a chunk of a pull job, `number` from 1: each is accepted once, after the one before it."""
    return f"{CHUNK} {job} {number}"


def answers_of(model_hash: str, key: str) -> tuple[tuple[str, str], bytes]:
    """Return the keys of the hashes (new, old) of the answers to a caller's calls, and the name of one call in them.

    `key` is the client's Idempotency-Key, which contains no space; with API keys, a space and the caller's name follow.

    >>> answers_of("ab12", "vote-1 alice")[0]
    ('kf:{ab12}:idem:new:alice', 'kf:{ab12}:idem:old:alice')
    """
    own, _, caller = key.partition(" ")
    name = hashlib.sha256(own.encode()).digest()[:NAME_BYTES]
    return (redis_keys.new_answers(model_hash, caller), redis_keys.old_answers(model_hash, caller)), name
