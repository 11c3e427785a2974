"""Encoded scorers of the bundles that this worker process answered with, for the gateways that ask for them.

Owns the encoded forms of the last versions: each gateway asks once for that of a version. Never sends one
(:mod:`keepfit_workers.predicting`). Invariant: a scorer is that of exactly the generation and version that it names.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from keepfit.model.bundle import Bundle
from keepfit.model.scorers import encoded_scorer

CACHED_BYTES_MAX = 8 << 20
# Memory of an entry besides its scorer.
ENTRY_BYTES = 400

# Generation and version.
Version = tuple[int, int]


@dataclass(slots=True)
class EncodedScorers:
    """Encoded scorers by hash. Evicts the least recently used; bounded by their bytes."""

    bytes_max: int = CACHED_BYTES_MAX
    _encoded: OrderedDict[str, tuple[Version, int, bytes]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def encoded(self, model_hash: str, bundle: Bundle, version: Version, bytes_max: int) -> bytes:
        """Return the encoded scorer of a bundle, as :func:`~keepfit.model.scorers.encoded_scorer` does."""
        known = self._encoded.get(model_hash)
        if known is not None and known[:2] == (version, bytes_max):
            self._encoded.move_to_end(model_hash)
            return known[2]
        self._drop(model_hash)
        encoded = encoded_scorer(bundle, *version, bytes_max)
        self._encoded[model_hash] = version, bytes_max, encoded
        self._bytes += ENTRY_BYTES + len(encoded)
        while self._bytes > self.bytes_max:
            self._drop(next(iter(self._encoded)))
        return encoded

    def _drop(self, model_hash: str) -> None:
        known = self._encoded.pop(model_hash, None)
        if known is not None:
            self._bytes -= ENTRY_BYTES + len(known[2])
