"""What the child of :mod:`keepfit.restore.replay_process` does: learn what it is sent, seal it, send it back.

Owns no decision and no connection but the one to its parent. Invariant: it learns as workers do, by
:mod:`keepfit.model.fit_loop`.
"""

import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from keepfit.errors import KeepfitError, LearningError, describe_error
from keepfit.model import fit_loop, object_bundle, serialization
from keepfit.model.bundle import Bundle
from keepfit.model.fit_loop import Fitted
from keepfit.recipe.recipe import from_text
from keepfit.restore.replay_process import READY, Done, Task, decode_task, encode
from keepfit.rows.rows import Rows
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.store.inbox import change_of

# A task is as long as who sends it makes it.
SECONDS = float("inf")


@dataclass(frozen=True, slots=True)
class Payload:
    """A logged request."""

    data: bytes

    @property
    def change(self) -> dict[str, Any] | None:
        """Parameters that it changes; None if it is rows."""
        return change_of(self.data)

    def rows(self) -> Rows:
        """Its rows."""
        return Rows.decode(self.data)


def serve(line: Connection, keyring: Keyring, upload_keys: Keyring | None) -> None:
    """Do tasks until the parent is gone."""
    # Ctrl-C is the parent's to hear.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line.send_bytes(READY)
    while True:
        try:
            task = decode_task(line.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            done = _done(task, keyring, upload_keys)
        except MemoryError:
            # As if the kernel had found it out.
            os._exit(1)
        except KeepfitError as error:
            done = Done(error=(type(error).__name__, str(error)))
        except Exception as error:  # noqa: BLE001 - the parent says it
            done = Done(error=(LearningError.__name__, describe_error(error)))
        line.send_bytes(encode(done))


def _done(task: Task, keyring: Keyring, upload_keys: Keyring | None) -> Done:
    recipe = from_text(task.recipe_text)

    def fresh() -> Bundle:
        if not task.data:
            return object_bundle.begin(recipe, upload_keys)
        return serialization.unseal(task.data, keyring, recipe, task.header.hash)[1]

    def keep(bundle: Bundle, fitted: Fitted) -> Done:
        if not fitted.count:
            return Done(reason=fitted.reason)
        header = msgspec.structs.replace(task.header, rows_seen=bundle.rows_seen, runtime=envelope.runtime())
        data = serialization.seal(bundle, keyring, header)
        metrics, changed = (msgspec.json.encode(one).decode() for one in (bundle.metrics(), bundle.changed))
        return Done(fitted.count, fitted.reason, data, bundle.width, metrics, changed)

    return fit_loop.learn(fresh(), fresh, [Payload(payload) for payload in task.payloads], keep, SECONDS)
