"""Learned requests that Redis keeps until a snapshot has them, and what they come on top of.

Owns what a model's state says of them; the scripts `commit`, `note`, `install` and `rewind` write it. Never reads them,
:mod:`keepfit.restore.repair` does. Invariant: what a bundle has learned is its base and all requests that are kept, or
the state tells that some are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command

# What a request is counted with more than its bytes, for its place in the stream (`commit.lua`).
PLACE_BYTES = 64


@dataclass(frozen=True, slots=True)
class ReplayBase:
    """What kept requests come on top of: a snapshot by its document's place in the history, or the recipe.

    `sequence` is the last request that it has learned, in the model's sequences; `place` is (generation, version), None
    of the recipe.
    """

    sequence: int
    place: tuple[int, int] | None = None

    def text(self) -> str:
        """Form in the state.

        >>> Base(12, (3, 4)).text(), Base(0).text()
        ('12 3 4', '0')
        """
        return " ".join(map(str, (self.sequence, *(self.place or ()))))


@dataclass(frozen=True, slots=True)
class RetainedRequests:
    """What a model's state says of its kept requests: those after `cut`, up to the last one learned.

    `bytes_learned` counts all that there ever was, `cut_bytes` what was up to `cut`, each request with
    :data:`PLACE_BYTES` more. `large` are the sequences and keys of large ones. Without `base` nobody knows what
    they come on top of.
    """

    base: ReplayBase | None = None
    cut: int = 0
    cut_bytes: int = 0
    bytes_learned: int = 0
    large: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, kept: bytes, base: bytes, large: bytes) -> "RetainedRequests":
        """Read the three fields of a state; each is empty in those of older versions.

        >>> Kept.of(b"5 600 7 800 900", b"5 3 4", b"6 kf:{h}:big:a")
        Kept(base=Base(sequence=5, place=(3, 4)), cut=5, cut_bytes=600, bytes_learned=900, large=((6, 'kf:{h}:big:a'),))
        """
        cut, cut_bytes, _, _, total = map(int, kept.split()) if kept else (0,) * 5
        sequence, *place = map(int, base.split()) if base else (-1,)
        found = ReplayBase(sequence, (place[0], place[1]) if place else None) if base else None
        return cls(found, cut, cut_bytes, total, large_of(large))


@dataclass(frozen=True, slots=True)
class RetentionNote:
    """A snapshot that a model is to be told of, and what the model's state was when it was saved.

    `chain` is that of the last request in it, `place` generation and version of its document.
    """

    hash: str
    generation: int
    learned: int
    digest: str
    kept: RetainedRequests
    chain: str
    place: tuple[int, int]
    snapshot: Mapping[str, Any]

    def commands(self) -> tuple[Command, Command]:
        """Commands that tell the model, and take it off the list of changed ones unless it changed again."""
        version = self.place[1]
        told = redis_scripts.call(
            "note_snapshot",
            [redis_keys.state(self.hash), redis_keys.inbox(self.hash), *(name for _, name in self.kept.large)],
            [
                self.generation,
                version,
                msgspec.json.encode(self.snapshot),
                self.learned,
                self.chain,
                self.digest,
                self.kept.bytes_learned,
                ReplayBase(self.learned, self.place).text(),
            ],
        )
        return told, redis_scripts.call(
            "unmark_changed", [redis_keys.CHANGED], [self.hash, redis_keys.change(self.generation, version)]
        )


def large_of(text: bytes) -> tuple[tuple[int, str], ...]:
    """Sequences and keys of kept large requests, as the state names them.

    >>> large_of(b"6 kf:{h}:big:a 9 kf:{h}:big:b")
    ((6, 'kf:{h}:big:a'), (9, 'kf:{h}:big:b'))
    """
    words = text.decode().split()
    return tuple((int(sequence), name) for sequence, name in zip(words[::2], words[1::2], strict=True))


def places(large: Sequence[tuple[int, str]]) -> str:
    """Sequences of large requests, as `commit` takes them beside their keys."""
    return " ".join(str(sequence) for sequence, _ in large)
