"""Main function of the replay process: learn requests on top of a bundle, seal the bundle, send it back.

Decides nothing, and has no connection but the pipe to its parent (:mod:`keepfit.restore.replay_process`). Invariants:
it learns as workers do, with :mod:`keepfit.model.fit_loop`; on Linux it ends with its parent, whatever it does then.
"""

import fcntl
import multiprocessing
import os
import select
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from keepfit.errors import KeepfitError, LearningError, describe_error
from keepfit.model import fit_loop, object_bundle, serialization
from keepfit.model.bundle import Bundle
from keepfit.model.fit_loop import Fitted
from keepfit.recipe.recipe import from_text
from keepfit.restore.replay_wire import LOADED, LOADING, READY, ReplayReply, ReplayTask, decode_task, encode
from keepfit.rows import acceptance, served, train_score_predict
from keepfit.rows.rows import Rows
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.store.changes import params_of

# After so long the child returns what it has learned, so that the parent hears of it; also within a long batch.
REPLY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Payload:
    """A logged request."""

    data: bytes

    @property
    def change(self) -> dict[str, Any] | None:
        """The parameters that it changes; None if it holds rows."""
        return params_of(self.data)

    def rows(self) -> Rows:
        """Decode its rows."""
        return served.decode(self.data)

    @property
    def wants_answer(self) -> bool:
        """Whether it is a call of train_score_predict; its answer is dropped."""
        return train_score_predict.is_one(self.data)

    @property
    def accepted_s(self) -> float:
        """When its rows were accepted, in seconds since 1970; 0.0 if that is not known."""
        return acceptance.accepted_s(self.data)


def main(pipe: Connection, keyring: Keyring, upload_keys: Keyring | None) -> None:
    """Run tasks until the parent closes the pipe or ends."""
    # Ctrl-C goes to the whole process group; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    pipe.send_bytes(READY)
    while True:
        try:
            task = decode_task(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            reply = _run(pipe, task, keyring, upload_keys)
        except MemoryError:
            # End as if the kernel had killed the process.
            os._exit(1)
        except KeepfitError as error:
            reply = ReplayReply(error=(type(error).__name__, str(error)))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            reply = ReplayReply(error=(LearningError.__name__, describe_error(error)))
        pipe.send_bytes(encode(reply))


def end_with_parent() -> None:
    """Make Linux kill this process when its parent ends: a call of native code would not notice it.

    PR_SET_PDEATHSIG would not do: Linux takes the fork server for the parent, which lives as long as this process.
    """
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    # The read end of a pipe to which the parent holds the other end; nothing is ever written to it.
    sentinel: int = parent.sentinel
    fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([sentinel], [], [], 0)[0]:
        # It has ended before.
        os._exit(1)


def _run(pipe: Connection, task: ReplayTask, keyring: Keyring, upload_keys: Keyring | None) -> ReplayReply:
    recipe = from_text(task.recipe_text)

    def fresh() -> Bundle:
        pipe.send_bytes(LOADING)
        if not task.data:
            bundle = object_bundle.new_bundle(recipe, upload_keys)
        else:
            bundle = serialization.unseal(task.data, keyring, recipe, task.header.hash, upload_keys)[1]
        pipe.send_bytes(LOADED)
        return bundle

    def seal(bundle: Bundle, fitted: Fitted) -> ReplayReply:
        if not fitted.count:
            return ReplayReply(reason=fitted.reason)
        header = msgspec.structs.replace(task.header, rows_seen=bundle.rows_seen, runtime=envelope.runtime())
        data = serialization.seal(bundle, keyring, header)
        metrics, changed = (msgspec.json.encode(one).decode() for one in (bundle.metrics(), bundle.changed))
        return ReplayReply(fitted.count, fitted.reason, data, bundle.width, metrics, changed)

    return fit_loop.fit_requests(fresh(), fresh, [Payload(payload) for payload in task.payloads], seal, REPLY_AFTER_S)
