"""The child process that replays requests: a request can kill the process that learns it.

Owns the child and the pipe to it; messages are :mod:`keepfit.restore.replay_wire`'s. Never decides what is learned.
Invariants: the child accepts only a bundle whose signature it has verified, and returns bundles that it has signed; it
ends when its parent ends, even if the parent is killed. Bundles and payloads come from :mod:`keepfit.restore.replay`.
"""

import multiprocessing
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from keepfit import errors, hash_seed
from keepfit.errors import UnavailableError
from keepfit.restore import replay_child
from keepfit.restore.replay_wire import READY, ReplayReply, ReplayTask, decode_reply, encode
from keepfit.security.envelope import Keyring

# The fork server imports these, so that the next child after a death starts at once.
PRELOADED = ["keepfit.restore.replay_child"]
START_S_MAX = 120.0


class ReplayProcessDiedError(Exception):
    """The child died, or ran out of memory, during a task."""


@dataclass(slots=True)
class ReplayProcess:
    """The child, started for the first task; several threads may use it, one after another."""

    keyring: Keyring
    upload_keys: Keyring | None = None
    _lock: Any = None
    _child: BaseProcess | None = None
    _pipe: Connection | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def learn(self, task: ReplayTask) -> ReplayReply:
        """Send a task to the child and wait for its reply.

        Raises
        ------
        ReplayProcessDiedError
            If the child died during the task.
        UnavailableError
            If no child can be started.
        KeepfitError
            The error that the child reports, as of :func:`keepfit.model.serialization.unseal`.
        """
        with self._lock:
            pipe = self._pipe or self._start()
            try:
                pipe.send_bytes(encode(task))
                reply: ReplayReply = decode_reply(pipe.recv_bytes())
            except (EOFError, OSError):
                self._end()
                raise ReplayProcessDiedError from None
            except BaseException:
                # The next task would read the reply to this one.
                self._end()
                raise
        if reply.error is not None:
            raise errors.from_name(*reply.error)
        return reply

    def _start(self) -> Connection:
        # Not forked from this process, which has threads and connections; the fork server has neither.
        # The fork server is a new interpreter: what it is to replay must be learned with the hashes of a worker.
        hash_seed.set_for_children()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        ours, theirs = context.Pipe()
        child = context.Process(target=replay_child.main, args=(theirs, self.keyring, self.upload_keys), daemon=True)
        try:
            child.start()
            theirs.close()
            self._child, self._pipe = child, ours
            is_ready = ours.poll(START_S_MAX) and ours.recv_bytes() == READY
        except (EOFError, OSError):
            is_ready = False
        if not is_ready:
            self._end()
            raise UnavailableError("The process that replays logged requests cannot be started.")
        return ours

    def _end(self) -> None:
        pipe, child, self._pipe, self._child = self._pipe, self._child, None, None
        if pipe is not None:
            pipe.close()
        if child is not None:
            child.kill()
            child.join()

    def close(self) -> None:
        """End the child."""
        with self._lock, suppress(OSError):
            self._end()
