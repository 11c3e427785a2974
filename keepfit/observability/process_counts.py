"""Numbers of the processes of one service, in memory that all of them read.

Owns the form of that memory. Each process has a part that it alone writes: rows, each with a key (texts) and as many
numbers as it was made with. A process that takes the place of a dead one continues its part. Never adds parts up, and
never stores text that a client made up. Invariants: what is counted outlives its process, also after a SIGKILL; a
reader sees a row with its whole key or not at all.

A part begins with two words of 64 bits, the size of what is written and whether a process runs. Then come the rows: the
sizes of the key and of the numbers, the key as JSON and spaces, and the numbers, all of them of 64 bits.
"""

import json
import mmap
import struct
import threading
from collections.abc import Mapping
from typing import NamedTuple, Self, TypeAlias

# For some 4,000 rows: more than there are routes with methods and statuses. Pages that are not written take no memory.
PART_BYTES = 1 << 20
WORD = 8
SIZES = struct.Struct("=II")
WRITTEN, RUNS = 0, 1

Key = tuple[str, ...]
# At run time the type has no parameter.
Numbers: TypeAlias = "memoryview[float]"


class ProcessCounts:
    """The part of one process. It is anonymous memory, which forks share."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, PART_BYTES))
        self._head = self._memory[: 2 * WORD].cast("Q")
        self._read = 2 * WORD
        self._rows: dict[Key, Numbers] = {}
        # A scrape reads, and publishing writes, outside of the thread that counts requests.
        self._lock = threading.Lock()

    @property
    def runs(self) -> bool:
        """Whether a process runs that writes this part: without one its counters hold, and its gauges do not."""
        return bool(self._head[RUNS])

    @runs.setter
    def runs(self, value: bool) -> None:
        self._head[RUNS] = value

    def row(self, key: Key, width: int = 1) -> Numbers:
        """Return the numbers of a key, to change them; they are 0 at first."""
        found = self._rows.get(key)
        if found is not None:
            return found
        with self._lock:
            self._read_on()
            return self._rows.get(key) or self._append(key, width)

    def rows(self) -> Mapping[Key, Numbers]:
        """Return the numbers of all keys."""
        with self._lock:
            self._read_on()
            return dict(self._rows)

    def _read_on(self) -> None:
        """Read the rows that were written since the last call."""
        written = self._head[WRITTEN]
        while self._read < written:
            key_size, numbers_size = SIZES.unpack_from(self._memory, self._read)
            begin = self._read + SIZES.size
            key = tuple(json.loads(bytes(self._memory[begin : begin + key_size])))
            begin += key_size
            self._rows[key] = self._memory[begin : begin + numbers_size].cast("d")
            self._read = begin + numbers_size

    def _append(self, key: Key, width: int) -> Numbers:
        text = json.dumps(key).encode()
        text += b" " * (-len(text) % WORD)
        head = SIZES.pack(len(text), width * WORD) + text
        begin, end = self._read, self._read + len(head) + width * WORD
        if end > PART_BYTES:
            # The keys are made of routes, methods, statuses and metrics, so this does not happen.
            numbers = self._rows[key] = memoryview(bytearray(width * WORD)).cast("d")
            return numbers
        self._memory[begin : begin + len(head)] = head
        # Last: from now on the row is read.
        self._head[WRITTEN] = end
        self._read_on()
        return self._rows[key]


class Parts(NamedTuple):
    """The parts of all processes of a service, as one of them sees them."""

    own: ProcessCounts
    others: tuple[ProcessCounts, ...] = ()

    @classmethod
    def of(cls, parts: list[ProcessCounts], number: int) -> Self:
        """Return `parts` as the process with this number sees them."""
        return cls(parts[number], tuple(part for other, part in enumerate(parts) if other != number))
