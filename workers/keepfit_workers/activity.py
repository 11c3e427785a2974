"""What one worker does and holds, in memory that it shares with its supervisor.

Owns a page of memory that exists before the worker is forked. The worker writes a record of its lease, its lock and its
current call; the supervisor reads it. Reading needs neither Redis nor the worker's interpreter, which native code may
keep from running for minutes. Invariant: a reader gets a whole record: the last one if the worker died while it wrote.
"""

import mmap
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

PAGE_BYTES = 4096
# The steps of a call: a method of a bundle, reading a bundle, restoring models, and what is between them in a batch.
CALL, LOAD, RESTORE, BATCH = "call", "load", "restore", "batch"
# Length and checksum of the record.
_FRONT = struct.Struct("<II")


class Doing(msgspec.Struct, frozen=True, array_like=True):
    """A worker's lease, the model whose lock it holds, and its call.

    A call is a step that may take long, and that keepfit cannot interrupt: `step` names it, `model` is its hash, if it
    is about one, and `since_s` its start by the monotonic clock, which all processes of a machine share. Between calls
    `step` is ''. `generation` and `digest` name the bundle that is loaded. `progress_s` is the last moment at which the
    call was seen to go on, 0 if it does not tell. `models_held` is the number of bundles in its memory and
    `rows_learned` that of the rows that it has committed since its start, both after its last batch.
    """

    lease: str = ""
    locked: str = ""
    locked_by: str = ""
    step: str = ""
    since_s: float = 0.0
    model: str = ""
    generation: int = 0
    digest: str = ""
    progress_s: float = 0.0
    models_held: int = 0
    rows_learned: int = 0

    def call_s(self, now_s: float) -> float:
        """Return the seconds that the call has taken; 0 between calls."""
        return now_s - self.since_s if self.step else 0.0

    def silent_s(self, now_s: float) -> float:
        """Return the seconds since the call began, or was last seen to go on; 0 between calls."""
        return now_s - max(self.since_s, self.progress_s) if self.step else 0.0


class Activity:
    """The record of one worker, which its process writes and its supervisor reads."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, PAGE_BYTES)
        # What this process has written, or read last.
        self.doing = Doing()

    @contextmanager
    def holding_lease(self, lease: str) -> Iterator[None]:
        """Record a lease inside the `with` block, so that the supervisor renews it."""
        self._change(lease=lease)
        try:
            yield
        finally:
            self._change(lease="", step="")

    @contextmanager
    def holding_lock(self, model_hash: str, token: str) -> Iterator[None]:
        """Record the lock of a model inside the `with` block, so that the supervisor renews it."""
        self._change(locked=model_hash, locked_by=token)
        try:
            yield
        finally:
            self._change(locked="", locked_by="")

    def begin(self, step: str, model: str = "", generation: int = 0, digest: str = "") -> None:
        """Record that a call begins, and with it that the one before has ended."""
        self._change(
            step=step, since_s=time.monotonic(), model=model, generation=generation, digest=digest, progress_s=0.0
        )

    def go_on(self) -> None:
        """Record that the current call goes on: it may take longer than one may that is silent."""
        self._change(progress_s=time.monotonic())

    def end(self, **counts: int) -> None:
        """Record that the current call has ended, and the `counts` of :class:`Doing` after it."""
        self._change(step="", **counts)

    def read(self) -> Doing:
        """Return the record, as the supervisor sees it."""
        length, checksum = _FRONT.unpack_from(self._page)
        record = self._page[_FRONT.size : _FRONT.size + length]
        if length and zlib.crc32(record) == checksum:
            self.doing = msgspec.msgpack.decode(record, type=Doing)
        return self.doing

    def _change(self, **changes: object) -> None:
        self.doing = msgspec.structs.replace(self.doing, **changes)
        record = msgspec.msgpack.encode(self.doing)
        self._page[: _FRONT.size + len(record)] = _FRONT.pack(len(record), zlib.crc32(record)) + record
