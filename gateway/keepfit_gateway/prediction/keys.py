"""Keys of predictions, by which answers are kept and ETags are made: a digest of the model, the question and the rows.

Owns the digest. Never includes the version of the model: an ETag has that beside the key. Invariant: a question has one
key on every gateway, in whatever spelling its rows came.
"""

import hashlib
from functools import lru_cache

from keepfit.jobs.messages import Operation
from keepfit.rows.rows import Rows

KEY_BYTES = 32


def key_of(model_hash: str, operation: Operation, rows: Rows) -> bytes:
    """Return the cache key: 32 bytes, BLAKE2b of model, operation and rows. Only the version is not part of it.

    For a row it takes half of the time of SHA-256, which OpenSSL has to set up.
    """
    begin = f"{model_hash} {operation} ".encode()
    if rows.n == 1:
        return hashlib.blake2b(begin + rows.encode(), digest_size=KEY_BYTES).digest()
    digest = hashlib.blake2b(begin, digest_size=KEY_BYTES)
    for piece in rows.pieces():
        digest.update(piece)
    return digest.digest()


def row_key(model_hash: str, numbers: bytes) -> bytes:
    """Return the cache key of the prediction for a single row of numbers: :func:`key_of` for ``Rows(1, numbers, [])``.

    >>> row_key("hash", bytes(16)) == key_of("hash", "predict", Rows(1, bytes(16), []))
    True
    """
    before, after = _around(len(numbers))
    row = b"%b predict %b%b%b" % (model_hash.encode(), before, numbers, after)
    return hashlib.blake2b(row, digest_size=KEY_BYTES).digest()


@lru_cache(256)
def _around(size: int) -> tuple[bytes, bytes]:
    """Return what encoded rows have before and after `size` bytes of numbers."""
    numbers = b"number: " * (size // 8)
    before, _, after = Rows(1, numbers, []).encode().partition(numbers)
    return before, after
