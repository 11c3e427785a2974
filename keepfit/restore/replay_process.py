"""The learner: a child process that learns what a restore replays, because rows can kill who learns them.

Owns the child and the messages to and from it, in msgpack; no pickle crosses. Never decides what is learned.
Invariants: the child takes only a bundle whose signature it has verified, and gives back what it has signed itself; it
ends when its parent does, however that dies. Bundles and payloads come from :mod:`keepfit.restore.replay`.
"""

import multiprocessing
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from keepfit import errors
from keepfit.errors import UnavailableError
from keepfit.security.envelope import Header, Keyring

# What a child is forked from has imported these, so that the next child after a death is there at once.
PRELOADED = ["keepfit.restore.replay_child"]
READY = b"ready"
START_S_MAX = 120.0


class DiedError(Exception):
    """The child died, or ran out of memory, while it learned."""


class Task(msgspec.Struct, array_like=True, frozen=True):
    """Requests to learn on top of a bundle (empty: a new one); `header` is that of the bundle to be sealed."""

    recipe_text: str
    header: Header
    data: bytes
    payloads: list[bytes]


class Done(msgspec.Struct, array_like=True, frozen=True):
    """What came of a task: the bundle has learned the first `count` of its requests, `reason` tells why not the next.

    The texts are JSON. `error` is (class, words) of an error of our tree, where there is nothing else to tell.
    """

    count: int = 0
    reason: str = ""
    data: bytes = b""
    width: int | None = None
    metrics_text: str = "{}"
    changed_text: str = "{}"
    error: tuple[str, str] | None = None


encode = msgspec.msgpack.Encoder().encode
decode_task = msgspec.msgpack.Decoder(Task).decode
decode_done = msgspec.msgpack.Decoder(Done).decode


@dataclass(slots=True)
class ReplayProcess:
    """The child, made when it is first needed; may be used from several threads, which wait for each other."""

    keyring: Keyring
    upload_keys: Keyring | None = None
    _lock: Any = None
    _child: BaseProcess | None = None
    _line: Connection | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def learn(self, task: Task) -> Done:
        """Have a task done.

        Raises
        ------
        DiedError
            If the child died of it.
        UnavailableError
            If there can be no child.
        KeepfitError
            What the child has met, as of :func:`keepfit.model.serialization.unseal`.
        """
        with self._lock:
            line = self._line or self._start()
            try:
                line.send_bytes(encode(task))
                done: Done = decode_done(line.recv_bytes())
            except (EOFError, OSError):
                self._end()
                raise DiedError from None
            except BaseException:
                # Its answer would be taken for that to another task.
                self._end()
                raise
        if done.error is not None:
            raise errors.from_name(*done.error)
        return done

    def _start(self) -> Connection:
        # Not forked from this process, which has threads and connections; and not a child of the one that is.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        ours, theirs = context.Pipe()
        from keepfit.restore.replay_child import serve  # noqa: PLC0415 - which imports this module

        child = context.Process(target=serve, args=(theirs, self.keyring, self.upload_keys), daemon=True)
        try:
            child.start()
            theirs.close()
            self._child, self._line = child, ours
            ready = ours.poll(START_S_MAX) and ours.recv_bytes() == READY
        except (EOFError, OSError):
            ready = False
        if not ready:
            self._end()
            raise UnavailableError("The process that learns logged rows again cannot be started.")
        return ours

    def _end(self) -> None:
        line, child, self._line, self._child = self._line, self._child, None, None
        if line is not None:
            line.close()
        if child is not None:
            child.kill()
            child.join()

    def close(self) -> None:
        """End the child."""
        with self._lock, suppress(OSError):
            self._end()
