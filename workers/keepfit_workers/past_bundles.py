"""The bundles of snapshots that a worker has in memory, to predict with beside the live models.

Owns which of them are kept: the few that were asked for last, in the worker's cache of bundles, within its bound of
bytes. Never reads one (:mod:`keepfit_workers.past_versions` does). Invariant: a bundle is found only by the model,
generation, version and SHA-256 with which it was read, and never in place of a live one.
"""

from collections import OrderedDict
from typing import NamedTuple

from keepfit.jobs.messages import PastVersion, WorkerRequest
from keepfit.model.bundle import Bundle
from keepfit.store.commit import Loaded
from keepfit_workers.bundle_cache import BundleCache

# Questions about many versions must not drive the live bundles out of memory.
KEPT_MAX = 8


class PastBundle(NamedTuple):
    """The bundle of a snapshot, with what its replies say of it; `described` has no data."""

    described: Loaded
    bundle: Bundle


class PastBundles:
    """The bundles of snapshots in the cache of one worker process."""

    def __init__(self, cache: BundleCache) -> None:
        self._cache = cache
        self._described: OrderedDict[str, Loaded] = OrderedDict()

    def find(self, request: WorkerRequest) -> PastBundle | None:
        """Return the bundle that a request is about, None if it is not in memory."""
        name = _name_of(request)
        described = self._described.get(name)
        bundle = None if described is None else self._cache.get(name, described.digest)
        if described is None or bundle is None:
            self._described.pop(name, None)
            return None
        self._described.move_to_end(name)
        return PastBundle(described, bundle)

    def put(self, request: WorkerRequest, past: PastBundle, size_bytes: int) -> None:
        """Keep the bundle of a request, which has `size_bytes` in the storage, if it fits at all."""
        if size_bytes > self._cache.bytes_max:
            return
        name = _name_of(request)
        self._cache.put(name, past.described.digest, past.bundle, size_bytes)
        self._described[name] = past.described
        while len(self._described) > KEPT_MAX:
            oldest, _ = self._described.popitem(last=False)
            self._cache.drop(oldest)


def _name_of(request: WorkerRequest) -> str:
    """Return the name in the cache, where live bundles have the hash of their model alone."""
    past = request.past or PastVersion(0, 0, "")
    return f"{request.hash} {past.generation} {past.version} {past.sha256}"
