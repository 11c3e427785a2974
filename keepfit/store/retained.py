"""Retained requests: learned requests that stay in Redis until a snapshot contains them, and their replay base.

Owns what a model's state says about them; the scripts `commit`, `note_snapshot`, `install` and `rewind` write it. Never
reads the requests; :mod:`keepfit.restore.repair` does. Invariant: a bundle has learned its replay base and all retained
requests, or the state says that some are missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command

# Bytes that count for a request in addition to its rows, for its entry in the stream (`commit.lua`).
ENTRY_BYTES = 64


@dataclass(frozen=True, slots=True)
class ReplayBase:
    """The bundle that retained requests are learned on top of: a snapshot, or a new bundle of the recipe.

    `sequence` is the last request that it has learned, in the model's sequences. `place` is the (generation, version)
    of the snapshot's document, None for the recipe.
    """

    sequence: int
    place: tuple[int, int] | None = None

    def text(self) -> str:
        """Return the text that the state holds.

        >>> ReplayBase(12, (3, 4)).text(), ReplayBase(0).text()
        ('12 3 4', '0')
        """
        return " ".join(map(str, (self.sequence, *(self.place or ()))))


@dataclass(frozen=True, slots=True)
class RetainedRequests:
    """What a model's state says about its retained requests: those after `cut`, up to the last learned one.

    `bytes_learned` counts the bytes of all requests ever learned, `cut_bytes` of those up to `cut`, each request with
    :data:`ENTRY_BYTES` more. `large` are the sequences and keys of large requests. `base` is None if the replay base is
    unknown.
    """

    base: ReplayBase | None = None
    cut: int = 0
    cut_bytes: int = 0
    bytes_learned: int = 0
    large: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, kept: bytes, base: bytes, large: bytes) -> "RetainedRequests":
        """Parse the three fields of a state; each is empty in the states of older versions.

        >>> found = RetainedRequests.of(b"5 600 7 800 900", b"5 3 4", b"6 kf:{h}:big:a")
        >>> found.base, found.cut, found.cut_bytes, found.bytes_learned, found.large
        (ReplayBase(sequence=5, place=(3, 4)), 5, 600, 900, ((6, 'kf:{h}:big:a'),))
        """
        cut, cut_bytes, _, _, total = map(int, kept.split()) if kept else (0,) * 5
        sequence, *place = map(int, base.split()) if base else (-1,)
        found = ReplayBase(sequence, (place[0], place[1]) if place else None) if base else None
        return cls(found, cut, cut_bytes, total, parse_large(large))


@dataclass(frozen=True, slots=True)
class RetentionNote:
    """A snapshot to store in its model's state, and what the state was when the model was saved.

    `request_digest` is that of the last request in the snapshot, `place` generation and version of its document.
    """

    hash: str
    generation: int
    learned: int
    digest: str
    retained: RetainedRequests
    request_digest: str
    place: tuple[int, int]
    snapshot: Mapping[str, Any]

    def commands(self) -> tuple[Command, Command]:
        """Return the commands that store the snapshot, and unmark the model as changed unless it changed again."""
        version = self.place[1]
        note = redis_scripts.call(
            "note_snapshot",
            [redis_keys.state(self.hash), redis_keys.inbox(self.hash), *(name for _, name in self.retained.large)],
            [
                self.generation,
                version,
                msgspec.json.encode(self.snapshot),
                self.learned,
                self.request_digest,
                self.digest,
                self.retained.bytes_learned,
                ReplayBase(self.learned, self.place).text(),
            ],
        )
        return note, redis_scripts.call(
            "unmark_changed", [redis_keys.CHANGED], [self.hash, redis_keys.change_score(self.generation, version)]
        )


def parse_large(text: bytes) -> tuple[tuple[int, str], ...]:
    """Return sequences and keys of the retained large requests that a state names.

    >>> parse_large(b"6 kf:{h}:big:a 9 kf:{h}:big:b")
    ((6, 'kf:{h}:big:a'), (9, 'kf:{h}:big:b'))
    """
    words = text.decode().split()
    return tuple((int(sequence), name) for sequence, name in zip(words[::2], words[1::2], strict=True))


def join_sequences(large: Sequence[tuple[int, str]]) -> str:
    """Return the sequences of large requests as the script `commit` takes them."""
    return " ".join(str(sequence) for sequence, _ in large)
