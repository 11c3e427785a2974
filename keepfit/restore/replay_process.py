"""The child process that replays requests: a request can kill the process that learns it, or keep it busy for ever.

Owns the child, the pipe to it, and its time limit; messages are :mod:`keepfit.restore.replay_wire`'s. Never decides
what is learned. Invariants: the child accepts only a bundle whose signature it has verified, and returns bundles that
it has signed; a child that is silent for too long is killed; it ends when its parent ends, even if the parent is
killed. Bundles and payloads come from :mod:`keepfit.restore.replay`.
"""

import math
import multiprocessing
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from keepfit import errors, hash_seed
from keepfit.errors import UnavailableError
from keepfit.restore import replay_child
from keepfit.restore.replay_wire import LOADED, LOADING, READY, ReplayReply, ReplayTask, decode_reply, encode
from keepfit.security.envelope import Keyring

# The fork server imports these, so that the next child after a death starts at once.
PRELOADED = ["keepfit.restore.replay_child"]
START_S_MAX = 120.0
# The child is looked at so often. Time for which this process does not run counts as one such interval at most.
LOOK_S = 0.5


class ReplayProcessDiedError(Exception):
    """The child died, or ran out of memory, during a task; or it was killed, because it was silent for too long.

    `is_overdue` says whether it was killed for that, `is_loading` whether it had not finished loading the bundle.
    """

    def __init__(self, *, is_overdue: bool, is_loading: bool) -> None:
        super().__init__("The process that replays logged requests ended.")
        self.is_overdue = is_overdue
        self.is_loading = is_loading


class _Watch:
    """Kills the child during a task, once `silent_s_max` seconds have passed without a message from it.

    In a thread of its own: also sending a task to a child that does not read it may block.
    """

    def __init__(self, child: BaseProcess, silent_s_max: float) -> None:
        self.is_overdue = False
        # While it loads the bundle for the first time.
        self.is_loading = False
        self._child = child
        self._has_loaded = False
        self._silent_s = 0.0
        self._silent_s_max = silent_s_max
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def note(self, message: bytes) -> None:
        """Record a message of the child."""
        self._silent_s = 0.0
        self.is_loading = message == LOADING and not self._has_loaded
        self._has_loaded = self._has_loaded or message == LOADED

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._silent_s += LOOK_S
            if self._silent_s >= self._silent_s_max:
                self.is_overdue = True
                self._child.kill()
                return


@dataclass(slots=True)
class ReplayProcess:
    """The child, started for the first task; several threads may use it, one after another.

    A call of the child (loading the bundle, learning one request, or one batch merged) may take `call_s_max` seconds.
    """

    keyring: Keyring
    upload_keys: Keyring | None = None
    call_s_max: float = math.inf
    _lock: Any = None
    _started: tuple[BaseProcess, Connection] | None = None
    _is_closed: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def learn(self, task: ReplayTask) -> ReplayReply:
        """Send a task to the child and wait for its reply.

        Raises
        ------
        ReplayProcessDiedError
            If the child died during the task, or was killed because a call took too long.
        UnavailableError
            If no child can be started.
        KeepfitError
            The error that the child reports, as of :func:`keepfit.model.serialization.unseal`.
        """
        with self._lock:
            child, pipe = self._started or self._start()
            watch = _Watch(child, self.call_s_max + replay_child.REPLY_AFTER_S)
            try:
                with watch:
                    reply = _exchange(pipe, task, watch)
            except (EOFError, OSError):
                self._end()
                raise ReplayProcessDiedError(is_overdue=watch.is_overdue, is_loading=watch.is_loading) from None
            except BaseException:
                # The next task would read the reply to this one.
                self._end()
                raise
            if watch.is_overdue:
                # It was killed when it had just replied.
                self._end()
        if reply.error is not None:
            raise errors.from_name(*reply.error)
        return reply

    def _start(self) -> tuple[BaseProcess, Connection]:
        """Start the child and return it with the pipe to it."""
        if self._is_closed:
            raise UnavailableError("The restore was ended.")
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
            self._started = child, ours
            is_ready = ours.poll(START_S_MAX) and ours.recv_bytes() == READY
        except (EOFError, OSError):
            is_ready = False
        if not is_ready:
            self._end()
            raise UnavailableError("The process that replays logged requests cannot be started.")
        return child, ours

    def _end(self) -> None:
        started, self._started = self._started, None
        if started is not None:
            child, pipe = started
            pipe.close()
            child.kill()
            child.join()

    def close(self) -> None:
        """End the child, also during a task; no other child is started."""
        self._is_closed = True
        started = self._started
        if started is not None:
            started[0].kill()
        with self._lock, suppress(OSError):
            self._end()


def _exchange(pipe: Connection, task: ReplayTask, watch: _Watch) -> ReplayReply:
    """Send a task and return the reply; tell the watch of each message."""
    pipe.send_bytes(encode(task))
    while True:
        message = pipe.recv_bytes()
        watch.note(message)
        if message not in (LOADING, LOADED):
            reply: ReplayReply = decode_reply(message)
            return reply
