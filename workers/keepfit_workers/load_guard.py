"""What a worker does around the loading of a snapshot, which can end the process, or take for ever.

Owns the record of such a load for the supervisor, and its time limit. Never loads anything, and never counts a death:
supervisors do (:mod:`keepfit.store.unloadable`). Invariants: one snapshot is loaded at a time, so that the record names
the one that is; while it is loaded, nothing else shows the supervisor that the restore goes on.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from keepfit.errors import UnloadableError
from keepfit.history import Document
from keepfit.restore.reader import LoadGuard
from keepfit.store import unloadable
from keepfit_workers.activity import LOAD, RESTORE, Activity


class WorkerLoadGuard(LoadGuard):
    """The guard of one worker process. Restores run in one event loop, loads in threads."""

    def __init__(self, store: Redis, activity: Activity) -> None:
        self._store = store
        self._activity = activity
        self._repaired = ""
        self._is_loading = False
        # One load at a time; and one change of the record.
        self._loads, self._records = threading.Lock(), threading.Lock()

    def begin(self, repaired: str) -> None:
        """Record that a restore begins; `repaired` is the hash of the model whose live bundle is repaired, if any."""
        self._repaired = repaired
        self._activity.begin(RESTORE, repaired)

    def go_on(self) -> None:
        """Record that the restore goes on, unless a snapshot is being loaded."""
        with self._records:
            if not self._is_loading:
                self._activity.go_on()

    def check(self, document: Document, *, is_named: bool) -> None:
        """Raise UnloadableError if workers died while they loaded this snapshot.

        A restore that names a time or version tries it all the same. A repair was refused before, with its live bundle.
        """
        if is_named or self._repaired:
            return
        model_hash, generation = document["hash"], int(document["generation"])
        seconds = unloadable.seconds_left(self._store, model_hash, generation, document["sha256"])
        if seconds:
            raise UnloadableError(
                f"Several workers died, or one hung, while they loaded the snapshot of version {document['version']}, "
                f"generation {generation}, of the model {model_hash}; it is tried again in {seconds} s. Restore a "
                "version by name to try it before, or another one."
            )

    @contextmanager
    def loading(self, document: Document, *, is_named: bool) -> Iterator[None]:
        """Record that a snapshot is loaded: a death is then counted for it, rather than for the requests.

        In a repair it is counted for the live bundle, and for a request if that names the time or version to restore.
        """
        with self._loads:
            with self._records:
                self._is_loading = True
                if is_named or self._repaired:
                    self._activity.begin(RESTORE, self._repaired)
                else:
                    generation, digest = int(document["generation"]), document["sha256"]
                    self._activity.begin(LOAD, document["hash"], generation, digest)
            try:
                yield
            finally:
                with self._records:
                    self._is_loading = False
                    self._activity.begin(RESTORE, self._repaired)
